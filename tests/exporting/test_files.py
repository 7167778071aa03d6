"""What a gate says of an export holds for the files that passed it, and for no others; broken files of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tometune.common.errors import UserError
from tometune.exporting.files import changed, listing
from tometune.runs.finished import check_adapter, check_examples


def test_every_change_of_an_export_is_found(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "run.json"):
        (tmp_path / name).write_text(name)
    gate = {"files": listing(tmp_path)}
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    assert changed(tmp_path, gate) == []
    (tmp_path / "model.safetensors").write_text("MODEL.safetensors")  # of the same size
    assert changed(tmp_path, gate) == ["model.safetensors"]
    (tmp_path / "more").write_text("")
    (tmp_path / "run.json").unlink()
    assert changed(tmp_path, gate) == ["more", "run.json"]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter's folder, whole."""
    config = {"target_modules": ["v_proj"], "lora_alpha": 16, "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    key = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    save_file({key: np.zeros((4, 64), np.float32)}, tmp_path / "adapter_model.safetensors")
    return tmp_path


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"target_modules": [], "lora_alpha": 1, "r": 1}'])
def test_a_broken_config_is_one_line(adapter, text):
    check_adapter(adapter)
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(
        UserError, match=r"adapter_config.json: not the config of a LoRA adapter; run the run's command"
    ):
        check_adapter(adapter)


def test_weights_that_were_cut_off_are_one_line(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"adapter_model.safetensors: broken or cut off \(.*; run the run's command"):
        check_adapter(adapter)


def test_empty_answers_are_one_line(tmp_path):
    (tmp_path / "qa.jsonl").write_text("{}")
    check_examples(tmp_path, ["qa"])
    (tmp_path / "qa.jsonl").write_text("")
    for task, why in (("qa", "is empty"), ("other", "no such file")):
        with pytest.raises(UserError, match=rf"{task}.jsonl: {why}; score the run again"):
            check_examples(tmp_path, [task])
