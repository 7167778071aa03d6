"""What is trained on what: the packs or rows, and the attention over them."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tometune.config.root import Config
from tometune.data.packing import pack
from tometune.data.tokens import Tokens
from tometune.models.attention import Packed, kernel, packed_by
from tometune.models.transformers_backend import compute_dtype
from tometune.training.curves import OnLog
from tometune.training.steps import in_packs

log = logging.getLogger(__name__)


@dataclass
class Training:
    """One training: what is trained on what, under which backend."""

    model: Any
    tokenizer: Any
    tokens: Tokens
    config: Config
    folder: Path
    on_log: OnLog
    unsloth: bool = False
    rows: Dataset = field(init=False)
    attention: str = field(init=False)
    packed: Packed = field(init=False)
    dtype: torch.dtype = field(init=False)
    """Of the arithmetic; that of the weights themselves where only an adapter is trained."""
    published: tuple[Any, Any] = (None, None)
    """Of a whole model: config and generation config as its author wrote them, to be saved with it."""

    graphed: bool = False
    """Whether passes are made as a CUDA graph (`tometune.training.graph`)."""

    def __post_init__(self) -> None:
        """Make the packs, pick the attention and say which."""
        trainer = self.config.trainer
        self.dtype = compute_dtype(self.config.model.precision) if self.whole else self.model.dtype
        self.rows = pack(self.tokens.dataset, trainer.max_length) if in_packs(trainer) else self.tokens.dataset
        wanted = self.config.model.attn_implementation
        self.attention, self.packed = ("unsloth", Packed.unsloth) if self.unsloth else (wanted, Packed.positions)
        if trainer.packing and not self.unsloth:
            self.attention, why = kernel(self.dtype, wanted)
            self.packed = packed_by(self.attention)
            log.info("attention over packs: %s (%s)", self.attention, why)

    @property
    def whole(self) -> bool:
        """Whether every weight is trained, and no adapter."""
        return not self.config.lora.enabled

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.folder / "checkpoints"
