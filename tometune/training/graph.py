"""Whether passes over packs are made as one CUDA graph (`trainer.cuda_graph`), and what such a graph has room for."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import nn

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.data.labels import IGNORE
from tometune.models.attention import Packed
from tometune.models.source import quantized
from tometune.training.parts import Fits
from tometune.training.pass_graph import PassGraph
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
        "model.precision=bf16, since fp16 scales its loss": training.dtype is torch.float16,
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


def graph_for(training: Training, packs: int) -> PassGraph:
    """Return the pass over so many packs as a graph that is yet to be captured."""
    length = training.config.trainer.max_length
    _, longest = _conversations(training)
    longest = max(longest, length - 3 * (length // 4))  # a pack that measures memory has four conversations
    return PassGraph(training.model, packs * length, longest, fits_of(training, packs))


def fits_of(training: Training, packs: int) -> Fits:
    """Return what a pass over so many packs has room for: nearly every batch of this data."""
    counts, _ = _conversations(training)
    trained = 512 * math.ceil(_enough(_labels(training), packs) / 512)
    return Fits(max(4 * packs, _enough(counts, packs)), max(training.config.trainer.max_length, trained))


def _enough(counts: np.ndarray, packs: int) -> int:
    """Return what so many packs hold of something, but for about one time in seven hundred.

    Their sum is about normal, and seldom more than three deviations above its mean. The most that there can be would be
    several times as much, and room costs time: kernels look at each conversation that could be there, and the
    vocabulary is much of a small model's work. What does not fit costs a second pass.
    """
    enough: float = packs * counts.mean() + 3 * math.sqrt(packs) * counts.std()
    return math.ceil(enough)


def _conversations(training: Training) -> tuple[np.ndarray, int]:
    """Return how many conversations each pack has, and the tokens of the longest."""
    lengths = training.rows.with_format("arrow")["seq_lengths"].combine_chunks()
    return np.diff(lengths.offsets.to_numpy()), int(pc.max(lengths.values).as_py())


def _labels(training: Training) -> np.ndarray:
    """Return how many tokens with a label packs have, in a sample."""
    sample = np.linspace(0, len(training.rows) - 1, min(SAMPLED, len(training.rows)), dtype=np.int64)
    labels = training.rows.with_format("arrow")[sample.tolist()]["labels"].combine_chunks()
    trained = np.cumsum(np.append(0, labels.values.to_numpy() != IGNORE))
    return np.diff(trained[labels.offsets.to_numpy()])


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
