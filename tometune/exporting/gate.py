"""The gate: each export is loaded by the engine its users will use and compared with the tuned model.

The tuned model is the base with the run's adapter, or the whole model of `lora=none`. Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from tometune.config.export import FROM_4_BITS, ExportConfig
from tometune.evaluation.metrics import score

Conversation = list[dict[str, str]]

NEW_TOKENS = 24
"""Longest answer to a fixed conversation; its tokens are those that logits are compared on."""


TEXTS = (
    "What is the capital of France?",
    "What does this function return?\n\n```python\ndef f(x, y=2):\n    return x ** y  # power\n```",
    "Übersetze ins Englische: „Der schnelle Fuchs – 3,14 × 2 = 6,28 – springt.“ 漢字 🦊",
    "  Keep   these\tspaces,\n\n\nlines, and <b>tags</b> & {{ braces }} {% raw %}.  ",
    "Count: 1 22 333 4444 55555 666666 7777777 88888888 999999999.",
    "Summarise in ten words: Return a list of the names of the entries in the given directory, in arbitrary order.",
)
CONVERSATIONS: list[Conversation] = [
    *([{"role": "user", "content": text}] for text in TEXTS),
    [{"role": "system", "content": "You answer in one sentence."}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "An apple."},
        {"role": "user", "content": "And another one, with its colour?"},
    ],
]
"""Ordinary prompts, and prompts that break templates. Where there is no system message, a template may add its own."""


@dataclass(frozen=True)
class Prompt:
    """A fixed conversation and the tuned model's greedy answer to it."""

    messages: Conversation
    ids: list[int]
    """Tokens up to where the answer begins, from the run's own tokenizer."""

    answer: list[int]
    """Tokens of the answer with its end of turn; at least one."""

    log_probabilities: np.ndarray
    """float32 [answer tokens, vocabulary]."""


@dataclass(frozen=True)
class Example:
    """An example that the run was scored on, with the answer that was scored."""

    ids: list[int]
    max_new_tokens: int
    references: list[str]
    prediction: str


@dataclass(frozen=True)
class Reference:
    """The behaviour of the tuned model."""

    prompts: list[Prompt]
    examples: list[Example]
    base: str
    """`as trained`, or `16-bit base` for an adapter that was trained on a base in 4 bits."""

    dtype: str
    from_4_bits: float | None = None
    """Mean KL(adapter as trained || adapter on the 16-bit base) in nats per token; None where both are the same."""

    tuned: str = "the adapter"
    """Name of the tuned model in messages."""


class EngineError(RuntimeError):
    """The engine cannot load the export, or crashed on it."""


class GateError(RuntimeError):
    """An export behaves differently from the tuned model."""


class Engine(Protocol):
    """An export, loaded by the library or program that its users will use; `name` is that with its version."""

    name: str

    def render(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the tokens of each conversation, by the export's own template and tokenizer."""

    def log_probabilities(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Return float32 [answer tokens, vocabulary] per prompt, for the tuned model's answer."""

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Return greedy answers to the examples."""


Check = tuple[dict[str, Any], list[str]]
"""The measurements, and the problems, one line each."""


def compare(engine: Engine, kind: str, reference: Reference, bos: int | None, limits: ExportConfig) -> Check:
    """Compare an export with the tuned model; the checks after one that fails are skipped.

    A wrong template makes other prompts, and wrong logits other answers: only the first failure explains the rest.

    Args:
        engine: the loaded export.
        kind: its format, or its quant if it is a GGUF; selects the limits.
        reference: the tuned model's behaviour.
        bos: begin-of-text token, if the tokenizer has one.
        limits: the largest differences that pass.
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


def _template(engine: Engine, reference: Reference, bos: int | None) -> Check:
    problems = []
    rendered = engine.render(reference.prompts)
    for prompt, found in zip(reference.prompts, rendered, strict=True):
        if found != prompt.ids:
            same = [a == b for a, b in zip(found, prompt.ids, strict=False)]
            problems.append(
                f"template: {prompt.messages[-1]['content'][:30]!r} becomes {len(found)} tokens instead of "
                f"{len(prompt.ids)}; they differ from token {[*same, False].index(False) + 1} on"
            )
        elif bos is not None and found[:2] == [bos, bos]:
            problems.append("template: two begin-of-text tokens at the start")
    return {"conversations": len(rendered), "equal": len(rendered) - len(problems)}, problems[:3]


def _logits(engine: Engine, kind: str, reference: Reference, limits: ExportConfig) -> Check:
    """Compare the probabilities of each next token of the tuned model's answers."""
    own = [prompt.log_probabilities for prompt in reference.prompts]
    found = engine.log_probabilities(reference.prompts)
    values = np.concatenate([divergence(*pair) for pair in zip(own, found, strict=True)])
    mean, limit = float(values.mean()), limits.max_divergence[kind]
    checks = {
        "tokens": len(values),
        "identical": all(map(np.array_equal, own, found)),
        "mean_divergence": round(mean, 7),
        "max_divergence": round(float(values.max()), 7),
        "limit": limit,
    }
    problems = []
    if (shift := reference.from_4_bits) is not None:
        checks["from_4_bits"] = round(shift, 7)
    if shift is not None and not shift <= (allowed := limits.max_divergence[FROM_4_BITS]):
        problems = [
            f"logits: the adapter on the 16-bit base differs from the adapter as trained by {shift:.4g} nats per "
            f"token, more than {allowed} (export.max_divergence.{FROM_4_BITS}); is export.base the right model?"
        ]
    elif not mean <= limit:  # true for nan, too
        problems = [
            f"logits: differ from {reference.tuned} by {mean:.4g} nats per token, more than {limit} "
            f"(export.max_divergence.{kind})"
        ]
    return checks, problems


def divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return KL(first || second) per row in nats; log-probabilities [rows, vocabulary], of which one may be padded."""
    width = min(first.shape[1], second.shape[1])
    first, second = first[:, :width], second[:, :width]
    return np.asarray((np.exp(first) * (first - second)).sum(axis=-1, dtype=np.float64))


def _rouge(engine: Engine, kind: str, reference: Reference, limits: ExportConfig) -> Check:
    """Score the export's answers to the run's own examples in the same way as the run was scored."""
    answers = engine.answer(reference.examples)
    stored = [example.prediction for example in reference.examples]
    references = [example.references for example in reference.examples]
    before, after = (
        {name: round(fmean(values), 4) for name, values in score(["rouge"], texts, references).items()}
        for texts in (stored, answers)
    )
    count, limit = len(answers), limits.max_rouge_change[kind]
    equal = sum(a == b for a, b in zip(stored, answers, strict=True))
    checks = {"examples": count, "same_answers": equal, "adapter": before, "export": after, "limit": limit}
    if abs(after["rougeL"] - before["rougeL"]) <= limit:
        return checks, []
    return checks, [
        f"rouge: ROUGE-L is {after['rougeL']:.3f} on {count} examples and {before['rougeL']:.3f} for "
        f"{reference.tuned}, more than {limit} apart (export.max_rouge_change.{kind})"
    ]
