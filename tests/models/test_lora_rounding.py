"""What an adapter changes arrives in 16 bits; where nothing is rounded, a layer is PEFT's bit for bit."""

import copy
from collections.abc import Iterator

import peft
import pytest
import torch
from packaging.version import Version
from peft.tuners.lora.layer import Linear
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tometune.common.errors import UserError
from tometune.config.model import Compute
from tometune.models import lora_rounding
from tometune.models.fp8 import Fp8Weight, fp8_products
from tometune.models.lora_rounding import Joined, JoinedLora, RoundedOnce, added, forget_inputs, round_once

CAPABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
NEEDS_ADA = pytest.mark.skipif(CAPABILITY < (8, 9), reason="needs an NVIDIA GPU with FP8")
NEEDS_2_13 = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="PyTorch 2.11 has no row scales on CPUs, 2.12 was not tried"
)


@pytest.fixture(
    params=[pytest.param("cpu", marks=NEEDS_2_13), pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_ADA])]
)
def fp8_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make tensors on a device that multiplies in FP8."""
    with torch.device(request.param):
        yield


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


def joined(x: torch.Tensor, weight: torch.Tensor, low: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return Joined.apply(x, low, b, lambda stored: stored, weight)  # type: ignore[no-any-return]


@pytest.fixture
def joining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Join columns as in training on a GPU."""
    monkeypatch.setattr(lora_rounding, "joins", lambda _: torch.is_grad_enabled())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("bias", "autocast"), [(False, True), (True, False)])
def test_small_changes_arrive(training, bias, autocast):
    model, x = layer(torch.bfloat16, bias), torch.randn(8, 1024, 64).bfloat16()
    assert arrives(model, x, training, autocast) < 0.8, "what this is for"
    round_once(model)
    assert arrives(model, x, training, autocast) == pytest.approx(1, abs=0.03)


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 6e-3), (torch.float16, 6e-4)])
@pytest.mark.parametrize("how", ["training", "compiled", "answering", "captured"])
def test_a_gpu_rounds_once_too(how, dtype, size):
    torch.manual_seed(0)
    x, weight = (torch.randn(rows, 576, device="cuda").to(dtype) for rows in (16384, 1536))
    low, b = torch.randn(16384, 12, device="cuda").to(dtype), (torch.randn(1536, 12, device="cuda") * size).to(dtype)
    trains = how in ("training", "compiled")
    run = torch.compile(joined) if how == "compiled" else joined
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


def test_one_product_adds_before_rounding_and_has_the_gradients_of_two():
    torch.manual_seed(0)
    x, weight, low = (torch.randn(rows, size).bfloat16() for rows, size in ((4096, 64), (96, 64), (4096, 4)))
    b = (torch.randn(96, 4) * 2e-2).bfloat16()
    change = low.double() @ b.double().t()
    before = x.double() @ weight.double().t()
    share = ((joined(x, weight, low, b).double() - before) * change).sum() / (change**2).sum()
    assert float(share) == pytest.approx(1, abs=0.03)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 8), (5, 2), (6, 2))]
    weight, aim = torch.randn(6, 8, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    x, low, b = parts
    two = torch.autograd.grad(((x @ weight.t() + low @ b.t()) * aim).sum(), parts)
    one = torch.autograd.grad((joined(x, weight, low, b) * aim).sum(), parts)  # filled up with zero columns
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine, theirs)


