"""The gate: an export, loaded again, is held against the adapter; what differs more than it may marks it as failed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tometune.config.export import FROM_4_BITS, ExportConfig
from tometune.evaluation.metrics import score
from tometune.exporting.engines import Engine, EngineError
from tometune.exporting.reference import NEW_TOKENS, Fixed, Reference, divergence

ROUNDING = {"float32": 5e-4}
"""Nats a token that a rounding to 16 bits may cost, by the type logits are computed in; less is asked of no export."""

IN_16_BITS = 5e-3
"""The same where the arithmetic has 16 bits too and rounds anew in each layer."""

WITHOUT_LOSS = ("adapter", "merged_16bit", "f16", "bf16")
"""Exports that keep what training did: they are at most half as far from the adapter as its base is."""

SURE = 3.0
"""Standard errors from zero at which two distances are told apart."""


class GateError(RuntimeError):
    """An export answers differently from the adapter it was made of."""


@dataclass(frozen=True)
class Outcome:
    """What the gate found."""

    engine: str
    checks: dict[str, Any]
    problems: list[str]
    """What differs, one line each; none where it passed."""

    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the export may be used and published."""
        return not self.problems


Step = Callable[[], tuple[dict[str, Any], list[str]]]
"""A check: what it measured, and what is wrong, one line each."""


def hold(
    engine: Engine,
    kind: str,
    reference: Reference,
    bos: int | None,
    limits: ExportConfig,
    weights: Step | None = None,
) -> Outcome:
    """Hold an export against the adapter.

    Args:
        engine: the export, loaded.
        kind: its format, or its quant where it is a GGUF.
        reference: the adapter's behaviour.
        bos: the token that begins a text, where there is one.
        limits: what may differ.
        weights: the check of the numbers in its files, which comes first.
    """
    start = time.perf_counter()
    checks: dict[str, Any] = {}
    problems: list[str] = []
    steps: dict[str, Step] = {
        **({"weights": weights} if weights else {}),
        "template": lambda: _template(engine, reference.fixed, bos),
        "logits": lambda: _logits(engine, kind, reference, limits),
        "greedy": lambda: _greedy(engine, reference.fixed),
        "rouge": lambda: _stored(reference) if _is_the_run(checks) else _rouge(engine, kind, reference, limits),
    }
    try:
        for name, step in steps.items():
            checks[name], problems = step()
            if problems:  # a wrong template makes other prompts, wrong logits other answers: the first is what is wrong
                break
    except EngineError as error:
        problems = [f"engine: {error}"]
    return Outcome(engine.name, checks, problems, round(time.perf_counter() - start, 1))


def _template(engine: Engine, fixed: Sequence[Fixed], bos: int | None) -> tuple[dict[str, Any], list[str]]:
    """Compare the tokens that the chat template gives, one by one."""
    problems = []
    for prompt in fixed:
        found = engine.rendered(prompt.messages)
        if found != prompt.ids:
            place = next(
                (n for n, (a, b) in enumerate(zip(found, prompt.ids, strict=False)) if a != b),
                min(len(found), len(prompt.ids)),
            )
            problems.append(
                f"template: {prompt.messages[-1]['content'][:30]!r} gives {len(found)} tokens, not {len(prompt.ids)}; "
                f"they differ from token {place + 1} on"
            )
        elif bos is not None and found[:2] == [bos, bos]:
            problems.append("template: two begin-of-text tokens at the start")
    begins = sum(bos is not None and prompt.ids[:1] == [bos] for prompt in fixed)
    return {"conversations": len(fixed), "equal": len(fixed) - len(problems), "begin_with_one_bos": begins}, problems[
        :3
    ]


