"""What makes a run's files complete, and where its base in 16 bits comes from."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from tometune.common.errors import UserError
from tometune.config.export import ExportConfig
from tometune.config.model import ModelConfig, Quantization
from tometune.runs.finished import base_of
from tometune.runs.run import REPEAT, check, trained_problems

KEY = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-100]),
            "adapter_model.safetensors: is broken or truncated (",
        ),
        (lambda path: save_file({"w": np.zeros(4)}, path), "adapter_model.safetensors: holds no LoRA weights"),
        (lambda path: path.rename(path.with_suffix(".bin")), "adapter_model.safetensors: is a pickle, which can run"),
        (lambda path: path.unlink(), "adapter_model.safetensors: is missing"),
        (lambda path: (path.parent / "adapter_config.json").unlink(), "adapter_config.json: is missing"),
    ],
)
def test_weights_that_are_truncated_missing_pickled_or_no_lora(tmp_path, spoil, problem):
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.parent.mkdir()
    (path.parent / "adapter_config.json").write_text("{}")
    save_file({KEY: np.zeros((4, 64), np.float32)}, path)
    check(tmp_path, trained_problems(tmp_path, adapter=True))
    spoil(path)
    with pytest.raises(UserError) as error:
        check(tmp_path, trained_problems(tmp_path, adapter=True))
    assert problem in str(error.value)
    assert str(error.value).endswith(f"; {REPEAT}")


def test_every_shard_of_a_whole_model_must_exist(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors", "b": "2.sa"}}')
    save_file({"a": np.zeros(2)}, folder / "1.safetensors")
    with pytest.raises(UserError, match=r"model/2.sa: is missing; repeat the command"):
        check(tmp_path, trained_problems(tmp_path, adapter=False))
    save_file({"b": np.zeros(2)}, folder / "2.sa")
    check(tmp_path, trained_problems(tmp_path, adapter=False))


def test_the_16_bit_base_of_a_4_bit_one():
    for ending in ("-bnb-4bit", "-unsloth-bnb-4bit"):
        model = ModelConfig(id=f"unsloth/Llama-3.2-3B-Instruct{ending}", revision="0" * 40)
        base = base_of(model, ExportConfig())
        assert (base.id, base.revision) == ("unsloth/Llama-3.2-3B-Instruct", "main")
        assert base.quantization is Quantization.none
    on_the_fly = ModelConfig(id="me/model", revision="abc")
    assert base_of(on_the_fly, ExportConfig()).id == "me/model"
    assert base_of(on_the_fly, ExportConfig(base="me/other", base_revision="v2")).revision == "v2"
