"""This machine: whether it can hold a model, which backend trains it, and in which number format.

A run's identity contains the number format that `model.precision=auto` stands for, and a finished run must be found in
a second, so it is found without importing torch (except on machines with several kinds of GPU).
"""

import ctypes
import functools
import os
import platform
import re
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.common.hub import quickstart
from tometune.config.model import Backend, Compute, ModelConfig, Precision
from tometune.models.source import quantized

INSTALL_UNSLOTH = 'pip install "tometune[unsloth]"'

AMPERE = (8, 0)  # the first NVIDIA compute capability with bfloat16 in hardware
ADA = (8, 9)  # the first with FP8
HOPPER = 9  # the major number of H100, H200 and GH200

# Names in /proc/cpuinfo of instructions that multiply in bfloat16 (x86, x86, Arm).
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def check_machine(model: ModelConfig) -> None:
    """Raise a `UserError` if this machine has no GPU or package to load the model; nothing is downloaded."""
    import torch

    if model.attn_implementation == "flash_attention_2" and util.find_spec("flash_attn") is None:
        fix = "needs the package flash-attn; install it, or set model.attn_implementation=sdpa"
        raise UserError(f"model.attn_implementation=flash_attention_2: {fix}")
    gpu, unsloth = torch.cuda.is_available(), "model.backend=unsloth"
    if model.backend is Backend.unsloth:
        if not unsloth_installed():
            raise UserError(f"{unsloth}: needs unsloth; run: {INSTALL_UNSLOTH} (or set model.backend=transformers)")
        ours, theirs = metadata.version("unsloth"), metadata.version("unsloth_zoo")
        if ours.split(".")[:2] != theirs.split(".")[:2]:
            fix = "run: pip install --upgrade unsloth unsloth_zoo"
            raise UserError(f"{unsloth}: unsloth {ours} and unsloth_zoo {theirs} do not match; {fix}")
        if processes() > 1:
            fix = "set model.backend=transformers"
            raise UserError(f"{unsloth}: trains in one process, torchrun started several; {fix}")
    if quantized(model) and not gpu:
        raise UserError(
            f"model={model.name}: its 4-bit weights (model.quantization=nf4) need an NVIDIA GPU, none was found; on "
            f"this machine: {quickstart()}, or add model=smollm2_135m to your own"
        )
    if quantized(model) and util.find_spec("bitsandbytes") is None:
        raise UserError(
            f'model={model.name}: 4-bit weights need bitsandbytes; run: pip install "tometune[gpu]" '
            "(or take a 16-bit model and model.quantization=none)"
        )
    if model.compute is not Compute.default and (found := gpu_capability() or (0, 0)) < ADA:
        which = f"this GPU's is {found[0]}.{found[1]}" if gpu else "no GPU was found"
        raise UserError(
            f"model.compute={model.compute}: needs an NVIDIA GPU of compute capability 8.9 or more, {which}; set "
            "model.compute=default"
        )
    if model.precision is Precision.fp16 and not gpu:
        raise UserError("model.precision=fp16: needs a GPU; set model.precision=auto")


def unsloth_installed() -> bool:
    """Tell whether Unsloth is installed, without importing it."""
    return util.find_spec("unsloth") is not None and util.find_spec("unsloth_zoo") is not None


def resolve_backend(model: ModelConfig, loss_type: str = "chunked_nll") -> Backend:
    """Return the backend that trains the model.

    `auto` is unsloth on one NVIDIA GPU where it is installed, but transformers on a Hopper GPU, where it is faster
    (docs/benchmarks.md). Other GPUs were not measured. Unsloth has no DFT (`trainer.loss_type=dft`).
    """
    if model.backend is not Backend.auto:
        return model.backend
    unsloth = processes() == 1 and loss_type != "dft" and _unsloth_trains(model) and not transformers_is_faster()
    return Backend.unsloth if unsloth else Backend.transformers


def replaces_unsloth(model: ModelConfig) -> bool:
    """Whether `auto` is transformers on this machine, but was Unsloth before it was measured to be faster.

    Also with several processes, where it always was transformers: their number does not change a run's identity.
    """
    return model.backend is Backend.auto and transformers_is_faster() and _unsloth_trains(model)


def transformers_is_faster() -> bool:
    """Whether this machine's first GPU is a Hopper GPU."""
    return (gpu_capability() or (0, 0))[0] == HOPPER


def _unsloth_trains(model: ModelConfig) -> bool:
    return gpu_capability() is not None and model.compute is Compute.default and unsloth_installed()


def device_name() -> str:
    """Return the name of the GPU, or of the processor with the number of threads."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def free_memory() -> None:
    """Free GPU memory that nothing uses any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def resolve_precision(precision: Precision) -> Precision:
    """Return bf16, fp16 or fp32; `auto` is bf16 if the hardware has it, else fp16 on a GPU and fp32 on a CPU."""
    return auto_precision() if precision is Precision.auto else precision


@functools.cache
def auto_precision() -> Precision:
    """Return the precision that suits this machine."""
    capability = gpu_capability()
    if capability is not None:
        return Precision.bf16 if capability >= AMPERE else Precision.fp16
    return Precision.bf16 if cpu_has_bf16() else Precision.fp32


def gpu_capability() -> tuple[int, int] | None:
    """Return the compute capability of the first visible NVIDIA GPU; None without one, or if torch cannot use it.

    NVIDIA's library answers without importing torch. It numbers GPUs by their place on the bus, CUDA by their speed
    unless `CUDA_DEVICE_ORDER=PCI_BUS_ID`; torch is asked where that matters, because the GPUs differ.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not _torch_has_cuda() or visible in ("", "-1", "NoDevFiles"):
        return None
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None  # no driver
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return None
    if not visible.isdecimal():
        found = _capability(nvml, nvml.nvmlDeviceGetHandleByUUID, ctypes.c_char_p(visible.encode()))
        return found or _capability_for_torch()  # which also takes the beginning of a name
    by_place = nvml.nvmlDeviceGetHandleByIndex_v2
    each = [_capability(nvml, by_place, ctypes.c_uint(number)) for number in range(count.value)]
    usable = [found for found in each if found]  # the library also counts GPUs that this process may not open
    if len(set(usable)) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return _capability_for_torch()
    return usable[int(visible)] if int(visible) < len(usable) else None


def _capability_for_torch() -> tuple[int, int] | None:
    import torch

    return torch.cuda.get_device_capability(0) if torch.cuda.is_available() else None


def _capability(nvml: ctypes.CDLL, find: Any, which: Any) -> tuple[int, int] | None:
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if find(which, ctypes.byref(handle)):
        return None
    if nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)):
        return None
    return major.value, minor.value


def _torch_has_cuda() -> bool:
    """Tell whether the installed torch was built for CUDA, from its version.py."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b[^=]*= '", text, re.MULTILINE) is not None


def cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies in bfloat16; where Linux's /proc/cpuinfo is missing, torch is imported to ask."""
    if (info := Path("/proc/cpuinfo")).exists():
        return not CPU_FLAGS.isdisjoint(info.read_text(encoding="utf-8", errors="replace").split())
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in CPU_FLAGS)
