"""The engine `cuda_graph`: a decoding step is captured once and replayed, on attention that reads no padding.

A step of a 3B model starts about 1,200 kernels that take microseconds each. Starting them from Python takes several
times as long as the GPU needs; a CUDA graph starts all of them at once (pytorch.org/docs, "CUDA Graphs").
"""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from tometune.evaluation.engines.base import UnsupportedError
from tometune.evaluation.engines.capture import captured
from tometune.evaluation.engines.decoder import Choose, Decoder, slots_for
from tometune.evaluation.engines.fused import SmallParts
from tometune.evaluation.engines.ragged import RaggedCache, ragged_attention

LOOK_EVERY = 16
"""Steps between two looks at whether all rows have ended: each look waits for the GPU."""

SLOTS = 1024
"""The cache grows by this many tokens."""


class CudaGraph:
    """Keeps one cache, and a captured step for each number of rows (a power of two)."""

    name = "cuda_graph"

    def __init__(self, model: PreTrainedModel, longest_row: int, capture: bool = True, compiles: bool = False) -> None:
        """Take a causal language model, with or without an adapter, as it is.

        Args:
            model: in eval mode whenever this engine answers.
            longest_row: tokens of a prompt and its answer, at most.
            capture: False runs the same steps without graphs, on any device.
            compiles: whether parts of the model are compiled for many rows.
        """
        self.model, self.longest_row, self.capture = model, longest_row, capture
        self._parts = SmallParts(model, compiles)
        self._cache: RaggedCache | None = None
        self._decoders: dict[tuple[int, ...], Decoder] = {}
        self._steps: dict[tuple[int, ...], Callable[[], None]] = {}

    def kind(self, rows: int) -> str:
        """Return the name, and whether so many rows use compiled parts; see `Engine`."""
        return f"{self.name}, compiled" if self._parts.serve(_slots(rows)) else self.name

    def probe(self) -> None:
        """Try a step and a prompt, without a graph.

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
        """Generate for one batch; see `Engine`."""
        choose = _noisy(noise[0], len(prompts)) if noise else _greedy
        with torch.no_grad(), ragged_attention(self.model):
            decoder, step = self._prepared(prompts, config, bool(noise))
            with self._parts.compiled(decoder.rows):
                decoder.start(prompts, config.max_new_tokens, choose)
            done = 1
            while done < config.max_new_tokens:
                if done % LOOK_EVERY == 0 and bool(decoder.ended.all()):
                    break
                step()
                if noise:
                    decoder.advance(choose)
                done += 1
            new: list[list[int]] = decoder.answers[:done, : len(prompts)].T.tolist()
            return new

    def release(self) -> None:
        """Drop the cache and the graphs over it."""
        self._steps.clear()
        self._decoders.clear()
        self._cache = None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _prepared(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noisy: bool
    ) -> tuple[Decoder, Callable[[], None]]:
        """Return a decoder that is large enough and what runs a step of it, new ones if need be.

        With noise, which comes from the CPU, a step goes only as far as the logits.
        """
        need = slots_for(prompts, config.max_new_tokens)
        if self._cache is None or self._cache.slots < need:
            self.release()
            self._cache = self._new_cache(-(-need // SLOTS) * SLOTS)
        rows = _slots(len(prompts))
        key = (rows, config.pad_token_id, *sorted(config.eos_token_id))
        if key not in self._decoders:
            stops, pad = config.eos_token_id, config.pad_token_id
            self._decoders[key] = Decoder(self.model, self._cache, rows, self.longest_row, stops, pad)
        decoder = self._decoders[key]
        if (noisy, *key) not in self._steps:

            def run() -> None:
                decoder.forward()
                if not noisy:
                    decoder.advance(_greedy)

            self._steps[noisy, *key] = captured(run, decoder, self._parts) if self.capture else run
        return decoder, self._steps[noisy, *key]

    def _new_cache(self, slots: int) -> RaggedCache:
        """Return an empty cache for this model."""
        return RaggedCache(self.model.config.get_text_config().num_hidden_layers, slots)


def _slots(rows: int) -> int:
    """Return the power of two that so many rows are answered in."""
    return 1 << (rows - 1).bit_length()


def _greedy(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits as they are."""
    return logits


def _noisy(noise: LogitsProcessor, count: int) -> Choose:
    """Return a function that adds noise to the first `count` rows, those that have prompts."""

    def choose(logits: torch.Tensor) -> torch.Tensor:
        scores = logits.float()
        scores[:count] = noise(None, scores[:count])
        return scores

    return choose
