"""ROUGE on texts of the same length, for tasks on which the answers of the cells differ much in length."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tometune.evaluation.metrics import score
from tometune.evaluation.unicode_words import as_rouge_words, needs_unicode
from tometune.reporting.conclusions import length_differences
from tometune.reporting.grouping import Cell
from tometune.reporting.score_files import ROUGE
from tometune.reporting.sweep import SweepRun


def length_matched(cells: Sequence[Cell], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ROUGE of each cell with an answer and its reference both cut to the words of the shorter one.

    Only for tasks of `length_differences`. The answers and references are those in the files of scores.
    """
    found = []
    for model, task, lengths in length_differences(rows):
        means = {}
        for cell in (cell for cell in cells if cell.label in lengths):
            mean = np.mean([_mean_rouge(run, task) for run in cell.runs.values()], axis=0).round(6)
            means[cell.label] = dict(zip(ROUGE, mean.tolist(), strict=True))
        found.append({"model": model, "task": task, "cells": means})
    return found


def _mean_rouge(run: SweepRun, task: str) -> list[float]:
    """Return the mean of each of `ROUGE` over a run's examples; the best of several references counts."""
    with (run.folder / "eval" / "tuned" / f"{task}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        examples = [json.loads(line) for line in lines]
    answers: list[str] = []
    references: list[list[str]] = []
    starts: list[int] = []  # where the pairs of each example begin
    for example in examples:
        starts.append(len(answers))
        for reference in example["references"]:
            texts = example["prediction"], reference
            words, target = (
                (as_rouge_words(each) if any(map(needs_unicode, texts)) else each).split() for each in texts
            )
            shorter = min(len(words), len(target))
            answers.append(" ".join(words[:shorter]))
            references.append([" ".join(target[:shorter])])
    scores = score([], answers, references)
    return [float(np.maximum.reduceat(scores[metric], starts).mean()) for metric in ROUGE]
