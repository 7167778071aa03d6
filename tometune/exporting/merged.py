"""The export `merged_16bit`: one model in 16 bits, for everything that reads Hugging Face's format."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from tometune.common.errors import UserError
from tometune.config.model import ModelConfig
from tometune.models.adapter import load_adapter
from tometune.models.load import load_model
from tometune.models.source import locate
from tometune.runs.finished import Finished

SHAPE = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings"),
)
"""What a base in 16 bits has in common with its 4-bit copy."""

SHARD = "5GB"
"""Largest file of weights: an upload that is broken off goes on with the file it was at."""


def load_base(model: ModelConfig, cache: Path, named: bool) -> Any:
    """Load the base that is merged into; `named` where the user did so by `export.base`.

    Raises:
        UserError: it cannot be had, or holds no safetensors.
    """
    with naming_base(named):
        return load_model(locate(model, cache))


@contextmanager
def naming_base(named: bool) -> Iterator[None]:
    """Let an error about a model say `export.base`, where the user named it there."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("model.id=", "export.base=", 1) if named else str(error)) from error


def check_shape(base: Any, trained: Any, finished: Finished) -> None:
    """Check that a base in 16 bits is of the shape of the one that was trained on.

    Args:
        base: config of the one in 16 bits.
        trained: config of the one that was trained on.
        finished: the run.

    Raises:
        UserError: it is another model.
    """
    for name in SHAPE:
        ours, theirs = getattr(trained, name, None), getattr(base, name, None)
        if ours != theirs:
            raise UserError(
                f"export.base={finished.base.id}: not the model that was trained on, {finished.model.id}: {name} is "
                f"{theirs}, not {ours}; name the same model in 16 bits"
            )


def merge(base: Any, adapter: Path, dtype: torch.dtype) -> Any:
    """Return the base with the adapter added into its weights, in 16 bits.

    Each layer is added up in float32 and rounded once; PEFT's `merge_and_unload` would round the difference first.

    Args:
        base: a causal language model, not quantised; it is changed.
        adapter: folder of the adapter.
        dtype: of the result.

    Raises:
        UserError: the adapter is for another base.
    """
    model = load_adapter(base, adapter)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge"):
                weight = layer.get_base_layer().weight
                weight.data = weight.data.float()
                layer.merge(safe_merge=True)  # type: ignore[operator]
                weight.data = weight.data.to(dtype)
    return model.base_model.unload().to(dtype)


def sixteen_bits(dtype: torch.dtype | None) -> torch.dtype:
    """Return the type a base is published in where that has 16 bits, else bfloat16, which keeps float32's range."""
    return torch.float16 if dtype is torch.float16 else torch.bfloat16


def write_merged(model: Any, folder: Path) -> None:
    """Save the model's weights and config."""
    model.config.dtype = model.dtype
    model.save_pretrained(folder, max_shard_size=SHARD)
