"""The gate: each export is loaded by the engine its users will use and compared with the tuned model.

The tuned model is the base with the run's adapter, or the whole model of `lora=none`. Imports torch only to compare
weights.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tometune.config.export import FROM_4_BITS, ExportConfig
from tometune.evaluation.metrics import score
from tometune.evaluation.statistics import paired_difference

if TYPE_CHECKING:
    from torch import Tensor

RESAMPLES = 2_000  # of the examples, for the interval of a change

Check = tuple[dict[str, Any], list[str]]  # measurements, and the problems they show, each in one line
Conversation = list[dict[str, str]]
Tokens = list[int]


@dataclass(frozen=True)
class Example:
    """An example that the run was scored on, with the answer that was scored."""

    ids: Tokens
    max_new_tokens: int
    references: list[str]
    prediction: str


@dataclass(frozen=True)
class Reference:
    """The behaviour of the tuned model."""

    conversations: list[Conversation]  # the fixed ones that its chat template accepts
    prompts: list[Tokens]  # of each conversation up to where the answer begins, from the run's own tokenizer
    answers: list[Tokens]  # to each prompt: greedy, with their end of turn; at least one token
    log_probabilities: list[np.ndarray]  # of each answer: float32 [answer tokens, vocabulary]
    examples: list[Example]
    base: str  # `as trained`, or `16-bit base` for an adapter that was trained on a base in 4 bits
    dtype: str  # in which it computed
    texts: list[str] = field(default_factory=list)  # answers to the examples in that dtype; none for the adapter
    activation: float = 0.0  # the largest absolute value that one of its layers reads or returns
    tuned: str = "the adapter"  # name of the tuned model in messages
    from_4_bits: float | None = None
    """Mean KL(adapter as trained || adapter on the 16-bit base) in nats per token; None if they are the same, or the
    former cannot be loaded here."""
    generation: dict[str, Any] = field(default_factory=dict)
    """The base's generation config, ending turns where the chat template does."""


class GateError(RuntimeError):
    """An export behaves differently from the tuned model."""


