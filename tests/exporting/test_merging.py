"""An adapter merged in float32, tensor by tensor, and rounded once; float16 where its range allows."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.data.chatml import chatml_tokenizer
from tests.fixtures.llama import tiny_llama
from tometune.common.errors import UserError
from tometune.config.model import LoraConfig, Precision
from tometune.exporting import merging
from tometune.exporting.gate import change_held, lost_change
from tometune.exporting.merging import Checkpoint, Merged, largest_activation, resolve_dtype, write_checkpoint
from tometune.models.load import add_adapter, load_adapter


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


def merge(tmp_path: Path, made: Path) -> Merged:
    base().save_pretrained(tmp_path / "base")
    return Merged(tmp_path / "base", made)


def held(found: Merged, files: Checkpoint) -> dict:
    tensors = (Checkpoint(found.folder), found, files)
    return change_held(found, *(one.read for one in tensors))


def written(found: Merged, folder: Path, dtype: torch.dtype) -> dict:
    folder.mkdir()
    write_checkpoint(found, AutoConfig.from_pretrained(found.folder), folder, dtype)
    return held(found, Checkpoint(folder))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_the_merged_model_in_float32_computes_what_the_adapter_does(tmp_path, settings):
    made, ids = adapter(tmp_path, 0.01, **settings), torch.arange(4, 20).reshape(1, -1)
    tuned, bare = load_adapter(base().float(), made)(ids).logits, base().float()(ids).logits
    change = written(merge(tmp_path, made), tmp_path / "merged", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype is torch.float32
    torch.testing.assert_close(model(ids).logits, tuned, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(bare, tuned, atol=1e-3)
    assert (change["share"], change["relative_error"], change["layers"]) == (1, 0, 4)


def test_each_weight_is_rounded_once_and_float16_loses_the_least_of_small_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "SHARD", "50KB")
    found = merge(tmp_path, adapter(tmp_path, 2e-5))
    changes = {kind: written(found, tmp_path / str(kind), kind) for kind in (torch.float16, torch.bfloat16)}
    for kind in changes:
        files = Checkpoint(tmp_path / str(kind))
        assert files.keys() == found.keys()
        assert all(torch.equal(files[name], found[name].to(kind)) for name in files)
    assert len([*(tmp_path / "torch.float16").glob("*.safetensors")]) > 1
    small, large = changes[torch.bfloat16], changes[torch.float16]
    assert 0.05 < small["share"] < 0.9 < large["share"] < 1.1
    assert small["relative_error"] > 1.5 * large["relative_error"]
    bare = held(found, Checkpoint(tmp_path / "base"))
    assert (bare["share"], bare["relative_error"]) == (0, 1)


def test_an_adapter_for_another_shape(tmp_path):
    other = tiny_llama(chatml_tokenizer(), seed=1, intermediate_size=48).bfloat16()
    other.save_pretrained(tmp_path / "other")
    found = Merged(tmp_path / "other", adapter(tmp_path, 0.01))
    with pytest.raises(
        UserError, match=r"^model.layers.0.mlp.down_proj.weight: has another shape in this base, \[\d+, 48"
    ):
        found["model.layers.0.mlp.down_proj.weight"]


def test_float16_only_where_its_range_allows(caplog):
    weights = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[3.0]])}
    assert resolve_dtype(Precision.auto, weights, 1000.0) is torch.float16
    assert resolve_dtype(Precision.bf16, weights, 1000.0) is torch.bfloat16
    assert resolve_dtype(Precision.fp32, weights, 1000.0) is torch.float32
    assert resolve_dtype(Precision.auto, weights, 40_000.0) is torch.float32
    assert "a weight of 3 or an activation of 4e+04 is too near the end of float16" in caplog.text
    assert resolve_dtype(Precision.fp16, weights, 40_000.0) is torch.float16, "as asked for: it can be stored"
    weights["a"][1] = -1e5
    assert resolve_dtype(Precision.auto, weights, 1000.0) is torch.float32
    with pytest.raises(UserError, match=r"^export.dtype=fp16: a weight is 1e\+05, beyond float16 \(65504\); leave it"):
        resolve_dtype(Precision.fp16, weights, 1000.0)


def test_the_largest_activation_is_found_inside_the_model():
    model, ids = tiny_llama(chatml_tokenizer(), seed=1), torch.arange(4, 20).reshape(1, -1)
    with torch.no_grad():
        with largest_activation(model) as usual:
            logits = model(ids).logits
        assert usual[0] >= float(logits.abs().max())
        model.model.layers[0].mlp.up_proj.weight.mul_(1e6)  # what `down_proj` reads, which its own scale hides
        model.model.layers[0].mlp.down_proj.weight.mul_(1e-6)
        with largest_activation(model) as hidden:
            torch.testing.assert_close(model(ids).logits, logits, atol=1e-3, rtol=1e-3)
    assert hidden[0] > 1000 * usual[0]
    assert not [one for one in model.modules() if one._forward_hooks]


def test_the_type_of_the_files_of_a_base(tmp_path):
    model = base()
    model.save_pretrained(tmp_path / "one", max_shard_size="20KB")
    found = Checkpoint(tmp_path / "one")
    assert found.dtype == "BF16"
    assert {path.name for path in found.paths} == {path.name for path in (tmp_path / "one").glob("*.safetensors*")}
    assert len(found.paths) > 2
    model.model.norm.float()
    model.save_pretrained(tmp_path / "two")
    assert Checkpoint(tmp_path / "two").dtype == "BF16 F32"


def test_the_share_of_a_known_change():
    base_ = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.ones(1)}
    exact = base_ | {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([2.0, 1.0])}
    held = base_ | {"a": torch.tensor([3.0, 0.0]), "c": torch.zeros(1)}
    change = change_held(exact, base_.get, exact.get, held.get)
    assert change == {
        "share": round(9 / 26, 5),  # (9 + 0) of |change|², 25 + 1
        "relative_error": round((17 / 26) ** 0.5, 5),  # errors of 4 and 1
        "layers": 2,
        "worst_layer": {"name": "b", "share": 0, "relative_error": 1},
        "zeroed": 2,  # the second weight of a, and that of c
    }
    assert change_held(exact, exact.get, exact.get, held.get) is None
    assert lost_change(change, 0.3) == []
    assert lost_change(change, 0.4)[0].startswith("weights: the file holds 34.6% of what training changed, less than 4")
    assert lost_change({"share": float("nan")}, 0)
