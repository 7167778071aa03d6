"""Schema of the `export` group, and validation of export's top-level options."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tometune.config.model import Precision
from tometune.config.validators import at_least, checked, folder, one_of

FORMATS = ("adapter", "merged_16bit", "gguf")  # formats of an export
QUANTS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m")
"""Weight types of a GGUF, by llama.cpp's names; the first two are not quantised."""

FROM_4_BITS = "from_4_bits"
"""Limit on how far an adapter on its 16-bit base is from the same adapter on the 4-bit base it was trained on."""


@dataclass
class ExportConfig:
    """How a run's model is exported, and how far exports may differ from it."""

    base: str | None = None
    """The base in 16 bits that an adapter of a 4-bit base is merged into: hub id or local folder; null finds it."""
    base_revision: str = "main"
    """Branch, tag or commit of `export.base` on the hub."""
    folder: str | None = field(default=None, metadata=checked(folder))
    """Folder of the exports; null is `export/` in the run's folder."""
    dtype: Precision = Precision.auto
    """Type of the merged model's weights: `fp16`, `bf16` or `fp32`; `auto` is fp16 if its range allows, else fp32."""
    examples: int = field(default=50, metadata=at_least(1))
    """Examples of the run's own evaluation whose answers are compared, or all if there are fewer."""
    min_share: float = field(default=0.1, metadata=at_least(0))
    """Smallest share of the change made by training that the weights of an export may hold after rounding."""
    max_divergence: dict[str, float] = field(default_factory=dict, metadata=at_least(0))
    """Largest mean KL divergence in nats per token, by format or quant (values: conf/export/default.yaml)."""
    max_rouge_change: dict[str, float] = field(default_factory=dict, metadata=at_least(0))
    """Largest change of mean ROUGE-L (0 to 1), up or down, by format or quant (values: conf/export/default.yaml)."""


def listed(value: Any) -> list[str]:
    """Return one word or a list of words from the command line as a list without duplicates."""
    words = value if isinstance(value, list | tuple) else [value]
    return list(dict.fromkeys(str(word) for word in words))


def export_problems(formats: Any, quants: Any, push_to: str | None, config: ExportConfig) -> Iterator[str]:
    """Yield the problems of `format`, `quant`, `push_to` and the `export` group."""
    for key, value, valid in (("format", formats, FORMATS), ("quant", quants, QUANTS)):
        if not listed(value):
            yield f"{key}: empty; name one or more of {', '.join(valid)}"
        yield from filter(None, (one_of(valid)(key, word) for word in listed(value)))
    if push_to is not None and not re.fullmatch(r"[\w.-]+/[\w.-]{1,90}", push_to):
        yield f"push_to={push_to}: not the id of a repository; write push_to=user/name"
    limited = one_of((*FORMATS[:2], *QUANTS, FROM_4_BITS))
    for name in ("max_divergence", "max_rouge_change"):
        yield from filter(None, (limited(f"export.{name}", word) for word in vars(config)[name]))