def _logits(engine: Engine, kind: str, reference: Reference, limits: ExportConfig) -> tuple[dict[str, Any], list[str]]:
    """Compare the probabilities of each next token of the adapter's answers to the fixed prompts."""
    rows, same, width = [], [], 0
    logits = engine.log_probabilities(reference.fixed)
    for prompt, found in zip(reference.fixed, logits, strict=True):
        width = min(prompt.log_probabilities.shape[1], found.shape[1])  # padding of the vocabulary
        rows.append(divergence(prompt.log_probabilities[:, :width], found[:, :width]))
        same.append(prompt.log_probabilities[:, :width].argmax(axis=1) == found[:, :width].argmax(axis=1))
    values = np.concatenate(rows)
    limit = limits.max_divergence[kind]
    if kind in WITHOUT_LOSS:
        limit = min(limit, max(reference.moved / 2, ROUNDING.get(reference.dtype, IN_16_BITS)))
    pairs = zip(reference.fixed, logits, strict=True)
    checks: dict[str, Any] = {
        "tokens": len(values),
        "identical": all(np.array_equal(prompt.log_probabilities, found) for prompt, found in pairs),
        "mean_divergence": round(float(values.mean()), 7),
        "max_divergence": round(float(values.max()), 7),
        "same_first_choice": round(float(np.concatenate(same).mean()), 4),
        "limit": round(limit, 7),
        "base_without_adapter": round(reference.moved, 7),
    }
    if reference.from_4_bits is not None:
        checks["from_4_bits"] = round(reference.from_4_bits, 7)
        if not reference.from_4_bits <= limits.max_divergence[FROM_4_BITS]:
            return checks, [
                f"logits: the adapter on the 16-bit base is {reference.from_4_bits:.4g} nats a token from it as "
                f"trained, at most {limits.max_divergence[FROM_4_BITS]} (export.max_divergence.{FROM_4_BITS}); is "
                "export.base the right one?"
            ]
    if np.isfinite(values).all() and values.mean() <= limit:
        if kind in WITHOUT_LOSS:
            return checks, []
        checks["nearer_to"] = nearer_to(reference.fixed, logits)
        nearer = f"logits: nearer to {reference.before} than to {reference.tuned}"
        return checks, [nearer] if checks["nearer_to"] == "base" else []
    return checks, [
        f"logits: {values.mean():.4g} nats a token from {reference.tuned}, at most {limit:.4g} "
        f"(export.max_divergence.{kind}={limits.max_divergence[kind]}; the bare base is {reference.moved:.4g} away)"
    ]


def nearer_to(fixed: Sequence[Fixed], logits: Sequence[np.ndarray]) -> str:
    """Tell whether an export is nearer to the `adapter` or to the `base`, by KL from each; else `cannot tell`.

    A limit for quantised weights is wider than what a short training moves. So the two distances are compared prompt by
    prompt, and the mean of their differences has to be three standard errors from zero to say anything.
    """
    found = []
    for prompt, export in zip(fixed, logits, strict=True):
        if prompt.base is not None:
            width = min(prompt.base.shape[1], export.shape[1])
            own, base, export = prompt.log_probabilities[:, :width], prompt.base[:, :width], export[:, :width]
            found.append(divergence(base, export).mean() - divergence(own, export).mean())
    error = float(np.std(found, ddof=1) / np.sqrt(len(found))) if len(found) > 1 else float("inf")
    if not abs(np.mean(found or [0.0])) > SURE * error:
        return "cannot tell"
    return "adapter" if np.mean(found) > 0 else "base"


def _greedy(engine: Engine, fixed: Sequence[Fixed]) -> tuple[dict[str, Any], list[str]]:
    """Count the answers to the fixed prompts that are the adapter's own."""
    found = engine.greedy(fixed, NEW_TOKENS)
    equal = sum(prompt.text == text for prompt, text in zip(fixed, found, strict=True))
    return {"prompts": len(fixed), "equal": equal}, []


def _is_the_run(checks: dict[str, Any]) -> bool:
    """Tell whether an export is the run's own adapter to the byte, and computes the same to the last bit."""
    return bool(checks.get("weights", {}).get("same_bytes") and checks["logits"]["identical"])


def _stored(reference: Reference) -> tuple[dict[str, Any], list[str]]:
    """Say that the answers which the run was scored on stand: to give them again would be to ask the same model twice.

    They took nine tenths of the gate's time, to measure what 16-bit arithmetic does in other batches.
    """
    return {"examples": len(reference.examples), "stored": True}, []


def _rouge(engine: Engine, kind: str, reference: Reference, limits: ExportConfig) -> tuple[dict[str, Any], list[str]]:
    """Score the answers to the run's own examples as the run was scored."""
    examples = reference.examples
    found = engine.answers(examples)
    targets = [example.references for example in examples]
    stored = [example.prediction for example in examples]
    adapter, export = score(["rouge"], stored, targets), score(["rouge"], found, targets)
    names = ("rouge1", "rouge2", "rougeL")
    change = fmean(export["rougeL"]) - fmean(adapter["rougeL"])
    limit = limits.max_rouge_change[kind]
    checks = {
        "examples": len(examples),
        "same_answers": sum(a == b for a, b in zip(stored, found, strict=True)),
        "adapter": {name: round(fmean(adapter[name]), 4) for name in names},
        "export": {name: round(fmean(export[name]), 4) for name in names},
        "change": round(change, 4),
        "limit": limit,
    }
    if abs(change) <= limit:
        return checks, []
    return checks, [
        f"rouge: ROUGE-L {fmean(export['rougeL']):.3f} on {len(examples)} examples, that of {reference.tuned} is "
        f"{fmean(adapter['rougeL']):.3f}; at most {limit} apart (export.max_rouge_change.{kind})"
    ]
