"""Metrics by name: each gives one score per example, usually from 0 to 1, the maximum over the references.

CONTRIBUTING.md has the steps for adding one, plain or with a model.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from tometune.common.errors import UserError
from tometune.config.eval import HARNESS, HELD_OUT
from tometune.config.metrics import own_metric, own_scores

Scores = dict[str, list[float]]  # scores per example, by column; a metric may have several columns
PlainMetric = Callable[[list[str], list[list[str]]], Scores]  # of predictions and, for each, its references


@dataclass(frozen=True)
class MetricContext:
    """Where a metric with a model runs."""

    device: str  # of the model that was scored, e.g. `cuda:0`; free its memory again before returning
    cache: Path  # folder for anything that the metric makes from its model; it may not exist yet


class ModelMetric(Protocol):
    """A metric that loads a model. The model belongs to the digest of every task that uses the metric."""

    model: str  # hub id, or any other name that says which model it is
    revision: str  # full commit on the hub, so that the scores cannot change later

    def __call__(self, predictions: list[str], references: list[list[str]], context: MetricContext) -> Scores:
        """Score all predictions of a task."""


LABELS = {  # names of columns in tables and figures; any other column is shown under its own name
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "token_f1": "token F1",
    "exact_match": "exact",
    "nll": "NLL",
    "win": "win rate",
}
LOWER_IS_BETTER = ("nll",)  # in bits per byte, see `likelihood`; of every other column, more is better

# Scripts written without spaces between words: each character counts as a word, with the marks on it.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "YI", "TAI")


def label(column: str) -> str:
    """Return the name of a column in tables and figures; `nll/qa` is `nll` on the task `qa`."""
    metric, _, task = column.partition("/")
    return f"{LABELS.get(metric, metric)} {task}".rstrip()


def better(column: str, difference: float) -> bool:
    """Tell whether a difference in a column is an improvement; `nll/qa` is `nll` on the task `qa`."""
    return difference < 0 if column.partition("/")[0] in LOWER_IS_BETTER else difference > 0


def averaged(tasks: Iterable[str]) -> list[str]:
    """Return the tasks that a mean over tasks covers: all but held-out rows and harness, if there are others."""
    names = list(tasks)
    return [name for name in names if not name.startswith((HELD_OUT, HARNESS))] or names


def score(
    names: Sequence[str], predictions: list[str], references: list[list[str]], context: MetricContext | None = None
) -> Scores:
    """Return the columns of ROUGE, which every run records, and of the named metrics.

    There are one or more references per prediction. Metrics with a model need a context.

    Raises:
        UserError: a name is unknown, e.g. in the config of a run that was made elsewhere, or a metric of the user's own
            fails.
    """
    columns: Scores = {}
    for name in dict.fromkeys(["rouge", *names]):
        if name in METRICS:
            found = METRICS[name](predictions, references)
        else:
            metric = MODEL_METRICS.get(name) or own_metric(name)[0]
            found = own_scores(
                name, metric, predictions, references, *([context] if hasattr(metric, "revision") else [])
            )
        if both := [column for column in found if column in columns]:
            raise UserError(f"{name}: another metric of this task has the column {both[0]} too; rename one")
        columns |= found
    return columns


def identity_of(name: str) -> str:
    """Return what identifies a metric: its name; its model, if it has one; its file or package, if it is not ours."""
    if name in METRICS:
        return name
    metric, own = (MODEL_METRICS[name], name) if name in MODEL_METRICS else own_metric(name)
    return f"{own} by {metric.model}@{metric.revision}" if hasattr(metric, "revision") else own


def best_of(pair: Callable[[str, str], float], predictions: list[str], references: list[list[str]]) -> list[float]:
    """Score each prediction against each of its references and keep the highest score."""
    return [
        max(pair(prediction, target) for target in targets)
        for prediction, targets in zip(predictions, references, strict=True)
    ]


def _rouge(predictions: list[str], references: list[list[str]]) -> Scores:
    """ROUGE-1, -2 and -L F1 with the Porter stemmer (Lin 2004, https://aclanthology.org/W04-1013).

    With several references, each of the three is the maximum over the references (as in `score_multi` of
    google-research/rouge, whose `rouge_scorer` gives the same numbers as rouge-score-rs). There is no bootstrap
    aggregate, because its mean would change from call to call. Examples with letters of another script than Latin
    are compared by Unicode words, see `as_rouge_words`.
    """
    import datasets
    import evaluate  # imports transformers' pipelines, which takes seconds
    from rouge_score_rs import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]

    class Rouge(evaluate.Metric):  # type: ignore[misc] # the library is untyped
        """A metric of the `evaluate` library that needs no hub."""

        def _info(self) -> evaluate.MetricInfo:
            text = datasets.Value("string")
            features = datasets.Features({"predictions": text, "references": datasets.List(text)})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions: list[str], references: list[list[str]]) -> Scores:
            targets: list[str] = []
            answers: list[str] = []
            for answer, texts in zip(predictions, references, strict=True):
                words = as_rouge_words if any(map(needs_unicode, [*texts, answer])) else str
                targets += map(words, texts)
                answers += [words(answer)] * len(texts)
            pairs = iter(RougeScorer(kinds, use_stemmer=True).score_batch(targets, answers))
            found = [list(islice(pairs, len(texts))) for texts in references]
            return {kind: [max((pair[kind].fmeasure for pair in own), default=0.0) for own in found] for kind in kinds}

    with TemporaryDirectory() as scratch:  # `evaluate` would otherwise make an empty folder in the user's cache
        metric = Rouge(keep_in_memory=True, cache_dir=scratch, seed=0)
        scores: Scores = metric.compute(predictions=predictions, references=references)
    return scores


def needs_unicode(text: str) -> bool:
    """Tell whether ROUGE's tokenizer drops letters of another script than Latin, or finds no word at all in a text."""
    if text.isascii():
        return False
    other = any(character.isalpha() and not _latin(character) for character in text)
    return other or not re.search("[a-z0-9]", text.lower())


def as_rouge_words(text: str) -> str:
    """Return a text in which ROUGE's tokenizer finds every word.

    Words of a–z and 0–9 stay, so they are stemmed as usual. Any other word becomes a number made of its code points,
    which the stemmer leaves alone. Text is normalised (NFKC) and in lower case first. In a text without letters and
    digits, each character is a word.
    """
    words: list[str] = []
    extends = False  # whether the next letter belongs to the last word
    for character in unicodedata.normalize("NFKC", text).lower():
        kind = unicodedata.category(character)[0]
        if words and (kind == "M" or (kind in "LN" and extends and not _unspaced(character))):
            words[-1] += character
        elif kind in "LN":
            words.append(character)
        if kind != "M" or not words:
            extends = kind in "LN" and not _unspaced(character)
    words = words or [character for character in text if not character.isspace()]
    numbers = ("".join(f"{ord(character):07}" for character in word) for word in words)
    return " ".join(
        word if word.isascii() and word.isalnum() else number for word, number in zip(words, numbers, strict=True)
    )


@lru_cache(4096)
def _latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("LATIN", "FEMININE", "MASCULINE", "FULLWIDTH LATIN"))


