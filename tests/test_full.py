"""Full fine-tuning (`lora=none`) through the verbs: trained, interrupted, scored again, in a chat, exported."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.exporting.conftest import SHORT, gate_of, save_base
from tests.exporting.conftest import SMOKE as PEAKED
from tests.whole import Workplace, answers_of, assert_one_line, curve_of, record_of, scores_of
from tometune.common.errors import UserError
from tometune.config.export import ExportConfig
from tometune.config.root import Config, PathsConfig
from tometune.runs.finished import find_finished

pytestmark = pytest.mark.whole
FULL = ("lora=none", "trainer.learning_rate=2e-3")
SMOKE = ("+experiment=smoke", *FULL, "trainer.max_steps=6", "trainer.save_steps=2", "eval.base=true")
DEATHS = {
    "after the last step": ("tometune.training.sft:save_full_model", 1, "SIGKILL"),
    "in the tuned evaluation": ("tometune.evaluation.scoring:write_result", 2, "SIGKILL"),
}


def model_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with one finished run."""
    made = Workplace(tmp_path_factory.mktemp("full"))
    status, stderr = made.train(*SMOKE)
    assert status == 0, stderr
    assert "full fine-tuning: " in stderr
    return made


def test_the_record_says_what_was_trained(trained: Workplace) -> None:
    run = trained.run_folder()
    record = record_of(run)
    assert record["train"]["kind"] == "full"
    assert record["train"]["trainable_parameters"] == record["model"]["parameters"]
    assert not (run / "adapter").exists()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (run / "model").iterdir()}
    assert curve_of(run)[-1][1] < curve_of(run)[0][1]
    assert "enabled: false" in (run / "config.yaml").read_text()
    texts = [path.read_text() for path in (run / "model").glob("*.json")]
    assert not [text for text in texts if str(trained.folder) in text], "a path of this machine"


@pytest.mark.nightly
def test_a_run_that_dies_again_and_again_ends_as_the_unbroken_one(trained: Workplace) -> None:
    outputs = (*SMOKE, "paths.outputs=broken")
    for where, moment in DEATHS.items():
        status, stderr = trained.train(*outputs, moment=moment)
        assert status == -9, f"{where}: {stderr}"
    done = trained.verb("train", *outputs)
    assert done.returncode == 0, done.stderr
    run, unbroken = trained.run_folder("broken"), trained.run_folder()
    assert run.name == unbroken.name
    assert (run / "model" / "model.safetensors").read_bytes() == (unbroken / "model" / "model.safetensors").read_bytes()
    assert curve_of(run) == curve_of(unbroken)
    assert scores_of(run) == scores_of(unbroken)
    assert answers_of(run) == answers_of(unbroken)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.nightly
def test_evaluate_scores_the_saved_model_again(trained: Workplace, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run_folder(), tmp_path / "run"))
    kept = answers_of(run)
    for path in run.glob("eval/*/*.jsonl"):
        path.unlink()
    done = trained.verb("evaluate", f"run={run}", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert answers_of(run) == kept
    done = trained.verb("evaluate", f"run={run}", "eval.limit=1", "tracking=none")
    assert done.returncode == 0, done.stderr
    (found,) = run.glob("evaluations/*/evaluation.json")
    record = json.loads(found.read_text())
    assert (record["adapter"], record["whole_model"]) == (None, str(run / "model"))
    shutil.rmtree(run / "model")
    assert_one_line(trained.verb("evaluate", f"run={run}"), r"holds no model \(status completed\); finish its training")


def test_exports_that_need_an_adapter_are_refused(trained: Workplace) -> None:
    run, paths = str(trained.run_folder()), PathsConfig(cache=str(trained.folder / "cache"))
    for formats in ("adapter", ["adapter", "gguf"]):
        with pytest.raises(UserError, match=r"^format=adapter: tiny-.* was trained with lora=none and has none"):
            find_finished(Config(run=run, paths=paths, format=formats))
    with pytest.raises(UserError, match=r"^export\.base=x: tiny-.* is a whole model, which is not merged"):
        find_finished(Config(run=run, paths=paths, export=ExportConfig(base="x")))


@pytest.mark.nightly
def test_exports_are_the_model_itself(place: Workplace) -> None:
    base = save_base(place.folder / "base", seed=3)  # in bfloat16; its answers differ from prompt to prompt
    made = place.verb("train", *PEAKED, *SHORT, *FULL, f"model.id={base}", "model.weights=pretrained")
    assert made.returncode == 0, made.stderr
    run = place.run_folder()
    done = place.verb("export", f"run={run.name}", "format=merged_16bit")
    assert done.returncode == 0, done.stderr
    assert "merged_16bit: passed, " in done.stdout
    assert "nats per token from the run's model" in done.stdout
    merged = run / "export" / "merged_16bit"
    exported = load_file(merged / "model.safetensors")
    assert {weight.dtype for weight in exported.values()} == {torch.bfloat16}
    assert all(torch.equal(weight.bfloat16(), exported[name]) for name, weight in model_of(run).items())
    assert set(gate_of(merged)["checks"]) == {"template", "logits", "rouge"}
    card = (merged / "README.md").read_text()
    assert "fine-tuned in full on the mix" in card
    assert "| trained parameters | all " in card
    assert "LoRA" not in card
    assert "the run's model as trained" in card
    again = place.verb("export", f"run={run.name}")
    assert again.returncode == 0, again.stderr
    assert "exists and passed its checks on" in again.stderr
