"""What controls say of a difference between mixes. The control sweeps are synthetic, with a known difference."""

from pathlib import Path

import numpy as np
import pytest

from tests.reporting.simulated_explanations import PLANTED, SOURCES, verdicts
from tests.reporting.sweeps import TASKS, editing, write_run
from tometune.config.report import ReportConfig
from tometune.reporting.analysis import build
from tometune.reporting.conclusions import answers
from tometune.reporting.report_files import as_html, as_markdown, write

SMALL, LARGE = ("mix_1k", 1000), ("mix_3k", 3000)
NOT_RUN = {"same_steps": "not run", "capacity": "not run", "leave_one_source_out": "not run"}


def sweep(folder, cells, design=None, tokens=None, pool="p", margin=None, spread=0.002, model=None, tasks=TASKS):
    """Write a sweep and its report; `cells` has (data, rows), the score and the settings of each."""
    for (data, rows), level, settings in cells:
        for seed in range(3):
            settings = {**settings, **({"sweep.design": design} if design else {})}
            noise = spread * ((seed + len(settings) + rows) % 3 - 1)
            run = write_run(
                folder, data, rows, seed, level + noise, settings=settings, examples=60, noise=0.01, tasks=tasks
            )
            with editing(run) as record:
                record["model"] |= model or {}
                record["inputs"] = {"data.base": "b", "data.pool": pool}
                record["train"]["tokens"] = tokens or record["train"]["tokens"]
    made = build(folder, 500, 0.95, ReportConfig(primary="rougeL", margin=margin))
    write(made)
    return made


def table(parent, margin=None):
    """The base question: the large mix is worse by 0.06."""
    return sweep(parent / "table", [(SMALL, 0.40, {}), (LARGE, 0.34, {})], margin=margin)


def same_steps(parent, difference, **options):
    cells = [(SMALL, 0.40, {}), (LARGE, 0.40 + difference, {})]
    sweep(parent / "same_steps", cells, "The tokens are held constant.", tokens=80_000, **options)


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


def test_no_control(tmp_path: Path) -> None:
    made = table(tmp_path)
    entry = explained(made)
    assert entry["causes"] == NOT_RUN
    assert entry["question"].startswith("What explains mix_3k − mix_1k in ROUGE-L, −0.0")
    assert entry["verdict"] == "Not known: no control was run."
    (sentence,) = entry["sentences"]
    assert sentence.startswith("Not run yet: +sweep=same_steps, +sweep=capacity and +sweep=leave_one_source_out. Run ")
    assert answers(made.table)[-1].verdict == entry["verdict"]
    assert entry["question"] in as_markdown(made.table)
    assert sentence in as_html(made).replace("&#39;", "'")


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
    same_steps(tmp_path, difference, **options)
    entry = explained(table(tmp_path, margin))
    assert entry["causes"] == {**NOT_RUN, "same_steps": cause}
    start = "With the same number of tokens (sweep same_steps) the difference is " if ending else "Not run yet: "
    assert entry["sentences"][0].startswith(start)
    assert entry["sentences"][0].endswith(ending)
    steps = {"explained": "The number of steps.", "part": "The number of steps (at least in part)."}
    assert entry["verdict"] == {**steps, "not run": "Not known: no control was run."}.get(cause, "Undecided.")


@pytest.mark.parametrize(
    ("settings", "record", "differ"),
    [
        ({"trainer.num_train_epochs": 3.0, "trainer.max_steps": 50}, {}, None),  # what the control is about
        ({"trainer.weight_decay": 0.1}, {}, "trainer.weight_decay"),
        ({"lora.r": 4}, {}, "lora.r"),
        ({}, {"dtype": "bfloat16"}, "model.dtype"),
    ],
)
def test_a_control_with_another_setting_is_named_and_not_used(tmp_path: Path, settings, record, differ) -> None:
    cells = [(SMALL, 0.40, settings), (LARGE, 0.40, settings)]
    sweep(tmp_path / "same_steps", cells, "The tokens are held constant.", tokens=80_000, model=record)
    entry = explained(table(tmp_path))
    assert entry["causes"]["same_steps"] == ("not run" if differ else "part")
    note = f"Not used, because these settings are not those of this sweep: same_steps ({differ})."
    assert (note in entry["sentences"]) == bool(differ)


def test_a_control_whose_rows_are_held_out_counts(tmp_path: Path) -> None:
    held = [(f"{name}-held50", rows - 50) for name, rows in (SMALL, LARGE)]
    cells = [(mix, 0.40, {}) for mix in held]
    tasks = (*TASKS, "held_out_base")
    sweep(tmp_path / "same_steps", cells, "The tokens are held constant.", tokens=80_000, tasks=tasks)
    assert explained(table(tmp_path))["causes"]["same_steps"] == "part"


def test_capacity_is_decided_at_the_highest_rank(tmp_path: Path) -> None:
    capacity(tmp_path, 0.0)
    entry = explained(table(tmp_path))
    assert entry["causes"]["capacity"] == "part"
    assert entry["sentences"][0].startswith("With lora.r=256 (sweep ranks) the difference is ")


def test_sources_with_an_effect_in_the_direction_of_the_difference(tmp_path: Path) -> None:
    sources(tmp_path, web=-0.05, books=0.04, code=0.0)
    entry = explained(table(tmp_path))
    assert entry["causes"]["leave_one_source_out"] == "part"
    assert entry["verdict"] == "The data of web (at least in part)."
    assert entry["sentences"][0].startswith("Having a source in the mix (sweep by_source) changes ROUGE-L by −0.0")
    assert "for web: the data of web explains at least a part" in entry["sentences"][0]


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
    same_steps(tmp_path, -0.06)
    control = build(tmp_path / "same_steps", 200, 0.95)
    assert "explanations" not in control.table, "a control is no question of its own"


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
    planted = {**PLANTED, **SOURCES}[name]
    for shared in (False, True):
        found = verdicts(planted, 200, np.random.default_rng(1), shared, seed=0.004)
        assert sum(found.get(verdict, 0) for verdict in wrong) <= 0.05, found
        assert not right or sum(found.get(verdict, 0) for verdict in right) > 0.8, found
