"""What a report says about controls: what is held constant, and the effect of each source."""

import re
from pathlib import Path
from shutil import rmtree

import pytest

from tests.reporting.sweeps import editing, write_run
from tometune.config.report import ReportConfig
from tometune.reporting.analysis import Report, build
from tometune.reporting.conclusions import answers, source_effects
from tometune.reporting.controls import capacity_line, control_sentences
from tometune.reporting.figures import curve, forest
from tometune.reporting.html import draw
from tometune.reporting.report_files import as_html, as_markdown

EFFECTS = {"good": 0.05, "bad": -0.04}
"""By source, what a mix loses without it."""


def sources(folder: Path, key: str = "without", **question: float) -> Report:
    sign = -1 if key == "without" else 1
    for seed in range(3):
        pool = {"data.pool.draw": True, "sweep.design": "One source is left out."}
        runs = [write_run(folder, "all-sources", 2000, seed, 0.4 + 0.001 * seed, settings=pool, noise=0.03)]
        for name, effect in EFFECTS.items():
            level = 0.4 + sign * effect + 0.002 * ((seed + 1) % 3)
            settings = {**pool, f"data.pool.{key}": [name]}
            runs.append(write_run(folder, f"{key}-{name}", 2000, seed, level, settings=settings, noise=0.03))
        for run in runs:
            with editing(run) as record:
                record["train"] |= {
                    "trained_tokens": 50_000 + len(run.name),
                    "trainable_parameters": 25_000,
                    "epochs": 1.0,
                }
    return build(folder, 2000, 0.95, ReportConfig(primary="rougeL", **question))


@pytest.mark.parametrize(
    ("key", "question", "verdict", "having"),
    [
        ("without", "Which sources matter?", "Helps: good. Harms: bad.", "this source in the mix"),
        (
            "only",
            "Is a single source better than all of them together?",
            "Better: good. Worse: bad.",
            "only this source instead of all",
        ),
    ],
)
def test_the_effect_of_a_source_has_the_same_sign_whether_it_is_left_out_or_alone(
    tmp_path: Path, key: str, question: str, verdict: str, having: str
) -> None:
    report = sources(tmp_path / key, key)
    assert {(entry["a"], entry["b"]) for entry in report.table["comparisons"]} == {
        (f"{key}-{name}", "all-sources") for name in EFFECTS
    }, "arms are compared with the mix of all sources only"
    for name, found in source_effects(report.table).items():
        for entry in found.values():
            assert entry["delta"] == pytest.approx(EFFECTS[name], abs=0.02)
            assert entry["ci_low"] < entry["delta"] < entry["ci_high"]
    text = as_markdown(report.table)
    assert "One source is left out. Settings that differ between cells: data.pool." in text
    assert "The same in all cells, within 2%: rows (2,000), steps (200), epochs (1), tokens read (180,000), " in text
    assert "adapter parameters (25,000)" in text
    (answer,) = answers(report.table)
    assert (answer.question, answer.verdict) == (question, verdict)
    numbers = "with 95% intervals and Holm-corrected p-values"
    assert answer.sentences[0].startswith(f"Effect on ROUGE-L of having {having}, {numbers}: good +0.0")
    assert ", p = 0.0" in answer.sentences[0]
    page = as_html(report)
    assert page.count('id="forest0-figure_1"') == 1
    assert "<td>0.5</td>" in page, "adapter parameters per trained token"
    assert "ROUGE-L: good +0." in (forest(report.table) or "")


def test_an_arm_with_the_same_rows_as_the_mix_of_all_sources_shows_nothing(tmp_path: Path) -> None:
    report = sources(tmp_path / "same")
    for run in (tmp_path / "same").glob("*good*"):
        with editing(run) as record:
            record["data"]["digest"] = f"all-sources{record['seed']}"
    report = build(tmp_path / "same", 200, 0.95)
    assert "without-good has the same rows as all-sources, so it shows nothing." in report.table["notes"]


