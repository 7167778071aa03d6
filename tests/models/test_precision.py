"""`model.precision`: the dtype for each kind of machine, and for this one."""

import logging
import platform
import sys
from pathlib import Path

import pytest
import torch

from tometune.config.model import Precision
from tometune.models.transformers_backend import compute_dtype

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""How Linux calls what multiplies in bfloat16, in /proc/cpuinfo."""


@pytest.mark.parametrize(
    ("gpu", "gpu_bf16", "cpu", "dtype"),
    [
        (True, True, {}, torch.bfloat16),
        (True, False, {"amx_bf16": True}, torch.float16),  # the GPU decides where there is one
        (False, False, {"avx512_bf16": True}, torch.bfloat16),
        (False, False, {"amx_bf16": True}, torch.bfloat16),
        (False, False, {"bf16": True}, torch.bfloat16),
        (False, False, {"avx512_bf16": False, "avx512": True}, torch.float32),
        (False, False, {}, torch.float32),
    ],
)
def test_auto_by_what_the_device_can(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, gpu_bf16: bool, cpu: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: gpu_bf16 or including_emulation)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: cpu)
    assert compute_dtype(Precision.auto) is dtype
    assert compute_dtype(Precision.bf16) is torch.bfloat16
    assert compute_dtype(Precision.fp16) is torch.float16
    assert compute_dtype(Precision.fp32) is torch.float32


def test_fp16_in_place_of_bf16_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: including_emulation)
    with caplog.at_level(logging.INFO, "tometune"):
        compute_dtype(Precision.auto)
    assert "model.precision is fp16" in caplog.text


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="reads x86's /proc/cpuinfo")
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about the CPU")
def test_auto_on_this_cpu() -> None:
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert compute_dtype(Precision.auto) is (torch.bfloat16 if flags & BF16_FLAGS else torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="is about the GPU")
def test_auto_on_this_gpu() -> None:
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert compute_dtype(Precision.auto) is (torch.bfloat16 if native else torch.float16)
