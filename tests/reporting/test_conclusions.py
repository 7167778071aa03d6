"""Answers and cautions of synthetic sweeps. tests/golden/tables.txt has the whole text of two."""

import json
from pathlib import Path

import pytest

from tests.reporting.sweeps import TASKS, change_rows, editing, write_run, write_table
from tometune.config.report import ReportConfig
from tometune.reporting.analysis import build
from tometune.reporting.cautions import cautions
from tometune.reporting.conclusions import answers
from tometune.reporting.report_files import as_html

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        ({"effect": 0.08, "deviation": 0.002}, "Yes."),
        ({"effect": 0.0, "deviation": 0.02, "examples": 60}, "Undecided: no significant difference."),
        ({"effect": -0.08, "deviation": 0.002}, "No, it is worse."),
    ],
)
def test_a_planted_effect_is_found_and_its_absence_is_not(tmp_path, report, made, verdict):
    write_table(tmp_path, **made)
    table = report(tmp_path).table
    (answer,) = answers(table)
    assert (answer.question, answer.verdict) == ("Is pydocs_3k better than pydocs_1k?", verdict)
    text = " ".join(answer.sentences)
    assert ("; pydocs_3k vs. pydocs_2k (" in text) == ("Undecided" not in verdict)
    assert cautions(table) == []


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ((0.4, 0.5, 0.4), "Yes: 1k rows (ROUGE-L). No significant difference otherwise."),
        ((0.4, 0.5, 0.3), "Yes: 1k rows (ROUGE-L). It harms: 10k rows (ROUGE-L)."),
        ((0.4, 0.4, 0.4), "Undecided: no significant difference."),
    ],
)
def test_whether_any_amount_of_added_rows_helps_is_the_first_answer(tmp_path, levels, verdict):
    for number, (name, level) in enumerate(
        zip(("mine_4k", "mine_4k_plus_1k", "mine_4k_plus_10k"), levels, strict=True)
    ):
        for seed in range(3):
            write_run(tmp_path, name, 4000 * (number + 1), seed, level)
    table = build(tmp_path, 500, 0.95, ReportConfig(primary=">mine_4k:rougeL")).table
    first, *others = answers(table)
    assert (first.question, first.verdict) == ("Does adding rows to mine_4k help?", verdict)
    assert first.sentences[0].startswith(
        "Difference from mine_4k alone, with 95% intervals and Holm-corrected p-values: 1k rows (ROUGE-L) "
    )
    assert "more steps here: 400 for mine_4k, up to 1,200 with added rows" in first.sentences[1]
    assert first.sentences[1].endswith("trainer.max_steps=null trainer.max_tokens=1080000.")
    assert [each.question for each in others] == [f"Is mine_4k_plus_{n} better than mine_4k?" for n in ("1k", "10k")]


@pytest.mark.parametrize(("tokens", "cautioned"), [(4, True), (18, False)])
def test_much_shorter_answers_are_a_caution(sweep, report, tokens, cautioned):
    references = ["no such words", "the cat sat on the mat and looked at the moon"]
    for path in sweep.glob("tiny*/eval/*/question_answering.jsonl"):
        short = "pydocs_3k" in str(path)
        texts = {"prediction": "the cat" if short else "the dog sat on a mat", "references": references}
        change_rows(path, lambda row, texts=texts: row.update(texts))
        with editing(path.parents[2]) as record:
            entry = record["eval"]["tuned"]["tasks"]["question_answering"]
            entry["tokens"] = (tokens if short else 20) * entry["examples"]
    made = report(sweep)
    assert [row["answer_tokens"]["question_answering"] for row in made.table["rows"]] == [20, 20, 20, tokens]
    means = "20.0 for pydocs_1k, 20.0 for pydocs_2k and 4.0 for pydocs_3k"
    start = f"Answer length on question_answering in tokens: {means}. ROUGE penalises answers"
    assert [text.startswith(start) for text in cautions(made.table)] == [True] * cautioned
    # Against the first two words of the second reference, "the cat" is all of them.
    matched = [[entry["cells"][f"pydocs_{n}k"]["rougeL"] for n in (1, 3)] for entry in made.table["length_matched"]]
    assert matched == [[pytest.approx(4 / 6, abs=1e-6), 1.0]] * cautioned
    if cautioned:
        cut = "ROUGE-L is 0.667 for pydocs_1k, 0.667 for pydocs_2k and 1.000 for pydocs_3k."
        assert cautions(made.table)[0].endswith(f"cut to the words of the shorter one, {cut}")
    html = as_html(made)
    assert "<h2>Answer length</h2>" in html
    assert ("question answering, same length" in html) == cautioned


def test_runs_without_base_scores_or_token_counts(sweep, report):
    for path in sorted(sweep.iterdir()):
        with editing(path) as record:
            if "pydocs_1k" in path.name:
                del record["eval"]["base"]
            for task in TASKS if "pydocs_3k" in path.name else ():
                record["eval"]["tuned"]["tasks"][task]["tokens"] = None
    made = report(sweep)
    first, *_, last = made.table["rows"]
    assert (first["cell"], first["answer_tokens"]["summarisation"]) == ("before tiny", 20)
    assert last["answer_tokens"]["summarisation"] is None
    assert cautions(made.table) == []
    assert "<td>–</td>" in as_html(made)


def test_only_what_explains_a_number_is_said_once():
    """Two pairs with the same p-value and the same need of seeds keep their sentences."""
    table = json.loads((RESULTS / "which_data" / "random_vs_best" / "table.json").read_text(encoding="utf-8"))
    for entry in table["comparisons"]:
        if entry["primary"]:
            need = entry["seeds_needed"] | {"n": 4, "low": 3, "high": 68}
            entry.update(p=0.03, p_holm=0.12, seeds_needed=need)
    texts = [" ".join(answer.sentences) for answer in answers(table)]
    assert len(texts) == 4
    assert all("Seeds per arm needed" in text and "Before the correction" in text for text in texts)
    assert [text.count("lower is better") for text in texts] == [1, 0, 0, 0]
    assert [text.count("The ranges reflect") for text in texts] == [1, 0, 0, 0]
