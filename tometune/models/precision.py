"""The number format that `model.precision=auto` stands for on this machine, found without importing torch.

A run's identity contains it, and a finished run must be found in a second, so torch cannot be asked here.
"""

import ctypes
import functools
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from tometune.config.model import Precision

AMPERE = (8, 0)
"""The first NVIDIA compute capability with bfloat16 in hardware."""

CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names in /proc/cpuinfo of instructions that multiply in bfloat16 (x86, x86, Arm)."""


def resolve_precision(precision: Precision) -> Precision:
    """Return bf16, fp16 or fp32; `auto` is bf16 if the hardware has it, else fp16 on a GPU and fp32 on a CPU."""
    return auto_precision() if precision is Precision.auto else precision


@functools.cache
def auto_precision() -> Precision:
    """Return the precision that suits this machine."""
    if _torch_built_for("hip"):  # AMD's GPUs have no such query without torch
        import torch

        return Precision.bf16 if torch.cuda.is_available() or cpu_has_bf16() else Precision.fp32
    capability = gpu_capability()
    if capability is not None:
        return Precision.bf16 if capability >= AMPERE else Precision.fp16
    return Precision.bf16 if cpu_has_bf16() else Precision.fp32


def gpu_capability() -> tuple[int, int] | None:
    """Return the compute capability of the first visible NVIDIA GPU; None without one, or if torch cannot use it."""
    if not _torch_built_for("cuda"):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible in ("", "-1", "NoDevFiles"):
        return None
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None  # no driver
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    by_index = visible.isdecimal()
    find = nvml.nvmlDeviceGetHandleByIndex_v2 if by_index else nvml.nvmlDeviceGetHandleByUUID
    name = ctypes.c_uint(int(visible)) if by_index else ctypes.c_char_p(visible.encode())
    if nvml.nvmlInit_v2() or find(name, ctypes.byref(handle)):
        return None
    if nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)):
        return None
    return major.value, minor.value


def _torch_built_for(platform: str) -> bool:
    """Tell whether the installed torch was built for `cuda` or `hip`, from its version.py."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    return re.search(rf"^{platform}\b[^=]*= '", text, re.MULTILINE) is not None


def cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies in bfloat16; where Linux's /proc/cpuinfo is missing, torch is imported to ask."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        return not CPU_FLAGS.isdisjoint(info.read_text(encoding="utf-8", errors="replace").split())
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in CPU_FLAGS)
