"""What an adapter changes arrives in 16 bits; where nothing is rounded, a layer is PEFT's bit for bit."""

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import nn

from tometune.models.lora_rounding import Joined, RoundedOnce, added, round_once


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


def arrives(model: nn.Module, x: torch.Tensor, training: bool, autocast: bool = True) -> float:
    """The share of the adapter's change that is in what comes out, by regression on the exact one."""
    lora = inside(model)
    with torch.set_grad_enabled(training), torch.autocast("cpu", x.dtype, enabled=autocast):
        found = lora(x).detach().double()
    with torch.no_grad():
        weight, bias = lora.base_layer.weight.double(), lora.base_layer.bias
        before = x.double() @ weight.T + (0 if bias is None else bias.double())
        a, b = lora.lora_A["default"].weight.double(), lora.lora_B["default"].weight.double()
        change = x.double() @ a.T @ b.T * lora.scaling["default"]
        return float(((found - before) * change).sum() / (change**2).sum())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("bias", "autocast"), [(False, True), (True, False)])
def test_small_changes_arrive(training: bool, bias: bool, autocast: bool) -> None:
    model, x = layer(torch.bfloat16, bias), torch.randn(8, 1024, 64).bfloat16()
    assert arrives(model, x, training, autocast) < 0.8, "what this is for"
    round_once(model)
    assert arrives(model, x, training, autocast) == pytest.approx(1, abs=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 6e-3), (torch.float16, 6e-4)])
@pytest.mark.parametrize("how", ["training", "compiled", "answering", "captured"])
def test_a_gpu_rounds_once_too(how: str, dtype: torch.dtype, size: float) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(rows, 576, device="cuda").to(dtype) for rows in (16384, 1536))
    low, b = torch.randn(16384, 12, device="cuda").to(dtype), (torch.randn(1536, 12, device="cuda") * size).to(dtype)
    trains = how in ("training", "compiled")
    run = torch.compile(Joined.apply) if how == "compiled" else Joined.apply
    with torch.set_grad_enabled(trains):
        found = run(x, weight, low, b) if trains else added(x, weight, low.float() @ b.float().t())
        if how == "captured":
            change, captured = low.float() @ b.float().t(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                found = added(x, weight, change)
            captured.replay()
        found = found.double()
    change = low.double() @ b.double().t()
    share = ((found - x.double() @ weight.double().t()) * change).sum() / (change**2).sum()
    assert float(share) == pytest.approx(1, abs=0.03)


def test_one_product_adds_before_rounding_and_has_the_gradients_of_two() -> None:
    torch.manual_seed(0)
    x, weight, low = (torch.randn(rows, size).bfloat16() for rows, size in ((4096, 64), (96, 64), (4096, 4)))
    b = (torch.randn(96, 4) * 2e-2).bfloat16()
    change = low.double() @ b.double().t()
    before = x.double() @ weight.double().t()
    share = ((Joined.apply(x, weight, low, b).double() - before) * change).sum() / (change**2).sum()
    assert float(share) == pytest.approx(1, abs=0.03)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 8), (5, 2), (6, 2))]
    weight, aim = torch.randn(6, 8, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    x, low, b = parts
    two = torch.autograd.grad(((x @ weight.t() + low @ b.t()) * aim).sum(), parts)
    one = torch.autograd.grad((Joined.apply(x, weight, low, b) * aim).sum(), parts)  # filled up with zero columns
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_an_answer_is_computed_with_the_adapter_in_float32() -> None:
    model = layer(torch.bfloat16)
    round_once(model)
    lora, x = inside(model), torch.randn(512, 64).bfloat16()
    with torch.no_grad():
        change = lora.lora_B["default"](lora.lora_A["default"](x.float())) * lora.scaling["default"]
        assert change.dtype is torch.float32
        assert torch.equal(lora(x), torch.addmm(change.bfloat16(), x, lora.base_layer.weight.t()))


@pytest.mark.parametrize("how", ["float32", "disabled", "dora", "merged", "two", "hooked", "hooked_b", "lora_bias"])
def test_all_else_is_pefts(how: str) -> None:
    bias = {"bias": True, "lora_bias": True} if how == "lora_bias" else {}
    model = layer(torch.float32 if how == "float32" else torch.bfloat16, use_dora=how == "dora", **bias)
    lora = inside(model)
    if how == "two":
        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
        lora.set_adapter(["default", "other"])
    elif how == "disabled":
        lora.enable_adapters(False)
    elif how == "merged":
        lora.merge()
    elif how == "hooked_b":
        lora.lora_B["default"].register_forward_hook(lambda _, __, out: out * 2)
    elif how == "hooked":
        lora.base_layer.register_forward_hook(lambda _, __, out: out * 2)
    x = torch.randn(5, 64).to(lora.base_layer.weight.dtype)
    expected = Linear.forward(lora, x)
    round_once(model)
    assert type(lora) is RoundedOnce
    assert torch.equal(lora(x), expected)


def test_other_layers_stay_as_they_are() -> None:
    model = layer(torch.bfloat16, kind=type("Linear4bit", (nn.Linear,), {}))
    round_once(model)
    assert type(inside(model)) is Linear
