"""Optimisers: the package that each needs, and the memory of its states. Imports nothing heavy."""

from importlib import util

from tometune.common.errors import UserError
from tometune.config.trainer import TrainerConfig

PACKAGES = (
    (("adamw_8bit", "adamw_bnb_8bit", "paged_", "ademamix", "lion_"), "bitsandbytes", 'pip install "tometune[gpu]"'),
    (("adamw_torch_4bit", "adamw_torch_8bit"), "torchao", "pip install torchao"),
    (("stable_adamw",), "optimi", "pip install torch-optimi"),
)
"""Prefixes of optimisers, the package that implements them, and how to install it."""

STATE_BYTES = {
    **{"adamw_8bit": 2, "adamw_bnb_8bit": 2, "ademamix_8bit": 3, "lion_8bit": 1},
    **{"adamw_torch_8bit": 2, "adamw_torch_4bit": 1},
    **{"ademamix": 12, "lion_32bit": 4, "adagrad": 4, "rmsprop": 4, "adafactor": 1, "sgd": 0},
}
"""Bytes per trained weight. AdamW, and every other optimiser, keeps two float32 numbers."""

ADAMW_BYTES = 8


def check_optimiser(trainer: TrainerConfig) -> None:
    """Raise a `UserError` unless the package behind `trainer.optim` is installed."""
    for prefixes, package, install in PACKAGES:
        if trainer.optim.startswith(prefixes) and util.find_spec(package) is None:
            raise UserError(
                f"trainer.optim={trainer.optim}: needs {package}; {install}, or set trainer.optim=adamw_torch"
            )


def state_bytes(optim: str, weights: int, embeddings: int = 0) -> int:
    """Return the bytes of an optimiser's states for so many weights, some of which are embeddings."""
    name = optim.removeprefix("paged_")  # these use GPU memory as long as there is some
    per_weight = STATE_BYTES.get(name, ADAMW_BYTES)
    # transformers gives embeddings 32-bit states in bitsandbytes.
    in_32_bits = embeddings if name.endswith("8bit") and "torch" not in name else 0
    return per_weight * (weights + 3 * in_32_bits)
