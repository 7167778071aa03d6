"""Metrics by name: each gives one score per example, usually from 0 to 1, the maximum over the references.

CONTRIBUTING.md has the steps for adding one, plain or with a model.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tometune.common.errors import UserError, did_you_mean

Scores = dict[str, list[float]]
"""Scores per example, by column; a metric may have several columns."""

PlainMetric = Callable[[list[str], list[list[str]]], Scores]
"""Takes the predictions and, for each of them, its references."""


@dataclass(frozen=True)
class MetricContext:
    """Where a metric with a model runs."""

    device: str
    """Device of the model that was scored, e.g. `cuda:0`. Free its memory again before returning."""

    cache: Path
    """Folder for anything that the metric makes from its model; it may not exist yet."""


class ModelMetric(Protocol):
    """A metric that loads a model. The model belongs to the digest of every task that uses the metric."""

    model: str
    """Hub id, or any other name that says which model it is."""

    revision: str
    """Full commit on the hub, so that the scores cannot change later."""

    def __call__(self, predictions: list[str], references: list[list[str]], context: MetricContext) -> Scores:
        """Score all predictions of a task."""


LABELS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "token_f1": "token F1",
    "exact_match": "exact",
}
"""Names of columns in tables and figures; any other column is shown under its own name."""


def label(column: str) -> str:
    """Return the name of a column in tables and figures."""
    return LABELS.get(column, column)


def score(
    names: Sequence[str], predictions: list[str], references: list[list[str]], context: MetricContext | None = None
) -> Scores:
    """Return the columns of ROUGE, which every run records, and of the named metrics.

    Args:
        names: keys of `METRICS`.
        predictions: one text per example.
        references: one or more texts per example.
        context: required if a metric uses a model.

    Raises:
        UserError: a name is unknown.
    """
    known = [*METRICS, *MODEL_METRICS]
    columns: Scores = {}
    for name in dict.fromkeys(["rouge", *names]):
        if name in METRICS:
            columns |= METRICS[name](predictions, references)
        elif name in MODEL_METRICS:
            assert context is not None
            columns |= MODEL_METRICS[name](predictions, references, context)
        else:
            raise UserError(f"metrics: {name!r} is unknown{did_you_mean(name, known)} (known: {', '.join(known)})")
    return columns


def identity_of(name: str) -> str:
    """Return what identifies a metric: its name, and its model if it has one."""
    metric = MODEL_METRICS.get(name)
    return name if metric is None else f"{name} by {metric.model}@{metric.revision}"


def best_of(pair: Callable[[str, str], float], predictions: list[str], references: list[list[str]]) -> list[float]:
    """Score each prediction against each of its references and keep the highest score."""
    return [
        max(pair(prediction, target) for target in targets)
        for prediction, targets in zip(predictions, references, strict=True)
    ]


def _rouge(predictions: list[str], references: list[list[str]]) -> Scores:
    from tometune.evaluation.rouge import rouge  # imports `evaluate`, which takes seconds

    return rouge(predictions, references)


def _chrf(predictions: list[str], references: list[list[str]]) -> Scores:
    """Sentence chrF2: character 6-grams, no words, beta 2 (Popović 2015, sacrebleu's defaults), divided by 100."""
    from sacrebleu.metrics import CHRF

    chrf = CHRF(char_order=6, word_order=0, beta=2)
    return {
        "chrf": best_of(lambda text, target: chrf.sentence_score(text, [target]).score / 100, predictions, references)
    }


def _bleu(predictions: list[str], references: list[list[str]]) -> Scores:
    """Sentence BLEU-4: tokens `13a`, exponential smoothing, effective order (Post 2018, sacrebleu), divided by 100."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize="13a", smooth_method="exp", max_ngram_order=4, effective_order=True)
    return {
        "bleu": best_of(lambda text, target: bleu.sentence_score(text, [target]).score / 100, predictions, references)
    }


def _token_f1(predictions: list[str], references: list[list[str]]) -> Scores:
    """F1 of two bags of normalised words; two empty ones are equal (Rajpurkar 2018, the script of SQuAD 2.0)."""

    def overlap(prediction: str, reference: str) -> float:
        words, targets = squad(prediction).split(), squad(reference).split()
        if not words or not targets:
            return float(words == targets)
        shared = (Counter(words) & Counter(targets)).total()
        return 2 * shared / (len(words) + len(targets))

    return {"token_f1": best_of(overlap, predictions, references)}


def _exact_match(predictions: list[str], references: list[list[str]]) -> Scores:
    """1 if the normalised texts are equal (Rajpurkar 2016, the script of SQuAD)."""
    return {"exact_match": best_of(lambda text, target: float(squad(text) == squad(target)), predictions, references)}


def squad(text: str) -> str:
    """Normalise as SQuAD does: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


METRICS: dict[str, PlainMetric] = {
    "rouge": _rouge,
    "chrf": _chrf,
    "bleu": _bleu,
    "token_f1": _token_f1,
    "exact_match": _exact_match,
}
"""Metrics that a task can name, without a model. The same names are in `tometune.config.eval.METRICS`."""

MODEL_METRICS: dict[str, ModelMetric] = {}
"""Metrics that a task can name, with a model. The same names are in `tometune.config.eval.METRICS`."""
