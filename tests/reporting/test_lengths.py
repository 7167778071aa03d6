"""How long answers are is told beside their scores, and said where it differs much."""

import json

from tometune.reporting.lengths import answer_tokens
from tometune.reporting.page import page
from tometune.reporting.words import cautions


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
    assert said.startswith(
        "Length: an answer of question_answering has 4 tokens after pydocs_3k and 20 after pydocs_1k;"
    )
    assert "Length of the answers" in page(made.sweep, made.grid, made.table)


def test_a_tenth_shorter_is_no_matter(sweep, report):
    shorten(sweep, "pydocs_3k", "question_answering", 18)
    assert cautions(report(sweep).table) == []


def test_no_answer_at_all_is_said_too(sweep, report):
    shorten(sweep, "pydocs_3k", "summarisation", 0)
    assert "has 0 tokens after pydocs_3k" in cautions(report(sweep).table)[0]


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
