import dataclasses
from pathlib import Path

import pytest
import torch

from tometune.common.errors import UserError
from tometune.config.model import LoraConfig, ModelConfig
from tometune.models.load import ADAPTER_FILES, add_adapter, load_adapter, load_model
from tometune.models.lora_rounding import RoundedOnce
from tometune.models.source import locate


def adapter(tiny_config: ModelConfig, cache: Path, seed: int) -> dict[str, torch.Tensor]:
    torch.rand(7)  # whatever was drawn before must not matter
    model = add_adapter(load_model(locate(tiny_config, cache)), LoraConfig(), seed)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def test_seeds_1_1_2_give_adapters_a_a_b(tiny_config, cache):
    one, again, other = (adapter(tiny_config, cache, seed) for seed in (1, 1, 2))
    assert len(one) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_loaded_adapter_gives_the_same_logits(tiny_config, cache, tmp_path):
    made = add_adapter(load_model(locate(tiny_config, cache)).to(torch.bfloat16), LoraConfig(), 0)
    assert {weight.dtype for weight in made.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in made.parameters() if not weight.requires_grad} == {torch.bfloat16}
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(3))
    made.save_pretrained(tmp_path)
    tokens, base = torch.tensor([[5, 6, 7, 8]]), load_model(locate(tiny_config, cache)).to(torch.bfloat16)
    before = base(tokens).logits
    loaded = load_adapter(base, tmp_path)
    for model in (made, loaded):
        assert sum(isinstance(module, RoundedOnce) for module in model.modules()) == 2 * 7
    assert torch.equal(made.eval()(tokens).logits, loaded.eval()(tokens).logits)
    assert not torch.equal(before, loaded(tokens).logits)


@pytest.mark.parametrize("lost", ADAPTER_FILES)
def test_a_folder_without_an_adapter_is_one_line(tiny_config, cache, tmp_path, lost):
    model = load_model(locate(tiny_config, cache))
    add_adapter(model, LoraConfig(), 0).save_pretrained(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(UserError, match=rf"holds no adapter \({lost} is missing\).* \(adapter_model\.bin is a pickle"):
        load_adapter(load_model(locate(tiny_config, cache)), tmp_path)


def test_a_wrong_layer_name_is_reported(tiny_config, cache):
    lora = dataclasses.replace(LoraConfig(), target_modules=["q_prj"])
    with pytest.raises(UserError, match=r"no layer is named q_prj; did you mean q_proj"):
        add_adapter(load_model(locate(tiny_config, cache)), lora, 0)
