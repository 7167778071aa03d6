"""The question of a sweep: primary and exploratory comparisons, equivalence, and the verdict on `require`."""

import json
import re

import pytest

from tests.reporting.sweeps import change_rows, write_run, write_table
from tometune.common.errors import UserError
from tometune.config.report import ReportConfig
from tometune.config.report import asked as read
from tometune.reporting.analysis import build
from tometune.reporting.cautions import cautions
from tometune.reporting.conclusions import answers
from tometune.reporting.question import Verdict, decide
from tometune.reporting.report_files import as_markdown

PAIR = "pydocs_3k>pydocs_1k"


def record(sweep, primary, margin=None):
    question = {"primary": primary, "margin": margin}
    (sweep / "sweep.json").write_text(json.dumps({"schema": 1, "question": question, "cells": []}))


def asked(sweep, **settings):
    return build(sweep, 1_000, 0.95, ReportConfig(**settings))


def p_values(table, name="p_holm"):
    return {(each["a"][7], each["b"][7], each["metric"]): each[name] for each in table["comparisons"]}


def test_without_a_question_every_comparison_is_primary_and_its_interval_agrees_with_its_p_value(table):
    assert table["question"] == {"primary": [], "margin": None, "recorded": None}
    assert all(entry["primary"] and "equivalence" not in entry for entry in table["comparisons"])
    for entry in table["comparisons"]:
        assert (entry["ci_low_holm"] > 0 or entry["ci_high_holm"] < 0) == (entry["p_holm"] < 0.05)
        assert entry["ci_low_holm"] < entry["ci_low"] < entry["ci_high"] < entry["ci_high_holm"]


def test_only_primary_comparisons_are_corrected_and_the_others_are_exploratory(sweep, table, page):
    record(sweep, ["rougeL"])
    made = asked(sweep)
    corrected, raw = p_values(made.table), p_values(table, "p")
    assert {key for key, p in corrected.items() if p is not None} == {key for key in raw if key[2] == "rougeL"}
    assert max(p for p in corrected.values() if p is not None) < 0.03, "of three tests, not of nine"
    assert made.table["family"] == "Holm correction over the 3 primary of all tests (rougeL); 6 are exploratory"
    assert made.table["notes"] == []
    (answer,) = answers(made.table)
    assert (answer.verdict, answer.sentences[0].count("exploratory)")) == ("Yes.", 2)
    assert "exploratory)" in as_markdown(made.table)
    assert page(made).count('<td colspan="2">exploratory</td>') == 6

    record(sweep, [f"{PAIR}:rougeL", ">pydocs_1k:rouge2"])
    made = asked(sweep)
    chosen = {key for key, p in p_values(made.table).items() if p is not None}
    assert chosen == {("3", "1", "rougeL"), ("3", "1", "rouge2"), ("2", "1", "rouge2")}
    assert [each.question for each in answers(made.table)] == [
        f"Is {a} better than pydocs_1k?" for a in ("pydocs_2k", "pydocs_3k")
    ]


def test_a_question_that_was_changed_after_the_runs_or_never_recorded_is_a_caution(sweep):
    assert cautions(asked(sweep, primary="rouge1").table) == [
        "The question was not recorded before the runs. Before: all comparisons; now: rouge1."
    ]
    record(sweep, ["rougeL"])
    table = asked(sweep, primary=["rouge1"], margin=0.02).table
    (note,) = cautions(table)
    assert note.startswith("The question was changed after the runs started. Before: rougeL; now: rouge1 with the mar")
    assert table["question"]["recorded"] == {"primary": ["rougeL"], "margin": None}
    assert cautions(asked(sweep, primary="rougeL").table) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pydocs_3k>pydoc_1k", "no cell pydoc_1k; did you mean pydocs_1k, pydocs_2k? (cells: pydocs_1k, "),
        (f"{PAIR}:nll", "no metric nll (metrics: rouge1, rouge2, rougeL)"),
        ("pydocs_1k>pydocs_1k", "these cells are not compared, because"),
    ],
)
def test_a_question_or_requirement_that_names_no_comparison(sweep, text, problem):
    with pytest.raises(UserError) as error:
        asked(sweep, primary=text)
    assert str(error.value).startswith(f"report.primary={text}: {problem}")
    record(sweep, [text])  # the runs may be missing, so it is only a note
    made = asked(sweep)
    assert made.table["notes"][0].startswith(f"report.primary={text}: {problem}")
    assert answers(made.table)[:1] == []
    if ":" not in text:
        text += ":rougeL"
    with pytest.raises(UserError) as error:
        decide([f"{text}>=0"], made.table)
    assert str(error.value).startswith(f"require={text}>=0: {problem}")


