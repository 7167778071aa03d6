"""Whether passes over packs are made as one CUDA graph (`trainer.cuda_graph`), and what such a graph has room for."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
from torch import nn

from tometune.config.errors import UserError
from tometune.distributed import processes
from tometune.models.attention import Packed
from tometune.models.load import quantized
from tometune.training.pass_graph import IGNORED
from tometune.training.steps import in_packs
from tometune.training.subject import Training

log = logging.getLogger(__name__)

AN_ADAPTER = "an adapter (lora=default), since weights that are trained are cast anew in each pass"
"""What it lacks where every weight is trained."""

SAMPLED = 2048
"""Packs that are looked at."""

SMALL = 1e9
"""Parameters below which `auto` takes the graph: in larger models a kernel takes longer than its start."""


def graphed(training: Training) -> bool:
    """Tell whether passes are made as a graph, by `trainer.cuda_graph`.

    Raises:
        UserError: it is set, and cannot be.
    """
    config, model = training.config, training.model
    wanted = config.trainer.cuda_graph
    lacks = {
        AN_ADAPTER: training.whole,
        "a GPU": model.device.type != "cuda",
        "model.backend=transformers": training.unsloth,
        "trainer.packing=true with trainer.tokens_per_step": not in_packs(config.trainer),
        "an attention over lengths (16 bits, compute capability 8.0 and PyTorch 2.11)": (
            training.packed is not Packed.lengths
        ),
        "one process": processes() > 1,
        "trainer.gradient_checkpointing=auto or false": config.trainer.gradient_checkpointing is True,
        "model.quantization=none": quantized(config.model),
        "a model whose decoder has layers": not training.whole and not layers_of(model),
    }
    missing = [need for need, lacking in lacks.items() if lacking]
    if wanted is True and missing:
        raise UserError(f"trainer.cuda_graph=true: needs {missing[0]}; set trainer.cuda_graph=auto")
    if wanted == "auto" and missing == [AN_ADAPTER]:
        log.info("trainer.cuda_graph=auto: kernel by kernel, for a graph needs %s", AN_ADAPTER)
    return not missing and (wanted is True or (wanted == "auto" and model.num_parameters() < SMALL))


def most_conversations(training: Training, packs: int) -> int:
    """Return how many conversations so many packs can hold at most."""
    counts = pc.list_value_length(training.rows.with_format("arrow")["seq_lengths"].combine_chunks()).to_numpy()
    return max(4 * packs, int(sum(sorted(counts)[-packs:])))  # a pack that measures memory has four


def trained_tokens(training: Training, packs: int) -> int:
    """Return how many tokens with a label so many packs hold, but for one time in ten thousand; a multiple of 512.

    The logits of the other tokens are not needed, and where a model is small its vocabulary is most of the work. A
    sample of the packs tells: their sum is about normal, and lies below four deviations above its mean.
    """
    sample = np.linspace(0, len(training.rows) - 1, min(SAMPLED, len(training.rows)), dtype=np.int64)
    labels = training.rows.with_format("arrow")[sample.tolist()]["labels"].combine_chunks()
    trained = np.cumsum(np.append(0, labels.values.to_numpy() != IGNORED))
    counts = np.diff(trained[labels.offsets.to_numpy()])
    enough = float(packs * counts.mean() + 4 * math.sqrt(packs) * counts.std())
    return min(packs * training.config.trainer.max_length, 512 * math.ceil((enough + 1) / 512))


def layers_of(model: Any) -> list[nn.Module]:
    """Return the decoder's layers, which are all of one kind; none where the model keeps them elsewhere."""
    return list(getattr(model.get_base_model().get_decoder(), "layers", []))


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """Run the decoder's layers compiled while the body runs; what scores the model later meets them as they were."""
    layers = layers_of(model)
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
