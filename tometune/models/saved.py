"""Where a run stores its trained weights: `adapter/`, or `model/` with `lora=none`. Imports nothing heavy."""

from dataclasses import replace
from pathlib import Path

from tometune.config.model import ModelConfig, Quantization, Weights

ADAPTER = "adapter"
WHOLE = "model"
"""The folder of a whole model, in Hugging Face's format, with its tokenizer."""


def as_saved(model: ModelConfig, run: Path) -> ModelConfig:
    """Return the config of the whole model that the run in a folder trained; it is loaded like any other."""
    folder = str((run / WHOLE).absolute())
    return replace(model, id=folder, revision="main", weights=Weights.pretrained, quantization=Quantization.none)
