"""What table.json says of runs with known scores. tests/golden/tables.txt has the bytes of two whole tables."""

import json
import shutil

import numpy as np
import pytest

from tests.reporting.sweeps import METRICS, edit, write_run
from tometune.reporting.analysis import build
from tometune.reporting.cautions import cautions
from tometune.reporting.conclusions import answers, headline


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


def test_one_seed_has_no_deviation_and_no_test(one_seed):
    table = one_seed.table
    assert all(row[metric]["std"] is None for row in table["rows"] for metric in METRICS)
    found = compared(table, "tiny pydocs_2k", "tiny pydocs_1k")
    assert (found["p"], found["p_holm"], found["seeds_needed"]) == (None, None, None)
    assert found["interval_over"] == "examples"
    assert table["family"] == "Holm correction over 0 tests: 0 pairs of cells × 3 metrics"
    assert headline(table) == [[("small pydocs_3k", "small pydocs_1k")], [("tiny pydocs_3k", "tiny pydocs_1k")]]
    first = answers(table)[0]
    assert (first.question, first.verdict) == (
        "small: is pydocs_3k better than pydocs_1k?",
        "A single seed cannot tell.",
    )
    assert "p = " not in " ".join(first.sentences)
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


def test_variance_by_cause(tmp_path, report):
    for stream, spread in (("data", 0.05), ("order", 0.0)):
        for value in range(1, 9):
            write_run(tmp_path, level=0.4 + spread * (value % 2), streams={stream: value}, noise=0.001)
    write_run(tmp_path, noise=0.001)
    data, order = report(tmp_path).table["variance"]
    assert (data["stream"], data["cause"], data["runs"], data["freedom"]) == ("seeds.data", "data sample", 9, 8)
    expected = np.std([0.45, 0.4] * 4 + [0.4], ddof=1)
    assert data["rouge1"]["std"] == pytest.approx(expected, rel=0.05)
    assert data["rouge1"]["ci_low"] < expected < data["rouge1"]["ci_high"]
    assert (order["stream"], order["rouge1"]["std"] < 0.001) == ("seeds.order", True)


def test_the_same_runs_give_the_same_bytes(sweep, table, report, tmp_path):
    copy = tmp_path / "elsewhere" / "table"
    for folder in sorted(sweep.iterdir(), reverse=True):
        shutil.copytree(folder, copy / folder.name)
        edit(copy / folder.name, started="2030-01-01T00:00:00+00:00", attempts=4)
    assert json.dumps(report(copy).table) == json.dumps(table)