class Engine(Protocol):
    """An export, loaded by the library or program that its users will use; `name` is that with its version."""

    name: str

    def render(self, conversations: Sequence[Conversation]) -> list[Tokens]:
        """Return the tokens of each conversation up to the answer, by the export's own template and tokenizer."""

    def log_probabilities(self, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[np.ndarray]:
        """Return float32 [answer tokens, vocabulary] for each answer to its prompt."""

    def answer(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[str]:
        """Return greedy answers of up to so many tokens."""


def compare(engine: Engine, kind: str, reference: Reference, bos: int | None, limits: ExportConfig) -> Check:
    """Compare an export with the tuned model; the checks after one that fails are skipped.

    A wrong template makes other prompts, and wrong logits other answers: only the first failure explains the rest.
    `kind` selects the limits: the export's format, or its quant. `bos` is the tokenizer's begin-of-text token, if any.
    """
    checks: dict[str, Any] = {}
    checks["template"], problems = _template(engine, reference, bos)
    if not problems:
        checks["logits"], problems = _logits(engine, kind, reference, limits)
    if problems:
        return checks, problems
    if kind == "adapter" and checks["logits"]["identical"]:
        # The same model, to the bit: answering again would only measure the rounding of other batches, and take 90 %
        # of the time.
        checks["rouge"] = {"examples": len(reference.examples), "stored": True}
    else:
        checks["rouge"], problems = _rouge(engine, kind, reference, limits)
    return checks, problems


def lost_change(change: dict[str, Any], limit: float) -> list[str]:
    """Return the problem of a file that holds less than this share of the change; see `change_held`."""
    if change["share"] >= limit:  # false for nan, too
        return []
    fix = f"{limit:.0%} (export.min_share); export format=adapter, or train longer"
    return [f"weights: the file holds {change['share']:.1%} of what training changed, less than {fix}"]


def _template(engine: Engine, reference: Reference, bos: int | None) -> Check:
    problems = []
    rendered = engine.render(reference.conversations)
    for messages, ids, found in zip(reference.conversations, reference.prompts, rendered, strict=True):
        if found != ids:
            same = [a == b for a, b in zip(found, ids, strict=False)]
            problems.append(
                f"template: {messages[-1]['content'][:30]!r} becomes {len(found)} tokens instead of {len(ids)}; "
                f"they differ from token {[*same, False].index(False) + 1} on"
            )
        elif bos is not None and found[:2] == [bos, bos]:
            problems.append("template: two begin-of-text tokens at the start")
    return {"conversations": len(rendered), "equal": len(rendered) - len(problems)}, problems[:3]


def _logits(engine: Engine, kind: str, reference: Reference, limits: ExportConfig) -> Check:
    """Compare the probabilities of each next token of the tuned model's answers."""
    own, found = reference.log_probabilities, engine.log_probabilities(reference.prompts, reference.answers)
    values = divergence(own, found)
    mean, limit = float(values.mean()), limits.max_divergence[kind]
    shift, most = reference.from_4_bits, limits.max_divergence.get(FROM_4_BITS, 0.0)
    checks = {
        "tokens": len(values),
        "identical": all(map(np.array_equal, own, found)),
        "mean_divergence": round(mean, 7),
        "max_divergence": round(float(values.max()), 7),
        "limit": limit,
    }
    if shift is not None:
        checks["from_4_bits"] = round(shift, 7)
        if not shift <= most:
            return checks, [
                f"logits: the adapter on the 16-bit base differs from the adapter as trained by {shift:.4g} nats per "
                f"token, more than {most} (export.max_divergence.{FROM_4_BITS}); is export.base the right model?"
            ]
    if mean <= limit:  # false for nan, too
        return checks, []
    differs = f"differ from {reference.tuned} by {mean:.4g} nats per token, more than {limit}"
    return checks, [f"logits: {differs} (export.max_divergence.{kind})"]


def divergence(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Return KL(first || second) in nats per row; log-probabilities [rows, vocabulary], of which one may be padded."""
    found = []
    for p, q in zip(first, second, strict=True):
        width = min(p.shape[1], q.shape[1])
        found.append((np.exp(p[:, :width]) * (p[:, :width] - q[:, :width])).sum(axis=-1, dtype=np.float64))
    return np.concatenate(found)


def _rouge(engine: Engine, kind: str, reference: Reference, limits: ExportConfig) -> Check:
    """Score the export's answers to the run's own examples in the same way as the run was scored.

    They are counted as the same if they equal the tuned model's in the same arithmetic. The answers that were scored
    were generated in the run's own, often bfloat16, where even the adapter itself does not repeat all of them.
    An export fails if the 95 % interval of the change lies beyond the limit as a whole: with few examples, one other
    answer moves the mean further than that.
    """
    examples = reference.examples
    answers = engine.answer([one.ids for one in examples], [one.max_new_tokens for one in examples])
    stored, references = [one.prediction for one in examples], [one.references for one in examples]
    columns = [score(["rouge"], texts, references) for texts in (stored, answers)]
    before, after = ({name: round(fmean(values), 4) for name, values in found.items()} for found in columns)
    change = paired_difference([columns[0]["rougeL"]], [columns[1]["rougeL"]], RESAMPLES, 0.95)
    low, high = change.low, change.high
    count, limit = len(answers), limits.max_rouge_change[kind]
    equal, scored = (sum(map(str.__eq__, texts, answers)) for texts in (reference.texts or stored, stored))
    checks = {"examples": count, "same_answers": equal, "same_as_scored": scored, "adapter": before, "export": after}
    checks |= {"limit": limit, "interval": [low, high]}
    if low is None or high is None or (low <= limit and high >= -limit):
        return checks, []
    return checks, [
        f"rouge: ROUGE-L is {after['rougeL']:.3f} on {count} examples and {before['rougeL']:.3f} for "
        f"{reference.tuned}, a change of {low:+.3f} to {high:+.3f}, beyond {limit} (export.max_rouge_change.{kind})"
    ]


Read = Callable[[str], "Tensor"]  # returns a tensor by its name, in float32


def change_held(
    names: Iterable[str], base: Read, exact: Read, written: Read, device: str = "cpu"
) -> dict[str, Any] | None:
    """Return how much of the exact change, exact − base, the written weights hold; None if nothing was changed.

    - `share`: the projection of written − base onto the exact change, over all changed tensors: 1 if nothing was lost,
      0 for the bare base. Errors of rounding that have nothing to do with the change average out.
    - `relative_error`: the norm of what differs from the exact change, by the norm of that; errors count in full.
    - `worst_layer`: the same of the tensor with the smallest share.
    - `zeroed`: weights of all tensors that are 0 in the file only, e.g. below the smallest number of its type.
    """
    import torch

    layers, zeroed = {}, 0
    for name in names:
        before, after, found = (read(name).to(device) for read in (base, exact, written))
        zeroed += int(torch.count_nonzero((found == 0) & (after != 0)))
        if torch.equal(before, after):
            continue
        change, error = after - before, found - after
        pairs = (change, change), (error, change), (error, error)
        square, held, wrong = (float((one * other).sum(-1).sum(dtype=torch.float64)) for one, other in pairs)
        if square:
            layers[name] = square, square + held, wrong
    if not layers:
        return None

    def shares(square: float, held: float, error: float) -> dict[str, float]:
        return {"share": round(float(held / square), 5), "relative_error": round(float(np.sqrt(error / square)), 5)}

    worst = min(layers, key=lambda name: layers[name][1] / layers[name][0])
    total = shares(*(sum(column) for column in zip(*layers.values(), strict=True)))
    return total | {"layers": len(layers), "worst_layer": {"name": worst, **shares(*layers[worst])}, "zeroed": zeroed}
