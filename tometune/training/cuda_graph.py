"""A pass over packs as one CUDA graph (`trainer.cuda_graph`): when it is used, its capacity, and the graph itself.

A step starts thousands of kernels, and the GPU waits for Python to start them, most of all those of a small model.
`layer.compile()` compiles one layer for all and fuses the operations between matrix products; the graph starts all
kernels of a forward and backward pass at once. Speeds are in docs/benchmarks.md. See
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs and
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import nn
from torch.nn import functional

from tometune.common.distributed import by_all
from tometune.common.errors import UserError
from tometune.common.seeding import without_deterministic_kernel
from tometune.data.encoder import IGNORE
from tometune.models.packed_attention import BLOCK, FLEX, Packed, PackMask, pack_mask
from tometune.training.batches import BatchPart, Capacity, Training
from tometune.training.steps import in_packs

log = logging.getLogger(__name__)

SAMPLED_PACKS = 2048
WARM_UP = 3  # passes before the capture, in which layers are compiled and libraries choose their kernels


class GraphError(RuntimeError):
    """A pass cannot be compiled or captured, for the reason in the message."""


def can_use_graph(training: Training) -> bool:
    """Tell whether passes run as a CUDA graph; a `UserError` if `trainer.cuda_graph=true` and that is not possible."""
    model, trainer = training.model, training.inputs.trainer
    requirements = {
        # With lora=none, weights are cast to 16 bits again in every pass, which costs more than the graph saves.
        "a LoRA adapter (lora=default)": not training.full,
        "a GPU": model.device.type == "cuda",
        "model.backend=transformers": not training.unsloth,
        "trainer.packing=true with trainer.tokens_per_step": in_packs(trainer),
        "attention over lengths (16 bits, compute capability 8.0 and PyTorch 2.11)": (
            training.packed is Packed.lengths
        ),
        "model.precision=bf16, because fp16 scales its loss": training.dtype is not torch.float16,
        "trainer.loss_type=chunked_nll or nll": trainer.loss_type != "dft",
        "trainer.gradient_checkpointing=auto or false": trainer.gradient_checkpointing is not True,
        "a model whose decoder has layers": training.full or bool(layers_of(model)),
    }
    missing = [name for name, met in requirements.items() if not met]
    if trainer.cuda_graph is True and missing:
        raise UserError(f"trainer.cuda_graph=true: needs {missing[0]}; set trainer.cuda_graph=auto")
    return trainer.cuda_graph is not False and not missing


def layers_of(model: Any) -> list[nn.Module]:
    """Return the layers of the decoder; none if the model stores them elsewhere."""
    return list(getattr(model.get_base_model().get_decoder(), "layers", []))


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """Compile the decoder's layers while the body runs; scoring afterwards uses them uncompiled again."""
    layers = layers_of(model)
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("_compiled_call_impl", None)  # as before: the base model may be used again