def decoder(dropout: float, bias: bool) -> peft.PeftModel:
    """A Llama of two layers in bfloat16 whose seven projections have adapters that are not zero."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = LlamaConfig(vocab_size=128, num_hidden_layers=2, attention_bias=bias, mlp_bias=bias, **sizes)
    made = peft.get_peft_model(
        LlamaForCausalLM(shape).bfloat16(),
        peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False),
    )
    for name, weight in made.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.1)
    return made


def trained(model: peft.PeftModel, autocast: bool = True) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.arange(48, device=model.device).view(2, 24) % 128
    with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        loss = model.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found | {"loss": loss.detach()}


@pytest.mark.parametrize(("dropout", "bias"), [(0.0, True), (0.2, True)])
def test_layers_with_the_same_input_share_one_product(joining, monkeypatch, dropout, bias):
    """The gradients of PEFT's layers in float32, with the same masks of dropout."""
    model = decoder(dropout, bias)
    expected = trained(copy.deepcopy(model).float(), autocast=False)
    round_once(model)
    products, apply = [], Joined.apply
    monkeypatch.setattr(Joined, "apply", lambda *given: products.append(given[0].shape) or apply(*given))
    found = trained(model)
    assert len(products) == 2 * 4, "query with key and value, output, gate with up, down"
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert float((gradient - expected[name]).norm()) < 0.1 * float(expected[name].norm()), name
    layers = [module for module in model.modules() if isinstance(module, JoinedLora)]
    assert len(layers) == 2 * 7
    assert not any(layer.siblings._outputs for layer in layers), "outputs would stay in memory"


@pytest.mark.parametrize("compute", [Compute.fp8, Compute.fp8_backward])
def test_products_in_fp8_learn_nearly_the_same(joining, fp8_device, compute):
    """The gradients are those of PEFT's layers in float32 but for the rounding to 4 significant bits.

    If the forward pass stays in 16 bits, so do the loss and what does not go through a frozen product on its way back.
    """
    model = decoder(0.0, bias=True)
    expected = trained(copy.deepcopy(model).float(), autocast=False)
    round_once(model)
    in_16_bits = trained(model)
    with fp8_products(model, compute):
        found = trained(model)
    assert all(torch.equal(gradient, in_16_bits[name]) for name, gradient in trained(model).items())
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        off = float((gradient - expected[name]).norm()) / float(expected[name].norm())
        assert off < (0.4 if compute is Compute.fp8 else 0.2), name
    same = {name for name, gradient in found.items() if torch.equal(gradient, in_16_bits[name])}
    after_the_last = {name for name in found if "layers.1.mlp.down_proj" in name}
    assert same - {"loss"} == (set() if compute is Compute.fp8 else after_the_last)
    assert compute is Compute.fp8 or "loss" in same
    loss = float(expected["loss"])
    assert float(found["loss"]) == pytest.approx(loss, rel=0.01)


@pytest.mark.parametrize("forward", [True, False])
def test_fp8_has_a_scale_for_each_row_of_a_product(fp8_device, forward):
    torch.manual_seed(0)
    x, weight = torch.randn(32, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    x[3] *= 1e4  # costs the other rows nothing
    x[5] = 0
    weight[7] *= 1e-4
    low, bs = torch.zeros(32, 16).bfloat16(), [torch.zeros(32, 8).bfloat16(), torch.zeros(16, 8).bfloat16()]
    outputs = Fp8Weight.of(weight, forward).outputs(x.requires_grad_(), low, bs, lambda stored: stored, weight)
    product = torch.cat(outputs, 1)
    found = product.detach()
    expected = x.detach().double() @ weight.double().t()
    off = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1)
    assert float(off.max()) < 0.06
    assert float((found - expected)[:, 7].norm() / expected[:, 7].norm()) < 0.06
    aim = torch.randn(32, 48).bfloat16()
    product.backward(aim)
    exact = aim.double() @ weight.double()
    assert float((x.grad - exact).norm() / exact.norm()) < 0.06


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("sizes", [[(32, 8), (16, 4)], [(48, 12)]])
def test_adapters_are_added_to_a_product_in_fp8_in_16_bits(fp8_device, sizes, forward):
    """Each layer has its own columns of `low`; the gradients are those of the adapters' products alone."""
    torch.manual_seed(0)
    stored = torch.randn(48, 64).bfloat16()
    weight = Fp8Weight.of(stored, forward)
    bs = [torch.randn(size).bfloat16().requires_grad_() for size in sizes]
    ranks = [rank for _, rank in sizes]
    low = torch.randn(256, 12).bfloat16().requires_grad_()
    x = torch.randn(256, 64).bfloat16()
    without = [x.double() @ part.t() for part in stored.double().split([len(b) for b in bs])]  # where it is exact
    if forward:
        without = weight.outputs(x, low.detach() * 0, [b.detach() for b in bs], lambda stored: stored, stored)
    outputs = weight.outputs(x, low, bs, lambda stored: stored, stored)
    aims = [torch.randn_like(output) for output in outputs]
    torch.autograd.backward(outputs, aims)
    exact = [b.detach().double().requires_grad_() for b in bs]
    lows = low.detach().double().requires_grad_()
    changes = [part @ b.t() for part, b in zip(lows.split(ranks, 1), exact, strict=True)]
    torch.autograd.backward(changes, [aim.double() for aim in aims])
    for output, before, change in zip(outputs, without, changes, strict=True):
        torch.testing.assert_close(output.double(), before.double() + change, rtol=2**-7, atol=2**-6)
    for found, expected in [(low, lows), *zip(bs, exact, strict=True)]:
        assert float((found.grad - expected.grad).norm() / expected.grad.norm()) < 0.01


