"""What a report says about controls: what is held constant, the effect of each source, and what explains a difference.

The control sweeps are synthetic, with a known difference.
"""

import json
import re
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from tests.reporting.simulated_explanations import PLANTED, verdicts
from tests.reporting.sweeps import editing, write_run
from tometune.common.files import write_json
from tometune.config.report import ReportConfig
from tometune.reporting.analysis import Report, build
from tometune.reporting.conclusions import answers, source_effects
from tometune.reporting.controls import capacity_line, control_sentences
from tometune.reporting.figures import curve, forest
from tometune.reporting.html import draw
from tometune.reporting.report_files import as_markdown

EFFECTS = {"good": 0.05, "bad": -0.04}
"""By source, what a mix loses without it."""


def write_arms(folder: Path, key: str = "without", **effects: float) -> None:
    sign = -1 if key == "without" else 1
    pool = {"data.pool.draw": True, "sweep.design": "One source is left out."}
    for seed in range(3):
        runs = [write_run(folder, "all-sources", 2000, seed, 0.4 + 0.001 * seed, settings=pool, noise=0.03)]
        for name, effect in {**EFFECTS, **effects}.items():
            level = 0.4 + sign * effect + 0.002 * ((seed + 1) % 3)
            settings = {**pool, f"data.pool.{key}": [name]}
            runs.append(write_run(folder, f"{key}-{name}", 2000, seed, level, settings=settings, noise=0.03))
        for run in runs:
            trained = {"trained_tokens": 50_000 + len(run.name), "trainable_parameters": 25_000, "epochs": 1.0}
            with editing(run) as record:
                record["train"] |= trained


def report(folder: Path, **question: float) -> Report:
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
    tmp_path: Path, page, key: str, question: str, verdict: str, having: str
) -> None:
    write_arms(tmp_path, key)
    made = report(tmp_path)
    assert {(entry["a"], entry["b"]) for entry in made.table["comparisons"]} == {
        (f"{key}-{name}", "all-sources") for name in EFFECTS
    }, "arms are compared with the mix of all sources only"
    for name, found in source_effects(made.table).items():
        for entry in found.values():
            assert entry["delta"] == pytest.approx(EFFECTS[name], abs=0.02)
            assert entry["ci_low"] < entry["delta"] < entry["ci_high"]
    text = as_markdown(made.table)
    assert "One source is left out. Settings that differ between cells: data.pool." in text
    assert "The same in all cells, within 2%: rows (2,000), steps (200), epochs (1), tokens read (180,000), " in text
    assert "adapter parameters (25,000)" in text
    (answer,) = answers(made.table)
    assert (answer.question, answer.verdict) == (question, verdict)
    numbers = "with 95% intervals and Holm-corrected p-values"
    assert answer.sentences[0].startswith(f"Effect on ROUGE-L of having {having}, {numbers}: good +0.0")
    assert ", p = 0.0" in answer.sentences[0]
    html = page(made, "forest")
    assert html.count('id="forest0-figure_1"') == 1
    assert "ROUGE\N{NON-BREAKING HYPHEN}L: good +0." in html
    assert "<td>0.5</td>" in html, "adapter parameters per trained token"


def test_arms_at_two_values_of_a_setting_and_of_both_kinds_are_kept_apart(tmp_path: Path) -> None:
    for kind, rank, effect in (("without", 8, 0.1), ("without", 16, 0.0), ("only", 8, -0.1)):
        for seed in range(3):
            settings = {"data.pool.draw": True, "lora.r": rank}
            if kind == "without":
                write_run(tmp_path, "all-sources", 2000, seed, 0.4 + 0.001 * seed, settings=settings)
            settings[f"data.pool.{kind}"] = ["math"]
            write_run(tmp_path, f"{kind}-math", 2000, seed, 0.4 - effect + 0.001 * seed, settings=settings)
    table = report(tmp_path).table
    assert set(source_effects(table)) == {"math lora.r=8", "math lora.r=16", "only math lora.r=8"}
    found = {each.question: each.verdict for each in answers(table)}
    assert found["Which sources matter?"] == "Helps: math lora.r=8. No significant difference otherwise."
    assert found["Is a single source better than all of them together?"] == "Better: math lora.r=8."


