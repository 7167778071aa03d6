"""What a training is made of. It can be pickled for another process, and nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tometune.config.model import LoraConfig
from tometune.config.root import SeedsConfig
from tometune.config.trainer import TrainerConfig
from tometune.models.source import ModelSource

if TYPE_CHECKING:
    from tometune.data.tokens import Tokens


@dataclass(frozen=True)
class TrainingInputs:
    """The base model, the rows with labels, and settings; `seeds.adapter` is for the initial weights and dropout."""

    source: ModelSource
    tokens: "Tokens"
    trainer: TrainerConfig
    lora: LoraConfig
    seeds: SeedsConfig
    folder: Path
    """Run folder, absolute; gets `checkpoints/`, `metrics.jsonl`, and `adapter/` or `model/`."""

    cache: Path
    """Remembers which micro-batch fits this GPU."""