def test_a_size_that_fp8_cannot_multiply_is_refused():
    model = layer(torch.bfloat16)
    round_once(model)
    inside(model).base_layer.weight.data = torch.zeros(96, 60, dtype=torch.bfloat16)
    refused = pytest.raises(UserError, match=r"model\.compute=fp8: a layer has 60 inputs and 96 outputs")
    with refused, fp8_products(model, Compute.fp8):
        pass


def test_an_interrupted_pass_is_forgotten(joining, monkeypatch):
    """Otherwise the memory of its activations is not freed."""
    model = decoder(0.0, bias=False)
    round_once(model)
    mlp = model.get_base_model().model.layers[0].mlp
    monkeypatch.setattr(mlp.act_fn, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mlp(torch.randn(2, 3, 64).bfloat16())
    assert mlp.gate_proj.siblings._outputs
    forget_inputs(model)
    assert not mlp.gate_proj.siblings._outputs
    assert mlp.gate_proj.siblings._input is None


def in_other_orders(model: peft.PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Call query, key and value in orders that transformers does not use, or some of them alone."""
    attention = model.get_base_model().model.layers[0].self_attn
    torch.manual_seed(2)
    x, names = torch.randn(2, 3, 64).bfloat16(), ("q_proj", "k_proj", "v_proj")
    for order in ((2, 1, 0), (0, 1, 2), (1,), (0, 2), (0, 0, 2, 1)):
        for name in (names[place] for place in order):
            yield name, getattr(attention, name)(x)


def test_siblings_called_in_another_order_or_alone_give_their_own_output(joining):
    model = decoder(0.0, bias=False)
    expected = dict(in_other_orders(model))
    round_once(model)
    for name, found in in_other_orders(model):
        torch.testing.assert_close(found, expected[name].to(found.dtype), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("compute", [Compute.fp8, Compute.fp8_backward])
def test_siblings_in_fp8_called_in_another_order_or_alone_give_their_own_output(joining, fp8_device, compute):
    """Those of a forward pass in 16 bits are the same as without FP8."""
    model = decoder(0.0, bias=False)
    round_once(model)
    expected = dict(in_other_orders(model))
    with fp8_products(model, compute):
        for name, found in in_other_orders(model):
            assert float((found - expected[name]).norm() / expected[name].norm()) < 0.1, name
            assert torch.equal(found, expected[name]) == (compute is Compute.fp8_backward), name


def test_an_answer_is_computed_with_the_adapter_in_float32():
    model = layer(torch.bfloat16)
    round_once(model)
    lora, x = inside(model), torch.randn(512, 64).bfloat16()
    with torch.no_grad():
        change = lora.lora_B["default"](lora.lora_A["default"](x.float())) * lora.scaling["default"]
        assert change.dtype is torch.float32
        assert torch.equal(lora(x), torch.addmm(change.bfloat16(), x, lora.base_layer.weight.t()))


@pytest.mark.parametrize("how", ["float32", "disabled", "dora", "merged", "two", "hooked", "hooked_b", "lora_bias"])
def test_all_else_is_pefts(how):
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


def test_other_layers_stay_as_they_are():
    model = layer(torch.bfloat16, kind=type("Linear4bit", (nn.Linear,), {}))
    round_once(model)
    assert type(inside(model)) is Linear
