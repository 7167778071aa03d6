"""`export` as a user runs it: each format made, loaded again, compared with the adapter, found again."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.exporting.conftest import gate_of
from tometune.common.errors import UserError
from tometune.exporting import formats, gguf, reference
from tometune.exporting.formats import exports_of
from tometune.models.llama_cpp import LlamaError

pytestmark = pytest.mark.whole

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
TESTED = re.findall(r"^## ([^\n]*) \(tested\)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


def test_each_export_passed_in_the_engine_of_its_users(exported):
    names = {"adapter": "peft", "merged_16bit": "transformers", "gguf-q8_0": "llama.cpp"}
    assert sorted(path.name for path in exported.iterdir()) == sorted(names)
    for name, engine in names.items():
        gate = gate_of(exported / name)
        checks = gate["checks"]
        assert gate["passed"]
        assert gate["engine"].startswith(engine)
        assert checks["template"] == {"conversations": 8, "equal": 8}
        assert checks["rouge"]["examples"] == 8
        assert checks["logits"]["mean_divergence"] <= checks["logits"]["limit"]
        assert ("change" in checks) == (name != "adapter")
    adapter = gate_of(exported / "adapter")["checks"]
    assert adapter["logits"]["mean_divergence"] == 0
    assert adapter["rouge"] == {"examples": 8, "stored": True}
    merged, quantised = (gate_of(exported / name) for name in ("merged_16bit", "gguf-q8_0"))
    assert merged["dtype"] == "float16"
    for gate, error in ((merged, 0.01), (quantised, 0.5)):
        change = gate["checks"]["change"]
        assert change["share"] == pytest.approx(1, abs=0.05)
        assert 0 < change["relative_error"] < error
        assert change["layers"] == 2 * 7
        assert change["worst_layer"]["share"] <= change["share"]
    assert merged["checks"]["rouge"]["same_answers"] == 8
    assert not list(exported.glob(".*")), "what several exports were made from"


def test_files_that_belong_to_every_export(exported, trained):
    assert len({(path / "chat_template.jinja").read_text() for path in exported.iterdir()}) == 1
    for folder in exported.iterdir():
        names = {path.name for path in folder.iterdir()}
        assert {"tokenizer.json", "generation_config.json", "run.json", "README.md", "gate.json"} <= names
        assert not [name for name in names if "unquantised" in name]
        texts = [path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".jinja", "")]
        assert not [text for text in texts if str(trained.folder) in text], "a path of this machine"
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
        assert ModelCard.load(folder / "README.md").data.license == "other"
    assert json.loads((exported / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    modelfile = (exported / "gguf-q8_0" / "Modelfile").read_text()
    assert "TEMPLATE" in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile


def test_the_tested_code_of_the_serving_page(trained, exported):
    assert [title for title, _ in TESTED] == ["transformers", "llama.cpp from Python"]
    code = "\nprint('next')\n".join(code for _, code in TESTED)
    done = trained.python("-c", code.replace("RUN", str(exported.parent)))
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("\nnext\n")
    assert len(printed) == 2
    assert all(text.strip() for text in printed)


@pytest.mark.nightly
def test_a_gguf_in_4_bits(trained, tmp_path):
    """README's command with wide limits, because random weights have no structure that 4 bits could keep."""
    from gguf import GGUFReader

    wide = ("export.max_divergence.q4_k_m=2", "export.max_rouge_change.q4_k_m=1", f"export.folder={tmp_path}")
    done = trained.verb("export", f"run=outputs/{trained.run_folder().name}", "format=gguf", "quant=q4_k_m", *wide)
    assert (done.returncode, done.stdout.count(": passed")) == (0, 1), done.stderr
    (file,) = (tmp_path / "gguf-q4_k_m").glob("*-Q4_K_M.gguf")
    assert GGUFReader(file).fields["general.file_type"].contents() == gguf.FILE_TYPES["q4_k_m"]


def test_another_base_of_the_same_shape_fails(trained, tmp_path):
    run = f"run={trained.run_folder().name}"
    done = trained.verb("export", run, "export.base=other", f"export.folder={tmp_path}", "format=merged_16bit")
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("GateError: merged_16bit failed its checks: logits: differ from the adapter by ")
    assert "merged_16bit: FAILED, " in done.stdout
    assert not gate_of(tmp_path / "merged_16bit")["passed"]
    assert "This export failed its checks" in (tmp_path / "merged_16bit" / "README.md").read_text()


def test_exports_are_found_again_unless_a_file_changed(builder):
    export = exports_of(["adapter"], [], builder.folder)[0]
    made = gate_of(export.folder)
    assert builder.make(export)["finished"] == made["finished"]
    path = export.folder / "adapter_model.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[:-4] + b"\0\0\0\1")
    assert builder.make(export)["finished"] > made["finished"]
    assert path.read_bytes() == original


@pytest.mark.nightly
def test_an_engine_that_crashes_fails_its_own_export_only(builder, monkeypatch):
    def aborted(*_: object) -> None:
        raise LlamaError("llama.cpp ended with signal 6: GGML_ASSERT")

    monkeypatch.setattr(formats, "quantise", aborted)
    gates = []
    with pytest.raises(RuntimeError, match=r"^gguf-q6_k failed its checks: engine: llama.cpp ended with signal 6"):
        builder.make_all(exports_of(["adapter", "gguf"], ["q6_k"], builder.folder), gates.append)
    assert [gate["passed"] for gate in gates] == [True, False]


@pytest.mark.parametrize("gpu", [True, False])
def test_an_adapter_from_4_bits_is_compared_on_its_16_bit_base(builder, monkeypatch, gpu):
    def no_gpu(_: object) -> None:
        raise UserError("needs an NVIDIA GPU")

    builder.references.answer = False
    monkeypatch.setattr(reference, "quantized", lambda _: True)
    monkeypatch.setattr(reference, "check_machine", (lambda _: None) if gpu else no_gpu)
    adapter, merged = (builder.references.of(kind) for kind in ("adapter", "merged_16bit"))
    assert (adapter.base, merged.base) == ("as trained" if gpu else "16-bit base", "16-bit base")
    assert adapter.from_4_bits is None
    assert merged.from_4_bits == (pytest.approx(0, abs=1e-6) if gpu else None)