@pytest.mark.parametrize(
    ("good", "bad", "question", "verdict"),
    [
        (0.0, -0.04, {}, "Harms: bad. No significant difference otherwise."),
        (0.0, 0.0, {}, "Undecided: no significant difference."),
        (0.0, 0.0, {"margin": 0.03}, "The same within 0.03: bad and good."),
        (0.0, -0.1, {"margin": 0.03}, "Harms: bad. No significant difference otherwise. The same within 0.03: good."),
    ],
)
def test_a_source_without_an_effect(tmp_path: Path, monkeypatch, good, bad, question, verdict) -> None:
    monkeypatch.setitem(EFFECTS, "good", good)
    monkeypatch.setitem(EFFECTS, "bad", bad)
    (answer,) = answers(sources(tmp_path / "made", **question).table)
    assert answer.verdict == verdict


def test_an_arm_of_a_single_seed_has_no_test_and_the_others_have_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    sources(folder)
    for seed in (1, 2):
        (run,) = folder.glob(f"*without-good-s{seed}-*")
        rmtree(run)
    (answer,) = answers(build(folder, 2000, 0.95, ReportConfig(primary="rougeL")).table)
    assert answer.verdict == "Harms: bad. Only one seed: good."
    assert re.search(r"good \+0\.\d+ \([^()]*, a single seed\)", answer.sentences[0])
    assert re.search(r"bad −0\.\d+ \([^()]*, p [<=] [\d.]+\)", answer.sentences[0])


def test_what_differs_is_said(tmp_path: Path, table_report: Report) -> None:
    for seed in range(2):
        for rows in (1000, 3000, 10_000, 30_000):
            write_run(tmp_path / "sizes", f"rows-{rows}", rows, seed, 0.3 + rows / 1e6)
    table = build(tmp_path / "sizes", 200, 0.95).table
    assert control_sentences(table) == [
        "Different: rows (1,000 to 30,000), steps (100 to 3,000) and tokens read (90,000 to 2.7 million)."
    ]
    picture = draw(curve, table)
    assert picture is not None
    assert "Mean scores over rows" in picture
    assert all(f">{text}</text>" in picture for text in ("1k", "3k", "10k", "30k"))
    assert curve(table_report.table) is forest(table_report.table) is None


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        ((300_000, 18_000_000, 4_884_480, True), "300,000 rows train 18 million tokens with 4.88 million adapter"),
        ((10, 900, 1_234, False), "10 rows train 900 tokens with 1,234 "),
        ((10, 900, 9, True, 2.5), "10 rows, read 2.50 times, train 900 tokens with 9 adapter"),
        ((10, 90, 9, True, 0.3), "10 rows, of which 30% are read, train 90 tokens with 9 adapter"),
    ],
)
def test_tokens_and_parameters_in_words(numbers: tuple, line: str) -> None:
    assert capacity_line(*numbers) == f"{line.rstrip()} parameters"


def test_an_arm_of_a_few_sources_names_them(tmp_path: Path) -> None:
    for names in ([], ["a", "b", "c"], [*"abcd"]):
        pool = {"data.pool.draw": True, "sweep.design": "x", "data.pool.without": names}
        for seed in range(2):
            write_run(tmp_path / "arms", f"without-{len(names)}", 2000, seed, 0.4 - len(names) / 50, settings=pool)
    assert list(source_effects(build(tmp_path / "arms", 200, 0.95).table)) == ["a + b + c", "4 others"]


def test_small_learning_rates_are_not_rounded(tmp_path: Path) -> None:
    for rate in (2.5e-7, 4e-7):
        write_run(tmp_path / "rates", "mix", 1000, 0, settings={"trainer.learning_rate": rate})
    rows = build(tmp_path / "rates", 200, 0.95).table["rows"]
    assert {row["settings"].get("trainer.learning_rate") for row in rows if row["stage"] == "tuned"} == {2.5e-7, 4e-7}


def test_a_mix_without_a_pool_differs_in_no_setting_of_it(tmp_path: Path) -> None:
    for mix, rows, pool in (("mix_1k", 1000, None), ("mix_2k", 2000, {"order": "random"}), ("mix_2k_top", 2000, {})):
        own = {"data.pool": None if pool is None else {"draw": True, "kind": "hub", "id": "a/b", **pool}}
        for seed in range(2):
            write_run(tmp_path / "pools", mix, rows, seed, settings=own)
    assert build(tmp_path / "pools", 200, 0.95).table["controls"]["settings"] == []
    write_run(tmp_path / "pools", "mix_2k_long", 2000, 0, settings={"data.pool": {"draw": True, "order": "longest"}})
    assert build(tmp_path / "pools", 200, 0.95).table["controls"]["settings"] == ["data.pool.order"]
