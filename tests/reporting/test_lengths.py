"""How long answers are is told beside their scores, and said where it differs much."""

import json

from tometune.reporting.conclusions import answer_tokens, cautions
from tometune.reporting.page import page


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
    expected = "20.0 after pydocs_1k, 20.0 after pydocs_2k and 4.0 after pydocs_3k"
    assert said.startswith(f"Length: tokens of an answer of question_answering: {expected}. ROUGE falls")
    assert "Length of the answers" in page(made.sweep, made.grid, made.table)


def test_a_tenth_shorter_is_no_matter(sweep, report):
    shorten(sweep, "pydocs_3k", "question_answering", 18)
    assert cautions(report(sweep).table) == []


def test_no_answer_at_all_is_said_too(sweep, report):
    shorten(sweep, "pydocs_3k", "summarisation", 0)
    assert "and 0.0 after pydocs_3k." in cautions(report(sweep).table)[0]


def test_lengths_of_nothing_are_shown_too(sweep, report):
    for data in ("pydocs_1k", "pydocs_2k", "pydocs_3k"):
        shorten(sweep, data, "summarisation", 0)
    made = report(sweep)
    assert cautions(made.table) == []
    assert "<td>0.0</td>" in page(made.sweep, made.grid, made.table)


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
