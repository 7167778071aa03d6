"""Merging adds the adapter in float32 and rounds once, and the share of the change that survives is measured."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data.chatml import chatml_tokenizer
from tests.exporting.conftest import builder_of
from tests.fixtures.llama import tiny_llama
from tometune.common.errors import UserError
from tometune.config.export import ExportConfig
from tometune.config.model import LoraConfig, ModelConfig, Quantization
from tometune.config.root import Config
from tometune.exporting import build
from tometune.exporting.build import exports_of
from tometune.exporting.merge import load_base, merge, share_of_change, write_merged
from tometune.models.adapter import add_adapter, load_adapter
from tometune.runs.finished import Finished


def base() -> torch.nn.Module:
    return tiny_llama(chatml_tokenizer(), seed=1).bfloat16()


def adapter(folder: Path, size: float, **settings: bool) -> Path:
    """Save an adapter whose change is of about this size."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **settings)
    model = add_adapter(base(), lora, seed=0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=size)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_the_merged_model_in_float32_computes_what_the_adapter_does(tmp_path, settings):
    made, ids = adapter(tmp_path, 0.01, **settings), torch.arange(4, 20).reshape(1, -1)
    tuned, bare = load_adapter(base().float(), made)(ids).logits, base().float()(ids).logits
    model = merge(base(), made, torch.float32)
    torch.testing.assert_close(model(ids).logits, tuned, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(bare, tuned, atol=1e-3)
    write_merged(model, tmp_path / "merged")
    assert share_of_change(base(), made, tmp_path / "merged") == pytest.approx(1, abs=1e-4)


def test_rounding_loses_small_changes(tmp_path):
    made = adapter(tmp_path, 2e-5)
    shares = {}
    for dtype in (torch.float16, torch.bfloat16):
        write_merged(merge(base(), made, dtype), tmp_path / str(dtype))
        shares[dtype] = share_of_change(base(), made, tmp_path / str(dtype))
    assert 0.05 < shares[torch.bfloat16] < 0.9 < shares[torch.float16] < 1.1
    write_merged(base(), tmp_path / "bare")
    assert share_of_change(base(), made, tmp_path / "bare") == 0


def test_each_weight_is_rounded_once(tmp_path):
    made = adapter(tmp_path, 0.01)
    exact = merge(base(), made, torch.float32).state_dict()
    rounded = merge(base(), made, torch.bfloat16).state_dict()
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in exact.items())


@pytest.mark.whole
def test_a_merged_model_without_the_adapter_fails_however_little_was_trained(copied, trained, tmp_path, monkeypatch):
    path = copied / "adapter" / "adapter_model.safetensors"
    weights = {name: value * (0.05 if "lora_B" in name else 1) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    builder = builder_of(copied, trained, tmp_path / "export")
    export = exports_of(["merged_16bit"], [], builder.folder)[0]
    monkeypatch.setattr(build, "merge", lambda base, _, dtype: base.to(dtype))
    gate = builder.make(export)
    assert gate["problems"][0].startswith("weights: 16 bits hold 0.0% of what training changed, less than 10% (")
    monkeypatch.undo()
    gate = builder.make(export)
    assert gate["passed"], gate["problems"]
    assert 0.3 < gate["checks"]["share_of_change"] < 1.1


def test_a_base_of_pickles(tmp_path):
    model = base()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model = ModelConfig(id=str(tmp_path), quantization=Quantization.none)
    chosen = Config(export=ExportConfig(base=model.id))
    with pytest.raises(UserError, match=r"^export.base=.*: holds no safetensors weights, and others \(pickles\)"):
        load_base(Finished(tmp_path, {}, chosen, model, model), tmp_path)
