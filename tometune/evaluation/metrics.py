"""Metrics by name: each gives one score an example from 0 to 1, the maximum over the references."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from tometune.common.errors import UserError, did_you_mean

Scores = dict[str, list[float]]
"""Scores by example, by column; a metric can have several columns."""

Metric = Callable[[list[str], list[list[str]]], Scores]
"""Takes the predictions and, for each, its references."""


LABELS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "token_f1": "token F1",
    "exact_match": "exact",
}


def label(column: str) -> str:
    """Return the name of a column of scores in tables and figures; one without a label keeps its own."""
    return LABELS.get(column, column)


def score(names: Sequence[str], predictions: list[str], references: list[list[str]]) -> Scores:
    """Return the columns of ROUGE, which every run records, and of the named metrics.

    Raises:
        UserError: a name is unknown.
    """
    columns: Scores = {}
    for name in dict.fromkeys(["rouge", *names]):
        if name not in METRICS:
            raise UserError(
                f"metrics: {name!r} is not known{did_you_mean(name, METRICS)} (known: {', '.join(METRICS)})"
            )
        columns |= METRICS[name](predictions, references)
    return columns


def _rouge(predictions: list[str], references: list[list[str]]) -> Scores:
    """Score ROUGE-1, -2 and -L F1; see `tometune.evaluation.rouge`."""
    from tometune.evaluation.rouge import rouge  # imports `evaluate`, which takes seconds

    return rouge(predictions, references)


def _chrf(predictions: list[str], references: list[list[str]]) -> Scores:
    """Score sentence chrF2: characters to 6-grams, no words, beta 2 (Popović 2015, sacrebleu's defaults), over 100."""
    from sacrebleu.metrics import CHRF

    metric = CHRF(char_order=6, word_order=0, beta=2)
    return {
        "chrf": _best(lambda text, target: metric.sentence_score(text, [target]).score / 100, predictions, references)
    }


def _bleu(predictions: list[str], references: list[list[str]]) -> Scores:
    """Score sentence BLEU-4 over 100: tokens `13a`, exponential smoothing, effective order (Post 2018, sacrebleu)."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="13a", smooth_method="exp", max_ngram_order=4, effective_order=True)
    return {
        "bleu": _best(lambda text, target: metric.sentence_score(text, [target]).score / 100, predictions, references)
    }


def _token_f1(predictions: list[str], references: list[list[str]]) -> Scores:
    """Score the overlap of normalised words (Rajpurkar 2016, SQuAD's own script)."""
    return {"token_f1": _best(_overlap, predictions, references)}


def _exact_match(predictions: list[str], references: list[list[str]]) -> Scores:
    """Score 1 where the normalised texts are equal (Rajpurkar 2016, SQuAD's own script)."""
    return {"exact_match": _best(lambda text, target: float(squad(text) == squad(target)), predictions, references)}


def squad(text: str) -> str:
    """Normalise as SQuAD does: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _overlap(prediction: str, reference: str) -> float:
    """Return the F1 of two bags of words; two empty ones are equal (SQuAD 2.0)."""
    words, targets = squad(prediction).split(), squad(reference).split()
    if not words or not targets:
        return float(words == targets)
    shared = (Counter(words) & Counter(targets)).total()
    return 2 * shared / (len(words) + len(targets))


def _best(pair: Callable[[str, str], float], predictions: list[str], references: list[list[str]]) -> list[float]:
    """Score each prediction against each of its references and keep the highest."""
    return [
        max(pair(prediction, target) for target in targets)
        for prediction, targets in zip(predictions, references, strict=True)
    ]


METRICS: dict[str, Metric] = {
    "rouge": _rouge,
    "chrf": _chrf,
    "bleu": _bleu,
    "token_f1": _token_f1,
    "exact_match": _exact_match,
}
"""The metrics a task can ask for."""
