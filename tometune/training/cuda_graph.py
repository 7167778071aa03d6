"""The pass over packs as one CUDA graph."""

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

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.data.labels import IGNORE
from tometune.models.packed_attention import Packed
from tometune.models.source import quantized
from tometune.training.batches import Fits, Part, Training
from tometune.training.steps import in_packs

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
            model: a `PeftModel` whose attention reads lengths (`tometune.models.packed_attention`).
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
