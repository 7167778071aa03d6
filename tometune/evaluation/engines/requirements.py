"""What an engine needs of the machine; asked before anything is loaded, so torch is imported late."""

from importlib import util

from tometune.common.errors import UserError
from tometune.config.eval import EngineKind

CAPABILITY = (8, 0)
"""Compute capability that torch's FlashAttention kernel needs."""


def check_engine(wanted: EngineKind, must_compile: bool = False) -> None:
    """Check that this machine has what the engine needs; with `eval.compile=true` that must be `cuda_graph`.

    Raises:
        UserError: it has not; the line names what to do.
    """
    if wanted is EngineKind.vllm and util.find_spec("vllm") is None:
        raise UserError("eval.engine=vllm: not installed; run: pip install vllm (or set eval.engine=auto)")
    if wanted is EngineKind.cuda_graph and (reason := lacking()):
        raise UserError(f"eval.engine=cuda_graph: {reason}; set eval.engine=auto or transformers")
    if must_compile and (reason := lacking()):
        raise UserError(f"eval.compile=true: {reason}; set eval.compile=auto")


def lacking() -> str | None:
    """Return what the machine lacks for `cuda_graph`, as a clause, or None."""
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "there is no NVIDIA GPU"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return f"the GPU's compute capability is {found[0]}.{found[1]}, and its kernel needs 8.0"
    return None