@lru_cache(4096)
def _unspaced(character: str) -> bool:
    return not character.isascii() and unicodedata.name(character, "").startswith(UNSPACED)


def _chrf(predictions: list[str], references: list[list[str]]) -> Scores:
    """Sentence chrF2: character 6-grams, no words, beta 2 (Popović 2015, sacrebleu's defaults), divided by 100."""
    from sacrebleu.metrics import CHRF

    return {"chrf": _sacrebleu(CHRF(char_order=6, word_order=0, beta=2), predictions, references)}


def _bleu(predictions: list[str], references: list[list[str]]) -> Scores:
    """Sentence BLEU-4: tokens `13a`, exponential smoothing, effective order (Post 2018, sacrebleu), divided by 100."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(tokenize="13a", smooth_method="exp", max_ngram_order=4, effective_order=True)
    return {"bleu": _sacrebleu(scorer, predictions, references)}


def _sacrebleu(scorer: Any, predictions: list[str], references: list[list[str]]) -> list[float]:
    return best_of(lambda text, target: scorer.sentence_score(text, [target]).score / 100, predictions, references)


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


# The names that a task can give; the same names are in `tometune.config.metrics.METRICS`.
METRICS: dict[str, PlainMetric] = {
    "rouge": _rouge,
    "chrf": _chrf,
    "bleu": _bleu,
    "token_f1": _token_f1,
    "exact_match": _exact_match,
}
MODEL_METRICS: dict[str, ModelMetric] = {}
