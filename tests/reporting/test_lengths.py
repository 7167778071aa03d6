"""ROUGE on texts of the same length. tests/reporting/test_conclusions.py shows where the report has it."""

import json
from types import SimpleNamespace

import pytest

from tometune.reporting.lengths import _mean_rouge


@pytest.mark.parametrize(
    ("prediction", "references", "rouge_l"),
    [
        ("the cat", ["the cat sat on the mat"], 1.0),
        ("the cat sat on the mat", ["the cat"], 1.0),
        ("a dog", ["no match", "a dog barks"], 1.0),  # the best reference counts
        ("a dog barks", ["a cat barks loudly"], pytest.approx(2 / 3)),
        ("", ["some words"], 0.0),
        ("我爱北京", ["我爱北京天安门"], 1.0),  # cut by characters, which are the words of this script
    ],
)
def test_both_texts_are_cut_to_the_shorter_one(tmp_path, prediction, references, rouge_l):
    path = tmp_path / "eval" / "tuned" / "qa.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"prediction": prediction, "references": references}, ensure_ascii=False) + "\n")
    assert _mean_rouge(SimpleNamespace(folder=tmp_path), "qa")[2] == rouge_l
