"""What an optimiser needs: its package, and memory for its states."""

from importlib import util
from typing import Any

from torch import nn

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.config.trainer import TrainerConfig

BITSANDBYTES = ("adamw_8bit", "adamw_bnb_8bit", "paged_", "ademamix", "lion_")
"""Beginnings of the optimisers that bitsandbytes makes."""

TORCHAO = ("adamw_torch_4bit", "adamw_torch_8bit")


def check_optimiser(trainer: TrainerConfig) -> None:
    """Check that the library behind `trainer.optim` is installed.

    Raises:
        UserError: it is not.
    """
    for beginnings, package, how in (
        (BITSANDBYTES, "bitsandbytes", 'pip install "tometune[gpu]"'),
        (TORCHAO, "torchao", "pip install torchao"),
        (("stable_adamw",), "optimi", "pip install torch-optimi"),
    ):
        if trainer.optim.startswith(beginnings) and util.find_spec(package) is None:
            raise UserError(f"trainer.optim={trainer.optim}: needs {package}; {how}, or set trainer.optim=adamw_torch")


STATES = {
    **{"adamw_8bit": 2, "adamw_bnb_8bit": 2, "ademamix_8bit": 3, "lion_8bit": 1},
    **{"ademamix": 12, "ademamix_32bit": 12, "lion_32bit": 4, "adafactor": 1, "sgd": 0},
}
"""Bytes a weight; AdamW, and what is not named here, has two numbers in float32."""

ADAMW = 8
IN_BETWEEN = 4
"""Bytes a weight that AdamW takes while it makes its step, for all weights at once (PyTorch's `foreach`)."""


def trainable(model: Any) -> int:
    """Return the number of weights that are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def embedded(model: Any) -> int:
    """Return how many of the trained weights are embeddings."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(table.numel() for table in tables if table.requires_grad)


def state_bytes(optim: str, weights: int, embeddings: int = 0) -> int:
    """Return the bytes that an optimiser keeps for so many weights.

    Args:
        optim: its name in transformers; `paged_` ones lie in the same memory while there is room.
        weights: that are trained.
        embeddings: among them; transformers has 8-bit optimisers keep these in 32 bits.
    """
    name = optim.removeprefix("paged_")
    each = STATES.get(name, ADAMW)
    return each * weights + (3 * each * embeddings if name.endswith("8bit") else 0)


def with_optimiser(peak: int, held: int, optim: str, weights: int, embeddings: int = 0) -> int:
    """Return the peak of a training in bytes: in a pass, or where the optimiser makes its step.

    Args:
        peak: of a forward and a backward pass.
        held: after it: the weights and their gradients.
        optim: the optimiser's name in transformers.
        weights: that are trained.
        embeddings: among them.
    """
    copies = 4 * weights if processes() > 1 else 0  # gradients once more, in the buckets that are sent
    between = IN_BETWEEN * weights if optim == "adamw_torch" else 0
    return max(peak, held + between) + copies + state_bytes(optim, weights, embeddings)
