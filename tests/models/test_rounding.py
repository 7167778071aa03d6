"""What an adapter changes arrives in 16 bits; where nothing is rounded, a layer is PEFT's bit for bit."""

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import nn

from tometune.models.rounding import RoundedOnce, round_once


def layer(dtype: torch.dtype, bias: bool = False, kind: type[nn.Linear] = nn.Linear, **lora: object) -> nn.Module:
    """A linear layer of 64 to 96 with an adapter that changes what comes out by about a thousandth."""
    torch.manual_seed(0)
    model = nn.Sequential(kind(64, 96, bias=bias)).to(dtype)
    made = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"], **lora))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1e-4)
    return made


def inside(model: nn.Module) -> Linear:
    """The LoRA layer."""
    (found,) = (module for module in model.modules() if isinstance(module, Linear))
    return found


def arrives(model: nn.Module, x: torch.Tensor) -> float:
    """The share of the adapter's change that is in what comes out, by regression on the exact one."""
    lora = inside(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=x.dtype is torch.bfloat16):
        found = lora(x).double()
        weight, bias = lora.base_layer.weight.double(), lora.base_layer.bias
        before = x.double() @ weight.T + (0 if bias is None else bias.double())
        a, b = lora.lora_A["default"].weight.double(), lora.lora_B["default"].weight.double()
        change = x.double() @ a.T @ b.T * lora.scaling["default"]
        return float(((found - before) * change).sum() / (change**2).sum())


@pytest.mark.parametrize("bias", [False, True])
def test_small_changes_arrive(bias: bool) -> None:
    model = layer(torch.bfloat16, bias)
    x = torch.randn(8, 1024, 64).bfloat16()
    assert arrives(model, x) < 0.8, "what this is for"
    round_once(model)
    assert arrives(model, x) == pytest.approx(1, abs=0.03)


def test_gradients_are_those_of_float32() -> None:
    found = {}
    x = torch.randn(2, 256, 64).bfloat16()
    for dtype in (torch.float32, torch.bfloat16):
        model = layer(dtype)
        round_once(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = model(x.to(dtype))
        out.float().pow(2).mean().backward()
        found[dtype] = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(found[torch.float32]) == 2
    for name, expected in found[torch.float32].items():
        assert (found[torch.bfloat16][name] - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("how", ["float32", "disabled", "dora", "merged", "two"])
def test_all_else_is_pefts(how: str) -> None:
    model = layer(torch.float32 if how == "float32" else torch.bfloat16, use_dora=how == "dora")
    lora = inside(model)
    if how == "two":
        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
        lora.set_adapter(["default", "other"])
    elif how == "disabled":
        lora.enable_adapters(False)
    elif how == "merged":
        lora.merge()
    x = torch.randn(5, 64).to(lora.base_layer.weight.dtype)
    expected = Linear.forward(lora, x)
    round_once(model)
    assert type(lora) is RoundedOnce
    assert torch.equal(lora(x), expected)


def test_other_layers_stay_as_they_are() -> None:
    model = layer(torch.bfloat16, kind=type("Linear4bit", (nn.Linear,), {}))
    round_once(model)
    assert type(inside(model)) is Linear