@pytest.mark.parametrize(
    ("effects", "question", "verdict"),
    [
        ({"good": 0, "bad": 0}, {}, "Undecided: no significant difference."),
        ({"good": 0, "bad": 0}, {"margin": 0.03}, "The same within 0.03: bad and good."),
        (
            {"good": 0, "bad": -0.1},
            {"margin": 0.03},
            "Harms: bad. No significant difference otherwise. The same within 0.03: good.",
        ),
    ],
)
def test_a_source_without_an_effect(tmp_path: Path, effects, question, verdict) -> None:
    write_arms(tmp_path, **effects)
    (answer,) = answers(report(tmp_path, **question).table)
    assert answer.verdict == verdict


def test_an_arm_of_a_single_seed_has_no_test_and_one_with_the_rows_of_all_sources_shows_nothing(tmp_path: Path) -> None:
    write_arms(tmp_path)
    for run in tmp_path.glob("*without-good-s[12]-*"):
        rmtree(run)
    for run in tmp_path.glob("*without-bad*"):
        with editing(run) as record:
            record["data"]["digest"] = f"all-sources{record['seed']}"
    table = report(tmp_path).table
    assert "without-bad has the same rows as all-sources, so it shows nothing." in table["notes"]
    (answer,) = answers(table)
    assert answer.verdict == "Harms: bad. Only one seed: good."
    assert re.search(r"good \+0\.\d+ \([^()]*, a single seed\)", answer.sentences[0])
    assert re.search(r"bad −0\.\d+ \([^()]*, p [<=] [\d.]+\)", answer.sentences[0])


def test_what_differs_is_said(tmp_path: Path, table_report: Report) -> None:
    for rows in (1000, 3000, 10_000, 30_000):
        write_run(tmp_path, f"rows-{rows}", rows, 0, 0.3 + rows / 1e6)
    table = build(tmp_path, 200, 0.95).table
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


def test_an_arm_of_a_few_sources_names_them_and_learning_rates_are_not_rounded(tmp_path: Path) -> None:
    for names in ([], ["a", "b", "c"], [*"abcd"]):
        pool = {"data.pool.draw": True, "sweep.design": "x", "data.pool.without": names}
        for rate in (2.5e-7, 4e-7):
            write_run(tmp_path, f"without-{len(names)}", 2000, settings={**pool, "trainer.learning_rate": rate})
    table = build(tmp_path, 200, 0.95).table
    names = [
        f"{arm} trainer.learning_rate={rate}" for arm in ("a + b + c", "4 others") for rate in ("2.5e-07", "4e-07")
    ]
    assert list(source_effects(table)) == names
    assert {row["settings"]["trainer.learning_rate"] for row in table["rows"][1:]} == {2.5e-7, 4e-7}


def test_a_mix_without_a_pool_differs_in_no_setting_of_it(tmp_path: Path) -> None:
    for mix, rows, pool in (("mix_1k", 1000, None), ("mix_2k", 2000, {"order": "random"}), ("mix_2k_top", 2000, {})):
        own = {"data.pool": None if pool is None else {"draw": True, "kind": "hub", "id": "a/b", **pool}}
        write_run(tmp_path, mix, rows, settings=own)
    assert build(tmp_path, 200, 0.95).table["controls"]["settings"] == []
    write_run(tmp_path, "mix_2k_long", 2000, settings={"data.pool": {"draw": True, "order": "longest"}})
    assert build(tmp_path, 200, 0.95).table["controls"]["settings"] == ["data.pool.order"]


SMALL, LARGE = ("mix_1k", 1000), ("mix_3k", 3000)
NOT_RUN = {"same_steps": "not run", "capacity": "not run", "leave_one_source_out": "not run"}


