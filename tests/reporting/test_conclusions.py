import pytest

from tests.reporting.sweeps import edit, write_run, write_table
from tometune.reporting.conclusions import answers, cautions, headline, published_answer
from tometune.reporting.published import published_comparisons
from tometune.reporting.report import build


def test_a_planted_effect_is_a_yes(sweep, report):
    table = report(sweep).table
    (answer,) = answers(table)
    assert answer.question == "Is pydocs_3k better than pydocs_1k?"
    assert answer.verdict == "Yes."
    text = " ".join(answer.sentences)
    assert "ROUGE-L +0.1" in text
    assert "after Holm" in text
    assert "Seeds an arm to see a difference of 0.01 with a chance of 80%: about" in text
    assert "pydocs_2k against pydocs_1k" in text
    assert cautions(table) == []


def test_no_effect_is_not_shown(tmp_path, report):
    write_table(tmp_path / "s", deviation=0.02, examples=60)
    (answer,) = answers(report(tmp_path / "s").table)
    assert answer.verdict.startswith("Not shown")


def test_worse_is_no(tmp_path, report):
    write_table(tmp_path / "s", effect=-0.05, deviation=0.001, examples=60)
    (answer,) = answers(report(tmp_path / "s").table)
    assert answer.verdict == "No, it is worse."


def test_one_seed_cannot_know(tmp_path, report):
    write_table(tmp_path / "s", seeds=1)
    table = report(tmp_path / "s").table
    (answer,) = answers(table)
    assert answer.verdict == "It cannot be known from one seed."
    assert "p = " not in " ".join(answer.sentences)
    assert any("One seed only, so no deviation" in text for text in cautions(table))


def test_each_model_is_asked_about(tmp_path, report):
    write_table(tmp_path / "s", seeds=2)
    write_table(tmp_path / "s", seeds=2, model="small")
    table = report(tmp_path / "s").table
    assert headline(table) == [("small pydocs_3k", "small pydocs_1k"), ("tiny pydocs_3k", "tiny pydocs_1k")]
    assert answers(table)[0].question == "small: is pydocs_3k better than pydocs_1k?"


def test_one_cell_has_no_question(tmp_path, report):
    write_run(tmp_path / "s")
    assert answers(report(tmp_path / "s").table) == []


def test_missing_cells_and_unpaired_arms_are_told(sweep, report):
    edit(sorted(sweep.iterdir())[0], status="failed", error="no")
    told = " ".join(cautions(report(sweep).table))
    assert "Missing cells: 1; the means are over the others." in told
    assert "independent samples" in told


def test_too_few_resamples_are_told(sweep):
    table = build(sweep, 100, 0.95).table
    assert any("eval.resamples=100: too few" in text for text in cautions(table))


def test_too_few_examples_are_told(tmp_path, report):
    write_table(tmp_path / "s", examples=8, noise=0.2)
    (answer,) = answers(report(tmp_path / "s").table)
    assert "any number of seeds shows only differences of" in " ".join(answer.sentences)


def test_the_published_table_cannot_tell():
    found = {entry["metric"]: entry for entry in published_comparisons(0.95)}
    assert all(entry["ci_low"] < 0 < entry["ci_high"] for entry in found.values())
    assert found["rouge1"]["delta"] == pytest.approx(-0.010)
    assert found["rouge1"]["p"] > 0.4
    assert "300k against 100k in the published table" in published_answer(0.95)
