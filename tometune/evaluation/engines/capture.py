"""A decoding step captured as a CUDA graph, with compiled parts where it has many rows; see pytorch.org/docs."""

import logging
from collections.abc import Callable

import torch

from tometune.evaluation.engines.decoder import Decoder
from tometune.evaluation.engines.fused import fused

log = logging.getLogger(__name__)

FUSED_ROWS = 64
"""From so many rows on there are enough answers to earn the seconds that compiling takes."""


def captured(run: Callable[[], None], decoder: Decoder) -> Callable[[], None]:
    """Capture a step of idle rows, of many rows with compiled parts; where that fails, say why and do without."""
    if decoder.rows >= FUSED_ROWS:
        try:
            with fused(decoder.model):
                return _graph_of(run, decoder)
        except RuntimeError as error:
            _after(error, decoder, "with compiled parts", "it runs without, slower")
    try:
        return _graph_of(run, decoder)
    except RuntimeError as error:
        _after(error, decoder, "as a graph", "it runs kernel by kernel, slower")
        return run


def _graph_of(run: Callable[[], None], decoder: Decoder) -> Callable[[], None]:
    """Return what plays a step back.

    Raises:
        RuntimeError: it cannot be captured, or a part not compiled.
    """
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):  # libraries allocate their workspaces now, not in the graph
            for _ in range(2):
                decoder.idle()
                run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a tracker's threads may use the GPU
            run()
    finally:
        torch.cuda.set_stream(current)  # a broken capture leaves its own behind
    replay: Callable[[], None] = graph.replay
    return replay


def _after(error: RuntimeError, decoder: Decoder, how: str, instead: str) -> None:
    """Clean up and say what does not work; a GPU that is full stays an error."""
    torch.cuda.synchronize()
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    log.warning("cuda_graph: a step of %d rows cannot be captured %s (%s); %s", decoder.rows, how, reason, instead)
