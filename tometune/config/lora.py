"""Schema of the `lora` group: the LoRA adapter (Hu et al. 2021, arXiv:2106.09685), or full fine-tuning."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tometune.config.validators import SINCE_DEFAULT, at_least


@dataclass
class LoraConfig:
    """Arguments of `peft.LoraConfig`, with the same names, and whether there is an adapter at all."""

    enabled: bool = field(default=True, metadata=SINCE_DEFAULT)
    """Whether an adapter is trained; false trains every weight and ignores the rest of this group."""

    r: int = 16
    """Rank of the update matrices."""

    lora_alpha: int = 16
    """The update is scaled by `lora_alpha / r` (by `lora_alpha / sqrt(r)` with `use_rslora`)."""

    lora_dropout: float = 0.0
    """Dropout on the adapter's input, 0 to 1."""

    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Names of the linear layers that get an adapter."""

    use_rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732)."""

    use_dora: bool = False
    """Weight-decomposed adapters (Liu et al. 2024, arXiv:2402.09353); slower."""


def lora_problems(lora: LoraConfig) -> Iterator[str]:
    """Yield the problems of the `lora` group."""
    yield from at_least(1, {"lora.r": lora.r, "lora.lora_alpha": lora.lora_alpha})
    if not 0 <= lora.lora_dropout < 1:
        yield f"lora.lora_dropout={lora.lora_dropout}: not from 0 to below 1"
    if not lora.target_modules:
        yield "lora.target_modules: empty; name the layers that get an adapter, e.g. [q_proj,v_proj]"
