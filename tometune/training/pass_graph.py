"""A pass over packs as one CUDA graph: layers compiled, forward and backward captured once, then played back.

A step of a small model starts thousands of kernels of a few microseconds each, and the GPU waits for Python to start
them. `layer.compile()` makes one compilation serve all layers and fuses what lies between the matrix products; the
graph starts all kernels of a pass at once. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs and
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html; the figures are in docs/benchmarks.md.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from tometune.data.labels import IGNORE
from tometune.training.parts import Fits, Part

log = logging.getLogger(__name__)

WARM_UP = 3
"""Passes before the capture: they compile, and let libraries choose their kernels."""


class GraphError(RuntimeError):
    """A pass cannot be compiled or captured here; says why."""


@contextmanager
def _failing_as_graph() -> Iterator[None]:
    """Turn what compiling, capturing and a model without `logits_to_keep` raise into a `GraphError`.

    A GPU that is full stays one.
    """
    try:
        yield
    except (torch.OutOfMemoryError, GraphError):
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise GraphError(next(iter(str(error).strip().splitlines()), type(error).__name__)) from error


class PassGraph:
    """The pass over one micro-batch, always of the same shape: what is missing in a batch is filled with padding.

    Padding is conversations of their own without labels, so it changes neither the loss nor any gradient. Logits are
    computed where a next token is trained, and of as many others as that leaves room for. A batch that does not fit is
    made in parts, whose gradients are added.
    """

    def __init__(self, model: Any, tokens: int, longest: int, fits: Fits, capture: bool = True) -> None:
        """Make the buffers.

        Args:
            model: a `PeftModel` whose attention reads lengths (`tometune.models.attention`).
            tokens: of one pass.
            longest: tokens of a conversation, at most.
            fits: what it has room for, but for padding.
            capture: False runs the same pass without graph, on any device.
        """
        self.model, self.tokens, self.longest, self.capture = model, tokens, longest, capture
        self.fits = Fits(fits.conversations, min(fits.trained, tokens))
        long = {"dtype": torch.long, "device": model.device}
        self._ids, self._positions = torch.zeros(1, tokens, **long), torch.zeros(1, tokens, **long)
        self._next = torch.full((tokens,), IGNORE, **long)
        self._kept, self._labels = (torch.zeros(self.fits.trained, **long) for _ in range(2))
        ends = fits.conversations + math.ceil(tokens / longest) + 1
        self._ends = torch.zeros(ends, dtype=torch.int32, device=model.device)
        self._items = torch.ones((), device=model.device)
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._gradients: list[torch.Tensor] = []
        self._earlier: list[torch.Tensor] = []
        self._loss = torch.zeros((), device=model.device)
        self._replay: Callable[[], None] | None = None
        self._summed = torch.compile(_summed) if capture else _summed

    def __call__(self, inputs: Mapping[str, Any], items: torch.Tensor | int) -> torch.Tensor:
        """Add the gradients of a batch to the weights' `grad`, and return its loss.

        Args:
            inputs: `input_ids`, `labels`, `position_ids` [1, tokens], `cu_seq_lens_q` [conversations + 1], and `parts`.
            items: trained tokens of the whole step, by which the sum of losses is divided.

        Raises:
            GraphError: the first time, where the pass cannot be compiled or captured.
        """
        losses = []
        for part in inputs["parts"]:
            self._fill(inputs, part, items)
            (self._play if self.capture else self._pass)()
            losses.append(self._loss.clone())
        return torch.stack(losses).sum()

    def once(self, inputs: Mapping[str, Any], items: torch.Tensor | int) -> None:
        """Make the same pass without capturing it: what it leaves is the memory's peak.

        Raises:
            torch.OutOfMemoryError: the GPU ran out.
            GraphError: the pass cannot be compiled.
        """
        self._fill(inputs, inputs["parts"][0], items)
        with _failing_as_graph():
            self._pass()

    def _fill(self, inputs: Mapping[str, Any], part: Part, items: torch.Tensor | int) -> None:
        """Copy part of a batch into the buffers, and padding behind it; nothing here waits for the GPU."""
        ids, positions, labels = (inputs[name][:, part.tokens] for name in ("input_ids", "position_ids", "labels"))
        ends = inputs["cu_seq_lens_q"][part.ends] - part.tokens.start
        count, rest = ids.shape[1], len(self._ends) - len(ends)
        self._ids[:, :count].copy_(ids)
        self._ids[:, count:] = 0
        self._positions[:, :count].copy_(positions)
        self._positions[:, count:] = torch.arange(self.tokens - count, device=ids.device) % self.longest
        self._next[: count - 1].copy_(labels[0, 1:])
        self._next[count - 1 :] = IGNORE
        trained_first = (self._next == IGNORE).to(torch.int8).argsort(stable=True)
        self._kept.copy_(trained_first[: self.fits.trained].sort().values)
        self._labels.copy_(self._next[self._kept])
        self._ends[: len(ends)].copy_(ends)
        steps = torch.arange(1, rest + 1, dtype=torch.int32, device=ends.device)
        self._ends[len(ends) :] = (count + steps * self.longest).clamp(max=self.tokens)
        self._items.fill_(items) if isinstance(items, int) else self._items.copy_(items)

    def _play(self) -> None:
        """Play the graph back, which is captured the first time, and add its gradients to those of the step so far."""
        if self._replay is None:
            with _failing_as_graph():
                self._replay = self._captured()
        later = self._weights[0].grad is not None
        if later:
            self._earlier = self._earlier or [torch.empty_like(gradient) for gradient in self._gradients]
            torch._foreach_copy_(self._earlier, self._gradients)
        self._replay()
        if later:
            torch._foreach_add_(self._gradients, self._earlier)
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient

    def _pass(self) -> None:
        """Make a forward and a backward pass over the buffers."""
        base = self.model.get_base_model()
        lengths = {f"cu_seq_lens_{part}": self._ends for part in "qk"}
        longest = {f"max_length_{part}": self.longest for part in "qk"}
        what = {"input_ids": self._ids, "position_ids": self._positions, "logits_to_keep": self._kept}
        with torch.autocast(self.model.device.type, self.model.dtype, enabled=self.model.dtype is not torch.float32):
            # The class's own forward: TRL puts another in the instance, whose loss waits for the GPU.
            found = type(base).forward(base, **what, use_cache=False, **lengths, **longest)
            loss = self._summed(found.logits, self._labels) / self._items
        loss.backward()
        self._loss.copy_(loss.detach())

    def _captured(self) -> Callable[[], None]:
        """Capture the pass, which writes all gradients anew; the generators are left as they were."""
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self._pass()
                    for weight in self._weights:
                        weight.grad = None
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._pass()
        self._gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        for weight in self._weights:
            weight.grad = None
        if len(self._gradients) < len(self._weights):
            raise GraphError("a trained weight gets no gradient")
        log.info("a pass is one CUDA graph (trainer.cuda_graph)")
        replay: Callable[[], None] = graph.replay
        return replay


def _summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of cross-entropies; logits [1, trained, vocabulary] and the tokens they foretell [trained]."""
    return functional.cross_entropy(logits[0].float(), labels, ignore_index=IGNORE, reduction="sum")
