"""Schema of the `lora` group: the low-rank adapter (Hu et al. 2021, arXiv:2106.09685)."""

from dataclasses import dataclass, field


@dataclass
class LoraConfig:
    """Arguments of `peft.LoraConfig`, by the same names."""

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
