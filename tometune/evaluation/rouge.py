"""ROUGE as a metric of the `evaluate` library that needs no hub, computed by rouge-score-rs.

Import this module only where scoring starts: `evaluate` imports transformers' pipelines, which takes seconds.
"""

from itertools import groupby
from tempfile import TemporaryDirectory

import datasets
import evaluate
from rouge_score_rs import RougeScorer

TYPES = ("rouge1", "rouge2", "rougeL")


class Rouge(evaluate.Metric):  # type: ignore[misc] # the library is untyped
    """ROUGE-1, -2 and -L F1 with the Porter stemmer, per example (Lin 2004, https://aclanthology.org/W04-1013).

    With several references, each of the three is the maximum over the references (as in `score_multi` of
    google-research/rouge, whose `rouge_scorer` gives the same numbers). There is no bootstrap aggregate, because its
    mean would change from call to call.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description="ROUGE F1 per example, the maximum over the references",
            citation="Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries",
            inputs_description="predictions: texts; references: for each prediction a list of texts",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, list[float]]:
        scorer = RougeScorer(list(TYPES), use_stemmer=True)
        targets = [text for texts in references for text in texts]
        owners = [index for index, texts in enumerate(references) for _ in texts]
        pairs = scorer.score_batch(targets, [predictions[index] for index in owners])
        best: dict[str, list[float]] = {kind: [] for kind in TYPES}
        for _, group in groupby(zip(owners, pairs, strict=True), key=lambda pair: pair[0]):
            scores = [score for _, score in group]
            for kind in TYPES:
                best[kind].append(max(score[kind].fmeasure for score in scores))
        return best


def rouge(predictions: list[str], references: list[list[str]]) -> dict[str, list[float]]:
    """Return `rouge1`, `rouge2` and `rougeL`, each a list of F1 per example.

    Args:
        predictions: one text per example.
        references: one or more texts per example.
    """
    with TemporaryDirectory() as scratch:  # `evaluate` would otherwise make an empty folder in the user's cache
        metric = Rouge(keep_in_memory=True, cache_dir=scratch, seed=0)
        scores: dict[str, list[float]] = metric.compute(predictions=predictions, references=references)
    return scores
