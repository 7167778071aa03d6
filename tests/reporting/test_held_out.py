"""`nll` and held-out rows in a report: direction, runs without them, comparisons by origin, scores by source."""

import json

import numpy as np
import pytest
from rich.console import Console

from tests.browser import needs_browser, opened
from tests.reporting.sweeps import change_rows, editing, write_table
from tometune.evaluation.metrics import averaged
from tometune.reporting.analysis import build
from tometune.reporting.cautions import cautions
from tometune.reporting.conclusions import answers
from tometune.reporting.question import Verdict, decide
from tometune.reporting.report_files import as_csv, as_markdown, print_report, write
from tometune.runs.finished import score_problems

TASKS = ("qa", "summaries", "held_out_base", "held_out_pool")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report of a table with a `nll` that falls by 0.05 per size, for held-out rows of the pool by 0.1."""
    sweep = tmp_path_factory.mktemp("held_out") / "sweep"
    write_table(sweep, effect=0.0, deviation=0.002, tasks=TASKS)
    for path in sweep.glob("*/eval/*/*.jsonl"):
        name = path.parents[2].name
        size, seed = int(name.split("pydocs_")[1][0]), int(name.split("-s")[1][0])
        noise = np.random.default_rng([size, seed]).normal(0, 0.002)
        step = 0.1 if path.stem == "held_out_pool" else 0.05
        gain = 0.0 if path.parent.name == "base" else step * size + noise

        def change(row, gain=gain, task=path.stem):
            number = int(row["id"].rpartition("-")[2])
            row["scores"]["nll"] = 1.5 + number / 100 - gain
            if task.startswith("held_out"):
                row["source"] = ("math", "math", "code", "chat")[number % 4]

        change_rows(path, change)
    return build(sweep, 1_000, 0.95)


def test_a_lower_nll_is_an_improvement_in_words(made, monkeypatch):
    table, names = made.table, "NLL, NLL held_out_base and NLL held_out_pool"
    (answer,) = answers(table)
    assert answer.verdict == f"Yes in {names}; no significant difference otherwise."
    assert any("lower is better" in sentence for sentence in answer.sentences)
    required = "pydocs_3k>pydocs_1k:nll/held_out_pool<=-0.1"
    assert decide([required], table)[0] is Verdict.shown
    renamed = json.loads(json.dumps(table).replace("pydocs_3k", "pydocs_3k-held8").replace('k"', 'k-held8"'))
    assert decide([required], renamed)[0] is Verdict.shown, "held-out rows rename the mixes"
    gains = [table["rows"][-1]["gain"][metric]["delta"] for metric in ("nll", "nll/held_out_pool")]
    assert gains == [pytest.approx(-0.15, abs=0.01), pytest.approx(-0.3, abs=0.01)]
    monkeypatch.setattr("tometune.evaluation.metrics.LOWER_IS_BETTER", ())
    assert answers(table)[0].verdict == f"No: worse in {names}, no significant difference otherwise."


def test_held_out_rows_are_compared_by_origin_and_are_in_no_mean(made):
    table = made.table
    assert table["metrics"] == ["rouge1", "rouge2", "rougeL", "nll", "nll/held_out_base", "nll/held_out_pool"]
    assert averaged(TASKS) == ["qa", "summaries"]
    assert averaged(TASKS[2:]) == list(TASKS[2:])
    for row in table["rows"]:
        for metric in ("rougeL", "nll"):
            own = [row["tasks"][task][metric]["mean"] for task in ("qa", "summaries")]
            assert row[metric]["mean"] == pytest.approx(sum(own) / 2, abs=1e-5)
        for task in TASKS[2:]:
            assert row[f"nll/{task}"] == row["tasks"][task]["nll"]
    by_metric = {entry["metric"]: entry for entry in table["comparisons"] if entry["a"] == "pydocs_3k"}
    twice = pytest.approx(2 * by_metric["nll/held_out_base"]["delta"], abs=0.01)
    assert by_metric["nll/held_out_pool"]["delta"] == twice
    assert by_metric["nll/held_out_pool"]["p_holm"] is not None
    assert "3 pairs of cells × 6 metrics" in table["family"]
    (note,) = [text for text in cautions(table) if "held-out" in text]
    assert "Scored: 30 held out base, 30 held out pool." in note


def test_they_are_shown_by_source(made, page, capsys):
    table, counts = made.table, {"chat": 7, "code": 7, "math": 16}
    assert table["sources"] == {f"{task}/{source}": n for task in TASKS[2:] for source, n in counts.items()}
    row = table["rows"][-1]
    weighted = sum(row["sources"][f"held_out_pool/{source}"]["mean"] * n for source, n in counts.items())
    assert weighted / 30 == pytest.approx(row["tasks"]["held_out_pool"]["nll"]["mean"], abs=1e-5)
    html = page(made)
    assert "<h2>Held-out loss by source</h2>" in html
    assert "pool/math" in html
    assert "NLL held_out_pool" in as_markdown(table)
    assert "nll/held_out_pool_sd" in as_csv(table)
    print_report(table, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [" ".join(line.split()) for line in lines if " seeds " in line and " sd " in line]
    assert heads == ["model data seeds ROUGE-1 ROUGE-2 ROUGE-L sd 1 sd 2 sd L", "model data seeds NLL sd NLL"]
    assert sum("pydocs_2k " in line for line in lines[:20]) == 2, "no name is broken"
    long = {**table, "rows": [{**row, "data": row["data"] + " lora.r=128"} for row in table["rows"]]}
    print_report(long, Console(width=80))
    out = capsys.readouterr().out
    assert ("sweep, tiny" in out, out.count("pydocs_2k lora.r=128 ")) == (True, 2), "the title names the model"


@needs_browser
def test_no_table_of_a_report_with_held_out_rows_scrolls_at_1280_pixels(made):
    wider = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
    with opened(write(made).as_uri()) as seen:
        seen.page.set_viewport_size({"width": 1280, "height": 1000})
        assert seen.page.evaluate(wider) == []


def test_runs_of_an_older_version_are_compared_without_it(sweep, page):
    older, *others = sorted(sweep.iterdir())
    for path in (path for run in others for path in run.glob("eval/*/*.jsonl")):
        change_rows(path, lambda row: row["scores"].update(nll=1.0))
    with editing(older) as record:
        assert not [name for name, _ in score_problems(older, record) if name.endswith(".jsonl")], "it stays completed"
    made = build(sweep, 100, 0.95)
    assert made.table["metrics"] == ["rouge1", "rouge2", "rougeL"]
    assert "Held-out loss" not in page(made)
    assert [text for text in cautions(made.table) if text.startswith("NLL is left out, because some runs lack it")]
    assert "sources" not in made.table
