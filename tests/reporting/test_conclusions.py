import json

import pytest

from tests.reporting.sweeps import edit, write_run, write_table
from tometune.reporting.conclusions import answers, cautions, headline, published_answer
from tometune.reporting.page import page
from tometune.reporting.published import published_comparisons
from tometune.reporting.report import build
from tometune.reporting.table import answer_tokens


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


def test_no_effect_is_undecided(tmp_path, report):
    write_table(tmp_path / "s", deviation=0.02, examples=60)
    (answer,) = answers(report(tmp_path / "s").table)
    assert answer.verdict == "Undecided: no significant difference."


def test_worse_is_no(tmp_path, report):
    write_table(tmp_path / "s", effect=-0.05, deviation=0.001, examples=60)
    (answer,) = answers(report(tmp_path / "s").table)
    assert answer.verdict == "No, it is worse."


def test_one_seed_cannot_know(tmp_path, report):
    write_table(tmp_path / "s", seeds=1)
    table = report(tmp_path / "s").table
    (answer,) = answers(table)
    assert answer.verdict == "A single seed cannot tell."
    assert "p = " not in " ".join(answer.sentences)
    assert any("A single seed, so the deviation is unknown" in text for text in cautions(table))


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
    assert "Missing runs: 1; the means are over the others." in told
    assert "independent samples" in told


def test_too_few_resamples_are_told(sweep):
    table = build(sweep, 100, 0.95).table
    assert any("eval.resamples=100 is too small" in text for text in cautions(table))


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


def shorten(sweep, data, task, tokens):
    """Let all runs of a mix have answered a task with so many tokens an example."""
    for path in sweep.glob(f"*{data}*/run.json"):
        record = json.loads(path.read_text())
        entry = record["eval"]["tuned"]["tasks"][task]
        entry["tokens"] = None if tokens is None else tokens * entry["examples"]
        path.write_text(json.dumps(record))


def test_short_answers_are_said_beside_the_verdict(sweep, report):
    shorten(sweep, "pydocs_3k", "question_answering", 4)
    made = report(sweep)
    rows = {row["cell"]: row["answer_tokens"] for row in made.table["rows"]}
    assert rows["pydocs_3k"]["question_answering"] == 4
    assert rows["pydocs_1k"]["question_answering"] == rows["before tiny"]["question_answering"] == 20
    (said,) = cautions(made.table)
    expected = "20.0 for pydocs_1k, 20.0 for pydocs_2k and 4.0 for pydocs_3k"
    assert said.startswith(f"Answer length on question_answering in tokens: {expected}. ROUGE penalises answers")
    assert "<h2>Answer length</h2>" in page(made.sweep, made.grid, made.table)


def test_a_tenth_shorter_is_no_matter(sweep, report):
    shorten(sweep, "pydocs_3k", "question_answering", 18)
    assert cautions(report(sweep).table) == []


def test_a_cell_that_scored_no_base_takes_nothing_from_the_others(sweep, report):
    for path in sweep.glob("*pydocs_1k*/run.json"):
        record = json.loads(path.read_text())
        del record["eval"]["base"]
        path.write_text(json.dumps(record))
    rows = report(sweep).table["rows"]
    assert rows[0]["cell"] == "before tiny"
    assert rows[0]["answer_tokens"]["summarisation"] == 20


def test_records_that_do_not_tell_are_a_dash(sweep, report):
    for task in ("data_to_text", "instruction_following", "question_answering", "summarisation"):
        shorten(sweep, "pydocs_3k", task, None)
    made = report(sweep)
    assert cautions(made.table) == []
    assert made.table["rows"][-1]["answer_tokens"]["summarisation"] is None
    assert "<td>–</td>" in page(made.sweep, made.grid, made.table)


def test_a_mean_over_runs():
    records = [{"eval": {"tuned": {"tasks": {"qa": {"tokens": tokens, "examples": 4}}}}} for tokens in (8, 12)]
    assert answer_tokens(records, "tuned", ["qa"]) == {"qa": 2.5}
