"""Tables, answers and cautions of runs with known scores. tests/golden/tables.txt has the bytes of two whole tables."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.reporting.sweeps import METRICS, TASKS, change_rows, edit, editing, write_run, write_table
from tometune.config.report import ReportConfig
from tometune.evaluation.statistics import seeds_needed
from tometune.reporting.analysis import build
from tometune.reporting.cautions import cautions
from tometune.reporting.conclusions import answers, headline

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def rows(table):
    return {row["cell"]: row for row in table["rows"]}


def compared(table, a, b, metric="rougeL"):
    return next(c for c in table["comparisons"] if (c["a"], c["b"], c["metric"]) == (a, b, metric))


def test_means_and_deviations_are_plain(table, table_report):
    row = rows(table)["pydocs_2k"]
    records = [json.loads(path.read_text()) for path in table_report.sweep.folder.glob("*pydocs_2k*/run.json")]
    for metric in METRICS:
        values = [record["eval"]["tuned"][metric] for record in records]
        assert row[metric]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert row[metric]["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert row[metric]["ci_low"] < row[metric]["mean"] < row[metric]["ci_high"]
        assert 0 < row["gain"][metric]["ci_low"] < row["gain"][metric]["delta"] < row["gain"][metric]["ci_high"]


def test_a_planted_effect_is_found_and_its_absence_is_not(table, tmp_path):
    write_table(tmp_path, effect=0.0, deviation=0.02, examples=60)
    verdicts = {"Yes.": table, "Undecided: no significant difference.": build(tmp_path, 1_000, 0.95).table}
    for verdict, made in verdicts.items():
        (answer,) = answers(made)
        assert (answer.question, answer.verdict) == ("Is pydocs_3k better than pydocs_1k?", verdict)
        assert ("; pydocs_3k vs. pydocs_2k (" in answer.sentences[-1]) == (verdict == "Yes.")
        assert cautions(made) == []


def test_one_seed_has_no_deviation_and_no_test(one_seed):
    table = one_seed.table
    assert all(row[metric]["std"] is None for row in table["rows"] for metric in METRICS)
    found = compared(table, "tiny pydocs_2k", "tiny pydocs_1k")
    assert (found["p"], found["p_holm"], found["seeds_needed"]) == (None, None, None)
    assert found["interval_over"] == "examples"
    assert table["family"] == "Holm correction over 0 tests: 0 pairs of cells × 3 metrics"
    assert headline(table) == [[("small pydocs_3k", "small pydocs_1k")], [("tiny pydocs_3k", "tiny pydocs_1k")]]
    question, verdict, sentences = answers(table)[0]
    assert (question, verdict) == ("small: is pydocs_3k better than pydocs_1k?", "A single seed cannot tell.")
    assert "p = " not in " ".join(sentences)
    assert any("A single seed, so the deviation is unknown" in text for text in cautions(table))


def test_a_missing_seed_breaks_the_pairs_and_is_a_caution(sweep):
    edit(sorted(sweep.iterdir())[0], status="failed", error="no")
    table = build(sweep, 100, 0.95).table
    row, found = rows(table)["pydocs_1k"], compared(table, "pydocs_3k", "pydocs_1k")
    assert (row["seeds"], row["seeds_expected"]) == (2, 3)
    assert [entry["reason"] for entry in table["missing"]] == ["failed: no"]
    assert (found["paired"], found["seeds"]) == (False, [3, 2])
    assert found["delta"] == pytest.approx(rows(table)["pydocs_3k"]["rougeL"]["mean"] - row["rougeL"]["mean"], abs=2e-6)
    text = " ".join(cautions(table))
    assert "Missing runs: 1; the means are over the others." in text
    assert "independent samples" in text
    assert "eval.resamples=100 is too small" in text


def test_variance_by_cause(tmp_path):
    for stream, spread in (("data", 0.05), ("order", 0.0)):
        for value in range(1, 5):
            write_run(tmp_path, level=0.4 + spread * (value % 2), streams={stream: value}, noise=0.001)
    write_run(tmp_path, noise=0.001)
    data, order = build(tmp_path, 100, 0.95).table["variance"]
    assert (data["stream"], data["cause"], data["runs"], data["freedom"]) == ("seeds.data", "data sample", 5, 4)
    expected = np.std([0.45, 0.4] * 2 + [0.4], ddof=1)
    assert data["rouge1"]["std"] == pytest.approx(expected, rel=0.05)
    assert data["rouge1"]["ci_low"] < expected < data["rouge1"]["ci_high"]
    assert (order["stream"], order["rouge1"]["std"] < 0.001) == ("seeds.order", True)


def test_whether_any_amount_of_added_rows_helps_is_the_first_answer(tmp_path):
    for number, (name, level) in enumerate((("mine_4k", 0.4), ("mine_4k_plus_1k", 0.5), ("mine_4k_plus_10k", 0.3))):
        for seed in range(3):
            write_run(tmp_path, name, 4000 * (number + 1), seed, level)
    first, *others = answers(build(tmp_path, 500, 0.95, ReportConfig(primary=">mine_4k:rougeL")).table)
    assert first.question == "Does adding rows to mine_4k help?"
    assert first.verdict == "Yes: 1k rows (ROUGE-L). It harms: 10k rows (ROUGE-L)."
    assert first.sentences[0].startswith(
        "Difference from mine_4k alone, with 95% intervals and Holm-corrected p-values: 1k rows (ROUGE-L) "
    )
    assert "more steps here: 400 for mine_4k, up to 1,200 with added rows" in first.sentences[1]
    assert first.sentences[1].endswith("trainer.max_steps=null trainer.max_tokens=1080000.")
    assert [each.question for each in others] == [f"Is mine_4k_plus_{n} better than mine_4k?" for n in ("1k", "10k")]


def test_added_rows_are_answered_for_each_model(tmp_path):
    for model, gain in (("large", 0.1), ("small", -0.1)):
        for number, name in enumerate(("mine_4k", "mine_4k_plus_1k")):
            for seed in range(3):
                write_run(tmp_path, name, 4000 + 1000 * number, seed, 0.4 + gain * number, model=model)
    found = answers(build(tmp_path, 500, 0.95, ReportConfig(primary="rougeL")).table)
    assert [(each.question, each.verdict) for each in found[:2]] == [
        ("Does adding rows to large mine_4k help?", "Yes: 1k rows (ROUGE-L)."),
        ("Does adding rows to small mine_4k help?", "It harms: 1k rows (ROUGE-L)."),
    ]


def test_more_seeds_do_not_reduce_the_error_over_examples(tmp_path):
    """The number of seeds is that of `plan=true`, on the same deviation and error."""
    write_table(tmp_path, effect=0.01, examples=60, deviation=0.004)
    more = []
    for entry in build(tmp_path, 500, 0.95).table["comparisons"]:
        need, error = entry["seeds_needed"], entry["examples_deviation"]
        expected = seeds_needed(need["deviation"], 0.01, error=error)
        assert need["n"] == expected
        more.append(expected - seeds_needed(need["deviation"], 0.01))
    assert max(more) > 0


def test_much_shorter_answers_are_a_caution(sweep, page):
    """Answers of 4 tokens, where others have 20, but not of 11."""
    references = ["no such words", "the cat sat on the mat and looked at the moon"]
    for path in sweep.glob("tiny*/eval/*/question_answering.jsonl"):
        short = "pydocs_3k" in str(path)
        texts = {"prediction": "the cat" if short else "the dog sat on a mat", "references": references}
        change_rows(path, lambda row, texts=texts: row.update(texts))
        with editing(path.parents[2]) as record:
            tasks = record["eval"]["tuned"]["tasks"]
            tasks["question_answering"]["tokens"] = (4 if short else 20) * 30
            tasks["summarisation"]["tokens"] = (11 if short else 20) * 30
    made = build(sweep, 1_000, 0.95)
    assert [row["answer_tokens"]["question_answering"] for row in made.table["rows"]] == [20, 20, 20, 4]
    # Against the first two words of the second reference, "the cat" is all of them.
    (matched,) = made.table["length_matched"]
    assert [matched["cells"][f"pydocs_{n}k"]["rougeL"] for n in (1, 3)] == [pytest.approx(4 / 6, abs=1e-6), 1.0]
    (text,) = cautions(made.table)
    means = "20.0 for pydocs_1k, 20.0 for pydocs_2k and 4.0 for pydocs_3k"
    assert text.startswith(f"Answer length on question_answering in tokens: {means}. ROUGE penalises answers")
    cut = "ROUGE-L is 0.667 for pydocs_1k, 0.667 for pydocs_2k and 1.000 for pydocs_3k."
    assert text.endswith(f"cut to the words of the shorter one, {cut}")
    html = page(made)
    assert "<h2>Answer length</h2>" in html
    assert "question answering, same length" in html
    assert "summarisation, same length" not in html


def test_runs_without_base_scores_or_token_counts(sweep, page):
    for path in sorted(sweep.iterdir()):
        with editing(path) as record:
            if "pydocs_1k" in path.name:
                del record["eval"]["base"]
            for task in TASKS if "pydocs_3k" in path.name else ():
                record["eval"]["tuned"]["tasks"][task]["tokens"] = None
    made = build(sweep, 1_000, 0.95)
    first, *_, last = made.table["rows"]
    assert (first["cell"], first["answer_tokens"]["summarisation"]) == ("before tiny", 20)
    assert last["answer_tokens"]["summarisation"] is None
    assert cautions(made.table) == []
    assert "<td>–</td>" in page(made)


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


@pytest.mark.parametrize(
    ("error", "counts", "said", "smallest"),
    [
        (0.005, (None, None, None), "no number is enough for ROUGE-L.", "0.014 (ROUGE-L)"),
        (0.001, (None, 9, None), "about more than 100,000 for ROUGE-L (9 to more than 100,000).", None),
        (0.001, (4, 3, 68), "about 4 for ROUGE-L (3 to 68).", None),
    ],
)
def test_where_no_number_of_seeds_is_enough_more_examples_are_asked_for(error, counts, said, smallest):
    table = json.loads((RESULTS / "which_data" / "random_vs_best" / "table.json").read_text(encoding="utf-8"))
    for entry in table["comparisons"]:
        entry["primary"] = entry["metric"] in ("rouge1", "rougeL")
        now, deviation = (counts, error) if entry["metric"] == "rougeL" else ((4, 4, 4), 0.001)
        entry["seeds_needed"] |= dict(zip(("n", "low", "high"), now, strict=True))
        entry["examples_deviation"] = deviation
    for answer in answers(table):
        (seeds,) = (text for text in answer.sentences if text.startswith("Seeds per arm needed"))
        assert seeds == f"Seeds per arm needed to detect a difference of 0.01 with 80% power: 4 for ROUGE-1, {said}"
        at_best = f"With these examples, many seeds detect a difference of {smallest} at best; score more examples."
        assert (at_best in answer.sentences) == (smallest is not None)
        assert any("at best" in text for text in answer.sentences) == (smallest is not None)