def graph_for(training: Training, packs: int) -> "PassGraph":
    """Return a graph over so many packs, not captured yet."""
    length = training.inputs.trainer.max_length
    longest = int(pc.max(training.rows.with_format("arrow")["seq_lengths"].combine_chunks().values).as_py())
    longest = max(longest, length - 3 * (length // 4))  # the rows that measure memory have four conversations
    tokens = BLOCK * math.ceil(packs * length / BLOCK)
    mask = pack_mask(tokens, training.model.device) if training.attention == FLEX else None
    return PassGraph(training.model, tokens, longest, capacity_for(training, packs), mask)


def capacity_for(training: Training, packs: int) -> Capacity:
    """Return a capacity that is enough for nearly every batch of so many packs.

    The largest possible batch would need several times as much, and capacity costs time: kernels look at each possible
    conversation, and projecting onto the vocabulary is much of a small model's work. A larger batch takes two passes.
    """

    def bound(per_pack: np.ndarray) -> int:
        """Return mean + 3 sd of the sum over the packs (exceeded about once in 700 batches)."""
        total: float = packs * per_pack.mean() + 3 * math.sqrt(packs) * per_pack.std()
        return math.ceil(total)

    rows = training.rows.with_format("arrow")
    sample = np.linspace(0, len(rows) - 1, min(SAMPLED_PACKS, len(rows)), dtype=np.int64)
    labels = rows[sample.tolist()]["labels"].combine_chunks()
    trained = np.cumsum(np.append(0, labels.values.to_numpy() != IGNORE))[labels.offsets.to_numpy()]
    return Capacity(
        conversations=max(4 * packs, bound(np.diff(rows["seq_lengths"].combine_chunks().offsets.to_numpy()))),
        trained=max(training.inputs.trainer.max_length, 512 * math.ceil(bound(np.diff(trained)) / 512)),
    )


@contextmanager
def _graph_errors() -> Iterator[None]:
    """Turn errors of compiling, capturing, and models without `logits_to_keep` into a `GraphError`."""
    try:
        yield
    except (torch.OutOfMemoryError, GraphError):
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and without_deterministic_kernel(error):
            raise
        raise GraphError(next(iter(str(error).strip().splitlines()), type(error).__name__)) from error


class PassGraph:
    """The pass over one micro-batch, always of the same shape: shorter batches are filled with padding.

    Padding consists of conversations of its own without labels, so it changes neither the loss nor any gradient. Logits
    are computed for `Capacity.trained` tokens, among them all whose next token is trained. A batch that does not fit
    runs in parts whose gradients are added.
    """

    def __init__(
        self,
        model: Any,
        tokens: int,
        longest: int,
        capacity: Capacity,
        mask: PackMask | None = None,
        capture: bool = True,
    ) -> None:
        """Allocate the buffers for a `PeftModel` whose attention reads lengths (`tometune.models.packed_attention`).

        `longest` is the maximum length of a conversation. Without `capture` the same pass runs on any device.
        """
        self.model, self.tokens, self.longest, self.capture = model, tokens, longest, capture
        self.mask = mask
        self.capacity = Capacity(capacity.conversations, min(capacity.trained, tokens))
        long = {"dtype": torch.long, "device": model.device}
        self._ids, self._positions = torch.zeros(1, tokens, **long), torch.zeros(1, tokens, **long)
        self._next = torch.full((tokens,), IGNORE, **long)
        self._kept, self._labels = (torch.zeros(self.capacity.trained, **long) for _ in range(2))
        ends = capacity.conversations + math.ceil(tokens / longest) + 1
        self._ends = torch.zeros(ends, dtype=torch.int32, device=model.device)
        self._items = torch.ones((), dtype=torch.float32, device=model.device)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._gradients: list[torch.Tensor] = []
        self._earlier: list[torch.Tensor] = []
        self._loss = torch.zeros((), dtype=torch.float32, device=model.device)
        self._replay: Callable[[], None] | None = None
        self._loss_of = torch.compile(_summed_loss) if capture else _summed_loss

    def __call__(self, inputs: Mapping[str, Any], items: torch.Tensor | int) -> torch.Tensor:
        """Add the gradients of a batch to `grad` of the weights, and return its loss.

        The inputs are `input_ids`, `labels`, `position_ids` [1, tokens], `cu_seq_lens_q` [conversations + 1] and
        `parts`. The sum of losses is divided by `items`, the trained tokens of the whole step over all processes;
        gradients are those of this process alone.

        Raises:
            GraphError: in the first call, if the pass cannot be compiled or captured, here or in another process.
        """
        losses = []
        for part in inputs["parts"]:
            self._fill(inputs, part, items)
            (self._play if self.capture else self._pass)()
            losses.append(self._loss.clone())
        return torch.stack(losses).sum()

    def run_once(self, inputs: Mapping[str, Any], items: torch.Tensor | int) -> None:
        """Run the same pass without capturing it, to measure its peak memory."""
        self._fill(inputs, inputs["parts"][0], items)
        with _graph_errors():
            self._pass()

    def _fill(self, inputs: Mapping[str, Any], part: BatchPart, items: torch.Tensor | int) -> None:
        """Copy part of a batch and the padding into the buffers; nothing here waits for the GPU."""
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
        self._kept.copy_(trained_first[: self.capacity.trained].sort().values)
        self._labels.copy_(self._next[self._kept])
        self._ends[: len(ends)].copy_(ends)
        steps = torch.arange(1, rest + 1, dtype=torch.int32, device=ends.device)
        self._ends[len(ends) :] = (count + steps * self.longest).clamp(max=self.tokens)
        if self.mask:
            self.mask.set(self._ends)
        self._items.fill_(items) if isinstance(items, int) else self._items.copy_(items)

    def _play(self) -> None:
        """Replay the graph, capturing it the first time, and add its gradients to those of the step so far."""
        if self._replay is None:
            self._replay = by_all(self._captured)
        later = self.weights[0].grad is not None
        if later:
            self._earlier = self._earlier or [torch.empty_like(gradient) for gradient in self._gradients]
            torch._foreach_copy_(self._earlier, self._gradients)
        self._replay()
        if later:
            torch._foreach_add_(self._gradients, self._earlier)
        for weight, gradient in zip(self.weights, self._gradients, strict=True):
            weight.grad = gradient

    def _pass(self) -> None:
        base = self.model.get_base_model()
        lengths = {f"cu_seq_lens_{part}": self._ends for part in "qk"}
        longest = {f"max_length_{part}": self.longest for part in "qk"}
        inputs = {"input_ids": self._ids, "position_ids": self._positions, "logits_to_keep": self._kept}
        if self.mask:
            inputs["attention_mask"] = self.mask.blocks
        with torch.autocast(self.model.device.type, self.model.dtype, enabled=self.model.dtype is not torch.float32):
            # The forward of the class: TRL replaces that of the instance by one whose loss waits for the GPU.
            output = type(base).forward(base, **inputs, use_cache=False, **lengths, **longest)
            loss = self._loss_of(output.logits, self._labels) / self._items
        loss.backward()
        self._loss.copy_(loss.detach())

    @_graph_errors()
    def _captured(self) -> Callable[[], None]:
        """Capture the pass, which overwrites all gradients; random states are restored."""
        current, other = torch.cuda.current_stream(), torch.cuda.Stream()
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            other.wait_stream(current)
            with torch.cuda.stream(other):
                for _ in range(WARM_UP):
                    self._pass()
                    for weight in self.weights:
                        weight.grad = None
            current.wait_stream(other)
            graph = torch.cuda.CUDAGraph()
            # Threads of NCCL and of the data loader call CUDA meanwhile, which is an error in the mode "global".
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._pass()
        self._gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        for weight in self.weights:
            weight.grad = None
        if len(self._gradients) < len(self.weights):
            raise GraphError("a trained weight gets no gradient")
        log.info("CUDA graph on: each pass is one graph")
        replay: Callable[[], None] = graph.replay
        return replay


def _summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of cross-entropies of logits [1, trained, vocabulary] for the next tokens [trained]."""
    return functional.cross_entropy(logits[0].float(), labels, ignore_index=IGNORE, reduction="sum")