@pytest.mark.parametrize(
    ("effect", "deviation", "margin", "verdict", "sentence"),
    [
        (0.0, 0.0005, 0.02, "No: the same within 0.02.", "(the same within 0.02, Holm-corrected p"),
        (0.0, 0.02, 0.01, "No worse by 0.01 or more.", "(no worse by 0.01 or more, Holm-corrected p"),
        (-0.01, 0.02, 0.01, "Undecided: no significant difference.", "(neither is shown)"),
        (0.08, 0.002, 0.01, "Yes.", "(no worse by 0.01 or more, Holm-corrected p"),
    ],
)
def test_equivalence(tmp_path, page, effect, deviation, margin, verdict, sentence):
    write_table(tmp_path, effect=effect, deviation=deviation, examples=100, noise=0.02)
    made = asked(tmp_path, primary=f"{PAIR}:rougeL", margin=margin)
    (answer,) = answers(made.table)
    tests = next(each["equivalence"] for each in made.table["comparisons"] if each["primary"])
    assert (answer.verdict, tests["margin"]) == (verdict, margin), tests
    assert any(sentence in text for text in answer.sentences if text.startswith("Equivalence by two one-sided tests, "))
    assert (tests["p_same_holm"] < 0.05) == (-margin < tests["ci_low"] and tests["ci_high"] < margin)
    assert (tests["p_no_worse_holm"] < 0.05) == (-margin < tests["ci_low"])
    assert "<h2>Equivalence</h2>" in page(made)


def test_where_less_is_better_no_worse_and_better_turn_round(sweep, monkeypatch):
    monkeypatch.setattr("tometune.evaluation.metrics.LOWER_IS_BETTER", ("rougeL",))
    table = asked(sweep, primary=f"{PAIR}:rougeL", margin=0.01).table
    tests = next(each["equivalence"] for each in table["comparisons"] if each["primary"])
    assert tests["p_no_worse_holm"] > 0.9
    assert answers(table)[0].verdict == "No, it is worse."


@pytest.mark.parametrize(
    ("required", "verdict"),
    [
        ([f"{PAIR}:rougeL>=-0.01"], Verdict.shown),
        (["pydocs_1k>pydocs_3k:rougeL<=-0.01"], Verdict.shown),
        ([f"{PAIR}:rougeL<=0.01"], Verdict.refuted),
        (["pydocs_1k>pydocs_3k:rougeL>=-0.01"], Verdict.refuted),
        ([f"{PAIR}:rougeL>=DELTA"], Verdict.undecided),
        ([f"{PAIR}:rouge1>=0", f"{PAIR}:rougeL>=DELTA"], Verdict.undecided),
        ([f"{PAIR}:rouge1>=0", f"{PAIR}:rougeL>=DELTA", f"{PAIR}:rouge2<=0"], Verdict.refuted),
    ],
)
def test_verdicts(table, required, verdict):
    delta = p_values(table, "delta")["3", "1", "rougeL"]
    found, line = decide([text.replace("DELTA", str(delta)) for text in required], table)
    assert found is verdict
    assert line.startswith(f"{verdict.name}: ")
    assert len(required) != 2 or "ROUGE-1" not in line, "only what decided it"


def test_the_line_of_a_verdict_and_what_decides_nothing(table, one_seed):
    line = decide([f"{PAIR}:rougeL>=-0.01"], table)[1]
    assert line.startswith("shown: pydocs_3k − pydocs_1k: ROUGE-L +0.1")
    assert "(95% interval +0.1" in line
    assert line.endswith("), required ≥ −0.01")
    assert "ROUGE-L −0.1" in decide(["pydocs_1k>pydocs_3k:rougeL>=-0.01"], table)[1]
    found, line = decide([f"{PAIR}:rougeL>=0"], {**table, "limited": True})
    assert (found, "; LIMIT: only some examples" in line) == (Verdict.undecided, True)
    found, line = decide(["tiny pydocs_3k>tiny pydocs_1k:rougeL>=-1"], one_seed.table)
    assert (found, line.endswith("a single seed, so the interval covers examples only")) == (Verdict.undecided, True)


def test_columns_of_the_harness_have_dots():
    found = read("A>B:exact_match.strict-match/harness_gsm8k>=-0.01")
    assert found is not None
    assert (found.a, found.b, found.metric) == ("A", "B", "exact_match.strict-match/harness_gsm8k")
    assert read("rougeL>=0.01").b is None, "no pair of rougeL and =0.01"