def sweep(folder, cells, design=None, tokens=None, pool="p", margin=None, spread=0.002, model=None, tasks=("qa",)):
    """Write a sweep and its table; `cells` has (data, rows), the score and the settings of each."""
    for (data, rows), level, settings in cells:
        for seed in range(3):
            settings = {**settings, **({"sweep.design": design} if design else {})}
            noise = spread * ((seed + len(settings) + rows) % 3 - 1)
            options = {"settings": settings, "examples": 60, "noise": 0.01, "tasks": tasks}
            with editing(write_run(folder, data, rows, seed, level + noise, **options)) as record:
                record["model"] |= model or {}
                record["inputs"] = {"data.base": "b", "data.pool": pool}
                record["train"]["tokens"] = tokens or record["train"]["tokens"]
    made = build(folder, 500, 0.95, ReportConfig(primary="rougeL", margin=margin))
    write_json(folder / "table.json", made.table)
    return made


def table(parent, margin=None):
    """The base question: the large mix is worse by 0.06."""
    return sweep(parent / "table", [(SMALL, 0.40, {}), (LARGE, 0.34, {})], margin=margin)


def same_steps(parent, difference, settings=None, mixes=(SMALL, LARGE), **options):
    cells = [(mix, 0.40 + change, settings or {}) for mix, change in zip(mixes, (0.0, difference), strict=True)]
    return sweep(parent / "same_steps", cells, "The tokens are held constant.", tokens=80_000, **options)


def capacity(parent, difference):
    settings = [(4, -0.06), (256, difference)]
    cells = [
        (mix, 0.40 + change * (mix is LARGE), {"lora.r": rank, "lora.lora_alpha": rank})
        for rank, change in settings
        for mix in (SMALL, LARGE)
    ]
    sweep(parent / "ranks", cells, "The rank varies.")


def sources(parent, **effects):
    cells = [(("all-sources", 3000), 0.34, {"data.pool.draw": True})]
    for name, effect in effects.items():
        cells.append(((f"without-{name}", 3000), 0.34 - effect, {"data.pool.draw": True, "data.pool.without": [name]}))
    sweep(parent / "by_source", cells, "One source is left out.")


def explained(made):
    (entry,) = made.table["explanations"]
    return entry


def test_no_control(tmp_path: Path, page) -> None:
    made = table(tmp_path)
    entry = explained(made)
    assert entry["causes"] == NOT_RUN
    assert entry["question"].startswith("What explains mix_3k − mix_1k in ROUGE-L, −0.0")
    assert entry["verdict"] == "Not known: no control was run."
    (sentence,) = entry["sentences"]
    assert sentence.startswith("Not run yet: +sweep=same_steps, +sweep=capacity and +sweep=leave_one_source_out. Run ")
    assert answers(made.table)[-1].verdict == entry["verdict"]
    assert entry["question"] in as_markdown(made.table)
    assert sentence in page(made).replace("&#39;", "'")


@pytest.mark.parametrize(
    ("difference", "options", "margin", "cause", "ending"),
    [
        (0.0, {}, 0.02, "explained", "the number of steps explains the difference."),
        (0.0, {}, None, "part", "the number of steps explains at least a part of the difference."),
        (-0.02, {}, 0.02, "part", "the number of steps explains at least a part of the difference."),
        (-0.06, {}, 0.02, "not explained", "the number of steps alone does not explain the difference."),
        (
            -0.03,
            {"spread": 0.05},
            0.02,
            "undecided",
            "whether the number of steps explains the difference is undecided.",
        ),
        (0.0, {"pool": "other"}, None, "not run", ""),
    ],
)
def test_the_same_number_of_tokens(tmp_path: Path, difference, options, margin, cause, ending) -> None:
    control = same_steps(tmp_path, difference, **options)
    assert "explanations" not in control.table, "a control is no question of its own"
    entry = explained(table(tmp_path, margin))
    assert entry["causes"] == {**NOT_RUN, "same_steps": cause}
    start = "With the same number of tokens (sweep same_steps) the difference is " if ending else "Not run yet: "
    assert entry["sentences"][0].startswith(start)
    assert entry["sentences"][0].endswith(ending)
    steps = {"explained": "The number of steps.", "part": "The number of steps (at least in part)."}
    assert entry["verdict"] == {**steps, "not run": "Not known: no control was run."}.get(cause, "Undecided.")


HELD_OUT = {"mixes": [(f"{name}-held50", rows - 50) for name, rows in (SMALL, LARGE)], "tasks": ("qa", "held_out_base")}


