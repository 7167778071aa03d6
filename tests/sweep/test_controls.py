"""A control as a sweep, made for real with tiny: the plan, the runs and the report."""

import json
from pathlib import Path

import pytest

from tests.data.conftest import write_jsonl
from tests.sweep.conftest import ONE_TASK, runs_in
from tests.whole import Workplace, record_of

pytestmark = [pytest.mark.whole, pytest.mark.nightly]

DATA = ("data=files_300k", "data.base.path=base.jsonl", "data.pool.path=pool.jsonl")
ROWS = ("data.base.rows=24", "data.rows=48")
QUICK = ("+experiment=smoke", *ONE_TASK, "eval.limit=2", "seed=0,1", "trainer.num_train_epochs=1")
SIZES = ("data.rows=24,48", "data.name=${data.rows}-rows")
SELECTIONS = "data=files_300k,files_300k_top,files_300k_longest,files_300k_ifd"
SOURCES = ("long", "short-one", "rare")
CONTROLS = {
    "leave_one_source_out": (["trainer.max_steps=null"], ["all-sources", *(f"without-{name}" for name in SOURCES)], 4),
    "same_steps": (["trainer.max_steps=null", "trainer.max_tokens=2000", *SIZES], ["24-rows", "48-rows"], 2),
    "add_one_source": ([], ["plus-all-sources", "plus-long", "plus-short-one"], 3),
    "sizes": (["sweep.largest=48", "sweep.smallest=12"], ["rows-12", "rows-36", "rows-48"], 3),
    "capacity": (["lora.r=4,8", *SIZES], ["24-rows", "48-rows"], 4),
    "rates": (["trainer.learning_rate=1e-4,2e-4", *SIZES], ["24-rows", "48-rows"], 4),
    "random_vs_best": (
        [SELECTIONS, "data.name=48-${data.pool.order}", "report.primary='>48-random:rougeL'"],
        ["48-random", "48-best", "48-longest", "48-ifd"],
        4,
    ),
}
"""Overrides, mixes, and the number of cells, each with two seeds."""


@pytest.fixture(scope="module")
def files(place: Workplace) -> Workplace:
    """A workplace with a base, and a pool of long, short and rare rows."""

    def rows(source: str, count: int, words: int) -> list[dict[str, object]]:
        found = []
        for number in range(count):
            texts = f"{source} {number}?", " ".join(f"word{number * n % 7}" for n in range(words))
            turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
            found.append({"messages": turns, "source": source})
        return found

    write_jsonl(place.folder / "base.jsonl", rows("base", 24, 10))
    write_jsonl(place.folder / "pool.jsonl", rows("long", 40, 25) + rows("short/one", 40, 2) + rows("rare", 5, 9))
    return place


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_is_planned_made_and_reported(files, name):
    more, mixes, cells = CONTROLS[name]
    sweep = (*QUICK, f"+sweep={name}", *DATA, *(ROWS if name != "sizes" else ()), *more)
    done = files.verb("train", *sweep, "plan=true")
    assert done.returncode == 0, done.stderr
    assert f"{2 * cells} runs: 0 done, {2 * cells} left" in done.stdout, done.stdout
    assert all(f"tiny-{mix}: " in done.stdout for mix in mixes), done.stdout
    assert " adapter parameters" in done.stdout
    assert "power" in done.stdout

    status, stderr = files.train(*sweep)
    assert status == 0, stderr
    folder = files.folder / "multirun" / name
    assert [record_of(path)["status"] for path in runs_in(folder).values()] == ["completed"] * 2 * cells
    table, text = json.loads((folder / "table.json").read_text()), (folder / "table.md").read_text()
    page, controls = (folder / "report.html").read_text(), table["controls"]
    assert {row["data"] for row in table["rows"] if row["stage"] == "tuned"} == set(mixes)
    assert {entry["primary"] for entry in table["comparisons"]} == {True, False}
    assert controls["design"] in text
    assert {"rows", "tokens", "trained_tokens", "parameters"} <= {*controls["constant"], *controls["varied"]}
    assert "trained token" in page
    if name == "leave_one_source_out":
        assert done.stdout.count(": 48 rows train ") == done.stdout.count("with 32,768 adapter parameters") == 4
        check_sources(folder, table)
        assert "Each arm leaves out one source of the pool; the number of rows is held constant" in text
        assert "Effect on ROUGE-L of having this source in the mix, with " in text
        assert "Effect of each source" in page


def check_sources(folder: Path, table: dict) -> None:
    """Check the mixes of a sweep that leaves out one source, and what its table holds constant."""
    sources = {run: json.loads((path / "mix.json").read_text())["sources"] for run, path in runs_in(folder).items()}
    for run, counts in sources.items():
        assert sum(counts.values()) == 48
        assert ("short/one" in counts) == ("without-short" not in run)
    pairs = {(entry["a"], entry["b"]) for entry in table["comparisons"]}
    assert pairs == {(f"without-{name}", "all-sources") for name in SOURCES}
    constant = {name: table["controls"]["constant"][name] for name in ("rows", "parameters")}
    assert (table["controls"]["settings"], constant) == (["data.pool.without"], {"rows": 48, "parameters": 32_768})
    assert set(table["controls"]["varied"]) == {"tokens", "trained_tokens"}
    row = next(row for row in table["rows"] if row["cell"] == "without-long")
    trained = [record_of(path)["train"] for run, path in runs_in(folder).items() if "without-long" in run]
    tokens = sum(entry["trained_tokens"] for entry in trained) / 2
    assert row["training"]["parameters_per_token"] == pytest.approx(32_768 / tokens, abs=1e-3)