def test_clusters_widen_the_intervals_and_few_of_them_are_a_caution(tmp_path):
    write_table(tmp_path, examples=30)
    plain = asked(tmp_path).table
    assert "clusters" not in plain
    for path in tmp_path.glob("*/eval/*/summarisation.jsonl"):
        change_rows(path, lambda row: row.update(cluster=str(int(row["id"].rpartition("-")[2]) // 5)))
    table = asked(tmp_path).table
    assert table["clusters"] == {"summarisation": 6}
    assert cautions(table) == ["Only 6 clusters on summarisation: intervals over so few are too narrow."]
    alone = cautions({**table, "clusters": {"summarisation": 1}})
    assert len(alone) == 1
    assert alone[0].startswith("All scored examples of summarisation are in one cluster, so intervals leave out ")
    rows = [each["rows"][1]["tasks"] for each in (plain, table)]
    assert rows[0]["summarisation"] != rows[1]["summarisation"]
    assert rows[0]["data_to_text"] == rows[1]["data_to_text"]
    for path in tmp_path.glob("*s0*/eval/*/summarisation.jsonl"):  # made before the task had clusters
        path.write_text(path.read_text().replace('"cluster"', '"other"'))
    assert asked(tmp_path).table["clusters"] == {"summarisation": 6}


def test_signal_and_noise_are_the_published_ones_over_seeds(tmp_path, one_seed, one_cell, page):
    for size, levels in ((1, (0.40, 0.42)), (2, (0.50, 0.54))):
        for seed, level in enumerate(levels):
            made = {"noise": 0.0, "examples": 50, "tasks": ["qa", "sum"]}
            write_run(tmp_path, f"pydocs_{size}k", 1000 * size, seed, level, **made)
    made = asked(tmp_path)
    signal, rows = made.table["signal"], made.table["rows"]
    assert [(each["task"], each["metric"]) for each in signal[::3]] == [
        (task, "rouge1") for task in ("qa", "sum", None)
    ]
    means = [row["rouge1"]["mean"] for row in rows[1:]]
    noise = ((0.02**2 / 2 + 0.04**2 / 2) / 2) ** 0.5  # pooled over two cells with one degree of freedom each
    found = signal[6]
    assert found["signal"] == pytest.approx((means[1] - means[0]) / (sum(means) / 2), abs=1e-5)
    assert found["noise"] == pytest.approx(noise / (sum(means) / 2), rel=1e-2)
    assert found["ratio"] == pytest.approx(0.11 / noise, rel=1e-2)
    assert "<h2>Signal and noise</h2>" in page(made)
    assert (one_seed.table["signal"], one_cell.table["signal"]) == ([], [])


def test_signal_and_noise_are_below_their_own_metric(tmp_path, page):
    """A metric of one task has a value in the line of all tasks only."""
    for size in (1, 2):
        for seed in range(2):
            run = write_run(tmp_path, f"pydocs_{size}k", 1000 * size, seed, tasks=("held_out_base", "harness_x", "qa"))
            for path in run.glob("eval/*/*.jsonl"):

                def change(row, path=path):
                    scores = row["scores"]
                    row["scores"] = {"acc": scores["rouge1"]} if path.stem == "harness_x" else {**scores, "nll": 1.0}

                change_rows(path, change)
    made = asked(tmp_path)
    own = ["nll/held_out_base", "acc/harness_x"]
    assert made.table["metrics"][-2:] == own
    assert {entry["task"] for entry in made.table["signal"] if entry["metric"] in own} == {None}
    html = page(made)
    section = html[html.index("<h2>Signal and noise") :].partition("</table>")[0]
    lines = [re.findall("<td.*?</td>", line) for line in re.findall("<tr>(.*?)</tr>", section)[1:]]
    assert [(len(line), line[-2:] == ["<td></td>"] * 2) for line in lines] == [(7, True), (7, True), (7, False)]


def test_two_mixes_at_several_values_of_a_setting_are_one_question(tmp_path):
    for rank, level in ((8, 0.50), (16, 0.40), (256, 0.31)):
        for mix, rows, mean in (("mix_1k", 1000, 0.40), ("mix_3k", 3000, level)):
            for seed in range(3):
                noise = 0.002 * ((seed + rank + rows // 1000) % 3)
                options = {"settings": {"lora.r": rank}, "noise": 0.02, "examples": 60, "tasks": ["qa"]}
                write_run(tmp_path, mix, rows, seed, mean + noise, **options)
    record(tmp_path, ["data:rougeL"])
    table = asked(tmp_path).table
    assert sum(each["p_holm"] is not None for each in table["comparisons"]) == 3, "not the pairs of ranks"
    (answer,) = answers(table)
    assert answer.question == "Is mix_3k better than mix_1k at each lora.r?"
    assert answer.verdict == "Better at lora.r=8. Worse at lora.r=256. No significant difference otherwise."
    assert answer.sentences[0].startswith("ROUGE-L of mix_3k − mix_1k by lora.r, with 95% intervals and Holm-")
    assert answer.sentences[0].count(", p") == 3
