"""What an optimiser needs installed, found before anything slow is done; imports nothing heavy."""

from importlib import util

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
