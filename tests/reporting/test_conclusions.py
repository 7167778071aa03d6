import json

import pytest

from tests.reporting.sweeps import TASKS, edit, write_table
from tometune.reporting.analysis import build
from tometune.reporting.conclusions import answers, cautions, headline, published_answer, published_comparisons
from tometune.reporting.page import page


def test_a_planted_effect_is_a_yes(table):
    (answer,) = answers(table)
    assert answer.question == "Is pydocs_3k better than pydocs_1k?"
    assert answer.verdict == "Yes."
    text = " ".join(answer.sentences)
    assert "ROUGE-L +0.1" in text
    assert "Holm-corrected p" in text
    assert "Seeds per arm needed to detect a difference of 0.01 with 80% power: about" in text
    assert "pydocs_2k vs. pydocs_1k" in text
    assert cautions(table) == []


@pytest.mark.parametrize(
    ("effect", "deviation", "verdict"),
    [(0.0, 0.02, "Undecided: no significant difference."), (-0.05, 0.001, "No, it is worse.")],
)
def test_no_effect_and_a_negative_one(tmp_path, report, effect, deviation, verdict):
    write_table(tmp_path / "s", effect=effect, deviation=deviation, examples=60)
    (answer,) = answers(report(tmp_path / "s").table)
    assert answer.verdict == verdict


def test_two_models_with_one_seed(one_seed):
    table = one_seed.table
    assert headline(table) == [("small pydocs_3k", "small pydocs_1k"), ("tiny pydocs_3k", "tiny pydocs_1k")]
    first = answers(table)[0]
    assert first.question == "small: is pydocs_3k better than pydocs_1k?"
    assert first.verdict == "A single seed cannot tell."
    assert "p = " not in " ".join(first.sentences)
    assert any("A single seed, so the deviation is unknown" in text for text in cautions(table))


def test_one_cell_has_no_question(one_cell):
    assert answers(one_cell.table) == []


def test_missing_cells_unpaired_arms_and_too_few_resamples_are_cautions(sweep):
    edit(sorted(sweep.iterdir())[0], status="failed", error="no")
    text = " ".join(cautions(build(sweep, 100, 0.95).table))
    assert "Missing runs: 1; the means are over the others." in text
    assert "independent samples" in text
    assert "eval.resamples=100 is too small" in text


def test_too_few_examples_are_told(tmp_path, report):
    write_table(tmp_path / "s", examples=8, noise=0.2)
    (answer,) = answers(report(tmp_path / "s").table)
    assert "cannot be detected reliably with any number of seeds" in " ".join(answer.sentences)


def test_the_published_table_cannot_tell():
    found = {entry["metric"]: entry for entry in published_comparisons(0.95)}
    assert all(entry["ci_low"] < 0 < entry["ci_high"] for entry in found.values())
    assert found["rouge1"]["delta"] == pytest.approx(-0.010)
    assert found["rouge1"]["p"] > 0.4
    assert "300k vs. 100k in the published table" in published_answer(0.95)


def set_tokens(sweep, data, tokens, tasks=("question_answering",)):
    """Set the mean number of answer tokens in all runs of a mix; None removes the count."""
    for path in sweep.glob(f"*{data}*/run.json"):
        record = json.loads(path.read_text())
        for task in tasks:
            entry = record["eval"]["tuned"]["tasks"][task]
            entry["tokens"] = None if tokens is None else tokens * entry["examples"]
        path.write_text(json.dumps(record))


def test_short_answers_are_a_caution(sweep, report):
    set_tokens(sweep, "pydocs_3k", 4)
    made = report(sweep)
    rows = {row["cell"]: row["answer_tokens"] for row in made.table["rows"]}
    assert rows["pydocs_3k"]["question_answering"] == 4
    assert rows["pydocs_1k"]["question_answering"] == rows["before tiny"]["question_answering"] == 20
    (caution,) = cautions(made.table)
    expected = "20.0 for pydocs_1k, 20.0 for pydocs_2k and 4.0 for pydocs_3k"
    assert caution.startswith(f"Answer length on question_answering in tokens: {expected}. ROUGE penalises answers")
    assert "<h2>Answer length</h2>" in page(made)
    set_tokens(sweep, "pydocs_3k", 18)
    assert cautions(report(sweep).table) == [], "a tenth shorter does not matter"


def test_runs_without_base_scores_or_token_counts(sweep, report):
    for path in sweep.glob("*pydocs_1k*/run.json"):
        record = json.loads(path.read_text())
        del record["eval"]["base"]
        path.write_text(json.dumps(record))
    set_tokens(sweep, "pydocs_3k", None, TASKS)
    made = report(sweep)
    first, *_, last = made.table["rows"]
    assert (first["cell"], first["answer_tokens"]["summarisation"]) == ("before tiny", 20)
    assert last["answer_tokens"]["summarisation"] is None
    assert cautions(made.table) == []
    assert "<td>–</td>" in page(made)
