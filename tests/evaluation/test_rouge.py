import random
import sys

import pytest
from absl import logging as absl_logging
from rouge_score.rouge_scorer import RougeScorer

from tometune.evaluation.rouge import TYPES, rouge

# rouge_score brings absl, whose log handler closes the stream it met on import (here pytest's capture) whenever
# logging is set up anew, as Hydra does.
absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)

WORDS = [
    *("the", "cat", "sat", "on", "mat", "runs", "running", "ran", "quickly", "organisations", "organization"),
    *(
        "3.14",
        "2026",
        "don't",
        "it's",
        "e-mail",
        "a_b",
        "C++",
        "x=1",
        "universities",
        "generously",
        "\n",
        " \t ",
        "national",
    ),
    *("naïve", "café", "Straße", "漢字", "🎉", "Ünïcode", "ПРИВЕТ", "...", ",", "!", "—", "“quoted”"),
]


def text(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.choice([0, 1, 2, 5, 20, 80])))


def google(target: str, prediction: str) -> dict[str, float]:
    scores = RougeScorer(list(TYPES), use_stemmer=True).score(target, prediction)
    return {kind: scores[kind].fmeasure for kind in TYPES}


def test_equals_google_exactly():
    generator = random.Random(0)
    pairs = [(text(generator), text(generator)) for _ in range(1500)]
    pairs += [(target, target) for target, _ in pairs[:200]]
    pairs += [(target, " ".join(reversed(target.split()))) for target, _ in pairs[:200]]
    pairs += [
        ("", ""),
        ("", "a"),
        ("a", ""),
        ("...", "!!!"),
        ("1,000", "1000"),
        ("A" * 500, "a" * 500),
    ]
    found = rouge([prediction for _, prediction in pairs], [[target] for target, _ in pairs])
    expected = [google(target, prediction) for target, prediction in pairs]
    for kind in TYPES:
        assert found[kind] == [scores[kind] for scores in expected]
    assert 0.02 < sum(found["rougeL"]) / len(pairs) < 0.98


def test_several_references_give_the_maximum_of_each_type():
    generator = random.Random(1)
    predictions = [text(generator) for _ in range(300)]
    references = [[text(generator) for _ in range(generator.choice([1, 2, 8]))] for _ in predictions]
    found = rouge(predictions, references)
    for kind in TYPES:
        expected = [
            max(google(target, prediction)[kind] for target in targets)
            for prediction, targets in zip(predictions, references, strict=True)
        ]
        assert found[kind] == expected


def test_stems():
    assert rouge(["universities running"], [["university runs"]])["rouge1"] == [1.0]


def test_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    rouge(["a"], [["a"]])
    assert list(tmp_path.iterdir()) == []


def test_needs_a_list_of_references_each():
    with pytest.raises(ValueError, match="references"):
        rouge(["a", "b"], [["a"]])
