"""`model.precision=auto`: the number format for each kind of machine, and for this one."""

import dataclasses
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tometune.common.errors import UserError
from tometune.config.model import Backend, Compute, ModelConfig, Precision, Quantization
from tometune.models import machine
from tometune.models.load import compute_dtype


@pytest.fixture(autouse=True)
def forget():
    yield
    machine.auto_precision.cache_clear()


@pytest.mark.parametrize(
    ("capability", "cpu_bf16", "dtype"),
    [
        ((9, 0), False, torch.bfloat16),
        ((8, 0), False, torch.bfloat16),
        ((7, 5), True, torch.float16),  # a GPU decides, whatever the CPU can do
        (None, True, torch.bfloat16),
        (None, False, torch.float32),
    ],
)
def test_auto_depends_on_the_device(monkeypatch, caplog, capability, cpu_bf16, dtype):
    monkeypatch.setattr(machine, "gpu_capability", lambda: capability)
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: cpu_bf16)
    machine.auto_precision.cache_clear()
    with caplog.at_level(logging.INFO, "tometune"):
        assert compute_dtype(Precision.auto) is dtype
    assert ("model.precision is fp16" in caplog.text) == (dtype is torch.float16)
    set_ = [compute_dtype(precision) for precision in (Precision.bf16, Precision.fp16, Precision.fp32)]
    assert set_ == [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize(
    ("capability", "installed", "processes", "compute", "backend"),
    [
        ((7, 5), True, 1, "default", "unsloth"),
        ((8, 9), True, 1, "default", "unsloth"),
        ((8, 9), True, 1, "fp8", "transformers"),
        ((8, 9), True, 1, "fp8_backward", "transformers"),
        ((8, 0), True, 2, "default", "transformers"),
        ((8, 0), False, 1, "default", "transformers"),
        ((9, 0), True, 1, "default", "transformers"),  # where it was measured to be faster
        (None, True, 1, "default", "transformers"),
    ],
)
def test_auto_chooses_the_backend_that_suits_the_gpu(monkeypatch, capability, installed, processes, compute, backend):
    monkeypatch.setattr(machine, "gpu_capability", lambda: capability)
    monkeypatch.setattr(machine, "unsloth_installed", lambda: installed)
    monkeypatch.setattr(machine, "processes", lambda: processes)
    model = dataclasses.replace(ModelConfig(), compute=Compute[compute])
    assert machine.resolve_backend(model) == backend
    assert machine.resolve_backend(model, "dft") == "transformers"
    assert machine.resolve_backend(dataclasses.replace(model, backend=Backend.unsloth)) == "unsloth"


def test_this_machine_as_torch_sees_it():
    capabilities = torch.cpu.get_capabilities()
    assert machine.cpu_has_bf16() == any(capabilities.get(name, False) for name in machine.CPU_FLAGS)
    assert machine.gpu_capability() == (torch.cuda.get_device_capability() if torch.cuda.is_available() else None)


def nvml(capabilities: list[tuple[int, int] | None]) -> SimpleNamespace:
    """NVIDIA's library on a machine with GPUs of these capabilities, in the order of their places; None: not ours."""

    def count(found: Any) -> int:
        found._obj.value = len(capabilities)
        return 0

    def by_index(number: Any, handle: Any) -> int:
        handle._obj.value = number.value + 1
        return int(capabilities[number.value] is None)

    def by_name(name: Any, handle: Any) -> int:
        place = name.value.decode().removeprefix("GPU-")
        handle._obj.value = int(place or 0) + 1
        return int(not place)

    def capability(handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = capabilities[handle.value - 1]
        return 0

    return SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetCount_v2=count,
        nvmlDeviceGetHandleByIndex_v2=by_index,
        nvmlDeviceGetHandleByUUID=by_name,
        nvmlDeviceGetCudaComputeCapability=capability,
    )


OLD, NEW = (6, 1), (8, 9)


@pytest.mark.parametrize(
    ("capabilities", "environment", "expected"),
    [
        ([NEW], {}, NEW),
        ([NEW, NEW], {"CUDA_VISIBLE_DEVICES": "1"}, NEW),
        ([NEW], {"CUDA_VISIBLE_DEVICES": "1"}, None),
        ([NEW], {"CUDA_VISIBLE_DEVICES": ""}, None),
        ([], {}, None),
        ([OLD, NEW], {}, NEW),  # CUDA's first GPU is the fastest
        ([OLD, NEW], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, OLD),
        ([OLD, NEW], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,0"}, NEW),
        ([OLD, NEW], {"CUDA_VISIBLE_DEVICES": "GPU-0"}, OLD),
        ([OLD, OLD], {"CUDA_VISIBLE_DEVICES": "GPU-"}, NEW),  # not a whole name, so torch is asked
        ([None, None, OLD], {}, OLD),
        ([None, OLD, OLD], {"CUDA_VISIBLE_DEVICES": "1"}, OLD),
        ([None], {}, None),
    ],
)
def test_the_gpu_is_the_one_that_torch_uses(monkeypatch, capabilities, environment, expected):
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "_torch_has_cuda", lambda: True)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: nvml(capabilities))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: NEW)
    assert machine.gpu_capability() == expected


@pytest.mark.parametrize("fails", ["nvmlInit_v2", "nvmlDeviceGetCount_v2"])
def test_a_driver_that_does_not_answer_is_no_gpu(monkeypatch, fails):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_torch_has_cuda", lambda: True)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace(**{**vars(nvml([NEW])), fails: lambda *_: 1}))
    assert machine.gpu_capability() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quantization": Quantization.none}, "need an NVIDIA GPU"),  # the id's weights are stored in 4 bits
        ({"id": "x", "quantization": Quantization.none, "precision": Precision.fp16}, "model.precision=fp16"),
    ],
)
def test_what_the_machine_lacks_is_one_line(changes, says):
    with pytest.raises(UserError, match=says) as error:
        machine.check_machine(dataclasses.replace(ModelConfig(), **changes))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
