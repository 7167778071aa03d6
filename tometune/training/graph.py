"""A pass over packs as one CUDA graph: layers compiled, forward and backward captured once, then played back.

A step of a small model starts thousands of kernels of a few microseconds each, and the GPU waits for Python to start
them. `layer.compile()` makes one compilation serve all layers and fuses what lies between the matrix products; the
graph starts all kernels of a pass at once. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs and
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html; the figures are in docs/benchmarks.md.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow.compute as pc
import torch
from torch import nn
from torch.nn import functional

from tometune.config.errors import UserError
from tometune.distributed import processes
from tometune.models.attention import Packed
from tometune.models.load import quantized
from tometune.training.steps import in_packs
from tometune.training.subject import Training

log = logging.getLogger(__name__)

WARM_UP = 3
"""Passes before the capture: they compile, and let libraries choose their kernels."""


AN_ADAPTER = "an adapter (lora=default), since weights that are trained are cast anew in each pass"
"""What it lacks where every weight is trained."""

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


class GraphError(RuntimeError):
    """A pass cannot be compiled or captured here; says why."""


@contextmanager
def _failing_as_graph() -> Iterator[None]:
    """Turn what compiling and capturing raise into a `GraphError`; a GPU that is full stays one."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise GraphError(next(iter(str(error).strip().splitlines()), type(error).__name__)) from error


class PassGraph:
    """The pass over one micro-batch, always of the same shape: what is missing in a batch is filled with padding.

    Padding is a conversation of its own without labels, so it changes neither the loss nor any gradient.
    """

    def __init__(self, model: Any, packs: int, max_length: int, conversations: int, capture: bool = True) -> None:
        """Make the buffers.

        Args:
            model: a `PeftModel` whose attention reads lengths (`tometune.models.attention`).
            packs: of one pass.
            max_length: tokens of a pack.
            conversations: in so many packs, at most.
            capture: False runs the same pass without graph, on any device.
        """
        self.model, self.max_length, self.capture = model, max_length, capture
        total, ends = packs * max_length, conversations + packs + 1
        self.tokens = total
        long = {"dtype": torch.long, "device": model.device}
        self._ids, self._positions = torch.zeros(1, total, **long), torch.zeros(1, total, **long)
        self._labels = torch.full((1, total), -100, **long)
        self._ends = torch.zeros(ends, dtype=torch.int32, device=model.device)
        self._items = torch.ones((), device=model.device)
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._gradients: list[torch.Tensor] = []
        self._loss = torch.zeros((), device=model.device)
        self._run: Callable[[], None] | None = None
        self._summed = torch.compile(_summed) if capture else _summed

    def __call__(self, inputs: Mapping[str, Any], items: torch.Tensor | int) -> torch.Tensor:
        """Add the gradients of a batch to the weights' `grad`, and return its loss.

        Args:
            inputs: `input_ids`, `labels`, `position_ids` [1, tokens] and `cu_seq_lens_q` [conversations + 1].
            items: trained tokens of the whole step, by which the sum of losses is divided.

        Raises:
            GraphError: the first time, where the pass cannot be compiled or captured.
        """
        self._fill(inputs, items)
        if self._run is None:
            self._gradients = [torch.zeros_like(weight) for weight in self._weights]
            with _failing_as_graph():
                self._run = self._captured() if self.capture else self._pass
        if self._weights[0].grad is None:  # the first pass of a step
            torch._foreach_zero_(self._gradients)
            for weight, gradient in zip(self._weights, self._gradients, strict=True):
                weight.grad = gradient
        self._run()
        return self._loss.clone()

    def once(self, inputs: Mapping[str, Any], items: torch.Tensor | int) -> None:
        """Make the same pass without capturing it: what it leaves is the memory's peak.

        Raises:
            torch.OutOfMemoryError: the GPU ran out.
            GraphError: the pass cannot be compiled.
        """
        self._fill(inputs, items)
        with _failing_as_graph():
            self._pass()

    def _fill(self, inputs: Mapping[str, Any], items: torch.Tensor | int) -> None:
        """Copy a batch into the buffers, and padding behind it; nothing here waits for the GPU."""
        count, ends = inputs["input_ids"].shape[1], inputs["cu_seq_lens_q"]
        total, rest = self._ids.shape[1], len(self._ends) - len(ends)
        self._ids[:, :count].copy_(inputs["input_ids"])
        self._positions[:, :count].copy_(inputs["position_ids"])
        self._labels[:, :count].copy_(inputs["labels"])
        self._ids[:, count:] = 0
        self._labels[:, count:] = -100
        self._positions[:, count:] = torch.arange(total - count, device=self._ids.device) % self.max_length
        self._ends[: len(ends)].copy_(ends)
        steps = torch.arange(1, rest + 1, dtype=torch.int32, device=self._ends.device)
        self._ends[len(ends) :] = (count + steps * self.max_length).clamp(max=total)
        self._items.fill_(items) if isinstance(items, int) else self._items.copy_(items)

    def _pass(self) -> None:
        """Make a forward and a backward pass over the buffers."""
        base = self.model.get_base_model()
        lengths = {f"cu_seq_lens_{part}": self._ends for part in "qk"}
        longest = {f"max_length_{part}": self.max_length for part in "qk"}
        with torch.autocast(self.model.device.type, self.model.dtype, enabled=self.model.dtype is not torch.float32):
            # The class's own forward: TRL puts another in the instance, whose loss waits for the GPU.
            found = type(base).forward(
                base, input_ids=self._ids, position_ids=self._positions, use_cache=False, **lengths, **longest
            )
            loss = self._summed(found.logits, self._labels) / self._items
        loss.backward()
        self._loss.copy_(loss.detach())

    def _captured(self) -> Callable[[], None]:
        """Capture the pass; the generators are left as they were."""
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self._pass()
                    for weight in self._weights:
                        weight.grad = None
            current.wait_stream(aside)
            for weight, gradient in zip(self._weights, self._gradients, strict=True):
                weight.grad = gradient  # the captured pass adds to these
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._pass()
        for weight in self._weights:
            weight.grad = None
        log.info("a pass is one CUDA graph (trainer.cuda_graph)")
        replay: Callable[[], None] = graph.replay
        return replay


def _summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of the cross-entropies of the next tokens; logits [1, tokens, vocabulary], labels [1, tokens]."""
    return functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100, reduction="sum")