@pytest.mark.parametrize(
    ("options", "differ"),
    [
        ({"settings": {"trainer.num_train_epochs": 3.0, "trainer.max_steps": 50}}, None),  # what the control is about
        (HELD_OUT, None),
        ({"tasks": ("qa", "harness_arc")}, None),  # which is in no mean over tasks
        ({"settings": {"lora.r": 4}}, "lora.r"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype"),
    ],
)
def test_a_control_with_another_setting_is_named_and_not_used(tmp_path: Path, options, differ) -> None:
    same_steps(tmp_path, 0.0, **options)
    entry = explained(table(tmp_path))
    assert entry["causes"]["same_steps"] == ("not run" if differ else "part")
    note = f"Not used, because these settings are not those of this sweep: same_steps ({differ})."
    assert (note in entry["sentences"]) == bool(differ)


def test_a_control_without_the_metric_is_named_and_not_used(tmp_path: Path) -> None:
    """NLL can be left out by eval.nll=false, which is no setting of a run."""
    sources(tmp_path, web=-0.05)
    made = table(tmp_path)
    control = json.loads((tmp_path / "by_source" / "table.json").read_text())
    control["metrics"].remove("rougeL")
    control["comparisons"] = [entry for entry in control["comparisons"] if entry["metric"] != "rougeL"]
    write_json(tmp_path / "by_source" / "table.json", control)
    entry = explained(build(made.sweep.folder, 500, 0.95, ReportConfig(primary="rougeL")))
    assert entry["causes"] == NOT_RUN
    assert entry["verdict"] == "Not known: no such control was run."
    assert any(text.endswith("this sweep: by_source (ROUGE-L was not scored).") for text in entry["sentences"])


def test_capacity_at_the_highest_rank_and_sources_with_an_effect_in_the_direction(tmp_path: Path) -> None:
    capacity(tmp_path, 0.0)
    sources(tmp_path, web=-0.05, books=0.04, code=0.0)
    entry = explained(table(tmp_path))
    assert entry["causes"] == {"same_steps": "not run", "capacity": "part", "leave_one_source_out": "part"}
    adapter, data = "capacity of the adapter (at least in part)", "the data of web (at least in part)"
    assert entry["verdict"] == f"The {adapter} and {data}."
    first, second, _ = entry["sentences"]
    assert first.startswith("With lora.r=256 (sweep ranks) the difference is ")
    assert second.startswith("Having a source in the mix (sweep by_source) changes ROUGE-L by −0.0")
    assert "for web: the data of web explains at least a part" in second


@pytest.mark.nightly
def test_none_of_these(tmp_path: Path) -> None:
    same_steps(tmp_path, -0.06)
    capacity(tmp_path, -0.06)
    sources(tmp_path, web=0.0, books=0.002)
    entry = explained(table(tmp_path))
    assert set(entry["causes"].values()) == {"not explained"}
    assert entry["verdict"] == "None of steps, capacity and single sources alone."
    assert len(entry["sentences"]) == 3


def test_nothing_to_explain(tmp_path: Path) -> None:
    same = sweep(tmp_path / "same", [(SMALL, 0.40, {}), (LARGE, 0.40, {})], spread=0.03)
    assert "explanations" not in same.table, "no significant difference"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("steps explain all of it", {"not explained"}, {"explained", "part"}),
        ("steps explain a half", {"explained"}, {"part", "not explained"}),
        ("steps explain nothing", {"explained", "part"}, {"not explained"}),
        ("no difference", {"explained", "part", "not explained"}, set()),
        ("one source explains all", {"not explained"}, {"part"}),
        ("no source explains it", {"part"}, {"not explained"}),
    ],
)
def test_simulated_explanations_are_rarely_wrong(name: str, wrong: set[str], right: set[str]) -> None:
    for shared in (False, True):
        found = verdicts(PLANTED[name], 200, np.random.default_rng(1), shared, seed=0.004)
        assert sum(found.get(verdict, 0) for verdict in wrong) <= 0.05, found
        assert not right or sum(found.get(verdict, 0) for verdict in right) > 0.8, found
