import pytest
import sacrebleu

from tometune.common.errors import UserError
from tometune.evaluation.metrics import METRICS, score, squad

PREDICTIONS = ["The cat sat on the mat.", "", "Paris", "The 3 dogs!"]
REFERENCES = [
    ["A cat sat on a mat.", "The cat sat on the mat."],
    ["something"],
    ["in Paris, France"],
    ["three dogs", "3 dogs"],
]


def test_every_metric_is_between_0_and_1_and_1_for_the_reference_itself():
    columns = score(list(METRICS), PREDICTIONS, REFERENCES)
    assert list(columns) == ["rouge1", "rouge2", "rougeL", "chrf", "bleu", "token_f1", "exact_match"]
    for values in columns.values():
        assert values[0] == pytest.approx(1)
        assert values[1] == 0
        assert all(0 <= value <= 1 + 1e-9 for value in values)


def test_rouge_is_always_there():
    assert list(score(["token_f1"], ["a"], [["b"]])) == ["rouge1", "rouge2", "rougeL", "token_f1"]


def test_chrf_and_bleu_are_sacrebleus_sentence_scores():
    columns = score(["chrf", "bleu"], PREDICTIONS, REFERENCES)
    for number, (text, targets) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        chrf = max(sacrebleu.sentence_chrf(text, [target]).score for target in targets)
        bleu = max(sacrebleu.sentence_bleu(text, [target]).score for target in targets)
        assert columns["chrf"][number] == pytest.approx(chrf / 100)
        assert columns["bleu"][number] == pytest.approx(bleu / 100)


def test_squad_metrics():
    columns = score(["token_f1", "exact_match"], PREDICTIONS, REFERENCES)
    assert columns["token_f1"] == pytest.approx([1, 0, 0.5, 1])
    assert columns["exact_match"] == [1, 0, 0, 1]
    assert squad("The  Cat's, an (apple)!") == "cats apple"
    assert score(["token_f1"], ["the", "a dog dog"], [["an"], ["dog"]])["token_f1"] == pytest.approx([1, 2 / 3])


def test_unknown_metric():
    with pytest.raises(UserError, match=r"'token_f'.*did you mean token_f1\?.*known: rouge, chrf"):
        score(["token_f"], ["a"], [["b"]])
