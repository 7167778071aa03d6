"""A decoding step captured as a CUDA graph, with compiled parts where it has many rows; see pytorch.org/docs."""

import logging
from collections.abc import Callable

import torch

from tometune.evaluation.engines.decoder import Decoder
from tometune.evaluation.engines.fused import SmallParts

log = logging.getLogger(__name__)


def captured(run: Callable[[], None], decoder: Decoder, parts: SmallParts) -> Callable[[], None]:
    """Capture a step of idle rows, of many rows with compiled parts; where that fails, say why and do without."""
    while True:
        compiles = parts.serve(decoder.rows)
        try:
            with parts.compiled(decoder.rows):
                return _graph_of(run, decoder)
        except RuntimeError as error:
            torch.cuda.synchronize()
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            what = f"a step of {decoder.rows} rows cannot be captured"
            if not compiles:
                log.warning("cuda_graph: %s (%s); it runs kernel by kernel, slower", what, reason)
                return run
            log.warning("cuda_graph: %s with compiled parts (%s); it runs without them, slower", what, reason)
            parts.works = False


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
