"""What makes a run's files complete, and where its base in 16 bits comes from."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tometune.common.errors import UserError
from tometune.config.export import ExportConfig
from tometune.config.model import ModelConfig, Quantization
from tometune.runs.finished import base_of, check_trained

KEY = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The complete adapter of the run in `tmp_path`."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"target_modules": ["v_proj"], "lora_alpha": 16, "r": 4}))
    save_file({KEY: np.zeros((4, 64), np.float32)}, folder / "adapter_model.safetensors")
    check_trained(tmp_path, adapter=True)
    return folder


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"target_modules": [], "lora_alpha": 1, "r": 1}'])
def test_a_broken_adapter_config(adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config.json: not the config of a LoRA adapter; repeat the command"):
        check_trained(adapter.parent, adapter=True)


def test_weights_that_are_truncated_missing_pickled_or_no_lora(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"adapter_model.safetensors: broken or truncated \(.*; repeat the command"):
        check_trained(adapter.parent, adapter=True)
    save_file({"weight": np.zeros((4, 64), np.float32)}, path)
    with pytest.raises(UserError, match=r"adapter_model.safetensors: holds no LoRA weights; repeat the command"):
        check_trained(adapter.parent, adapter=True)
    path.rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter: holds its weights as a pickle, which can run code when it is read"):
        check_trained(adapter.parent, adapter=True)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match=r"adapter: holds no adapter_model.safetensors; repeat the command"):
        check_trained(adapter.parent, adapter=True)


def test_every_shard_of_a_whole_model_must_exist(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.sa"}})
    )
    save_file({"a": np.zeros(2)}, folder / "1.safetensors")
    with pytest.raises(UserError, match=r"model: holds no 2.sa; repeat the command"):
        check_trained(tmp_path, adapter=False)
    save_file({"b": np.zeros(2)}, folder / "2.sa")
    check_trained(tmp_path, adapter=False)


def test_the_16_bit_base_of_a_4_bit_one():
    for ending in ("-bnb-4bit", "-unsloth-bnb-4bit"):
        model = ModelConfig(id=f"unsloth/Llama-3.2-3B-Instruct{ending}", revision="0" * 40)
        base = base_of(model, ExportConfig())
        assert (base.id, base.revision) == ("unsloth/Llama-3.2-3B-Instruct", "main")
        assert base.quantization is Quantization.none
    on_the_fly = ModelConfig(id="me/model", revision="abc")
    assert base_of(on_the_fly, ExportConfig()).id == "me/model"
    assert base_of(on_the_fly, ExportConfig(base="me/other", base_revision="v2")).revision == "v2"
