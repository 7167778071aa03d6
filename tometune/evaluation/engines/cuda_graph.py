"""The engine `cuda_graph`: a decoding step is captured once and replayed, on attention that reads no padding.

A step of a 3B model starts about 1,200 kernels that take microseconds each. Starting them from Python takes several
times as long as the GPU needs; a CUDA graph starts all of them at once (pytorch.org/docs, "CUDA Graphs").
"""

import logging
from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from tometune.evaluation.engines import Engine, UnsupportedError
from tometune.evaluation.engines.decoder import Choose, Decoder, slots_for
from tometune.evaluation.engines.ragged import RaggedCache, ragged_attention

log = logging.getLogger(__name__)

CHECK_EVERY = 16  # steps between two checks whether all rows have ended; each check waits for the GPU
SLOTS = 1024  # the cache grows by this many tokens


class CudaGraph(Engine):
    """Keeps one cache, and a captured step for each number of rows (a power of two)."""

    name = "cuda_graph"

    def __init__(self, model: PreTrainedModel, longest_row: int, capture: bool = True) -> None:
        """Prepare for a model in eval mode, with or without an adapter; its weights are not changed.

        `longest_row` is the maximum number of tokens of a prompt and its answer. Without `capture`, the same steps run
        without graphs, on any device.
        """
        super().__init__(model)
        self.longest_row, self.capture = longest_row, capture
        self._cache: RaggedCache | None = None
        self._decoders: dict[tuple[int, ...], Decoder] = {}
        self._steps: dict[tuple[int, ...], Callable[[], None]] = {}

    def probe(self) -> None:
        """Try a prompt and a step, without a graph.

        Raises:
            UnsupportedError: this engine cannot run the model.
        """
        try:
            with torch.no_grad(), ragged_attention(self.model):
                decoder = Decoder(self.model, self._new_cache(8), 2, 8, [0], 0)
                decoder.start([[0, 1, 0]], 1, _greedy)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            raise UnsupportedError(str(error).splitlines()[0]) from error

    def answer(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noise: Sequence[LogitsProcessor]
    ) -> list[list[int]]:
        choose = _noisy(noise[0], len(prompts)) if noise else _greedy
        with torch.no_grad(), ragged_attention(self.model):
            decoder, step = self._prepared(prompts, config, bool(noise))
            decoder.start(prompts, config.max_new_tokens, choose)
            done = 1
            while done < config.max_new_tokens:
                if done % CHECK_EVERY == 0 and bool(decoder.ended.all()):
                    break
                step()
                if noise:
                    decoder.advance(choose)
                done += 1
            new: list[list[int]] = decoder.answers[:done, : len(prompts)].T.tolist()
            return new

    def release(self) -> None:
        """Drop the cache and the graphs that use it."""
        self._steps.clear()
        self._decoders.clear()
        self._cache = None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _prepared(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noisy: bool
    ) -> tuple[Decoder, Callable[[], None]]:
        """Return a decoder that is large enough and a function that runs one step of it; both are reused."""
        need = slots_for(prompts, config.max_new_tokens)
        if self._cache is None or self._cache.slots < need:
            self.release()
            self._cache = self._new_cache(-(-need // SLOTS) * SLOTS)
        rows = 1 << (len(prompts) - 1).bit_length()
        stops, pad = config.eos_token_id, config.pad_token_id
        key = (rows, pad, *sorted(stops))
        if key not in self._decoders:
            self._decoders[key] = Decoder(self.model, self._cache, rows, self.longest_row, stops, pad)
        decoder = self._decoders[key]
        if (noisy, *key) not in self._steps:

            def run() -> None:
                decoder.forward()
                if not noisy:  # noise comes from the CPU, so such a step ends with the logits
                    decoder.advance(_greedy)

            self._steps[noisy, *key] = captured(run, decoder) if self.capture else run
        return decoder, self._steps[noisy, *key]

    def _new_cache(self, slots: int) -> RaggedCache:
        return RaggedCache(self.model.config.get_text_config().num_hidden_layers, slots)


def captured(run: Callable[[], None], decoder: Decoder) -> Callable[[], None]:
    """Capture a step of idle rows; if that fails, warn and return the step itself."""
    try:
        return _graph_of(run, decoder)
    except RuntimeError as error:
        torch.cuda.synchronize()
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        failed = f"a step of {decoder.rows} rows cannot be captured"
        log.warning("cuda_graph: %s (%s); it runs kernel by kernel, which is slower", failed, reason)
        return run


def _graph_of(run: Callable[[], None], decoder: Decoder) -> Callable[[], None]:
    """Return a function that replays a step; raises a `RuntimeError` if it cannot be captured."""
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
        torch.cuda.set_stream(current)  # a failed capture leaves its own stream active
    replay: Callable[[], None] = graph.replay
    return replay


def _greedy(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _noisy(noise: LogitsProcessor, count: int) -> Choose:
    """Return a function that adds noise to the first `count` rows, those that have prompts."""

    def choose(logits: torch.Tensor) -> torch.Tensor:
        scores = logits.float()
        scores[:count] = noise(None, scores[:count])
        return scores

    return choose
