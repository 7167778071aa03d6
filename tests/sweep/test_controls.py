"""A control as a sweep, made for real with tiny: the plan, the runs and the report."""

import json
from pathlib import Path

import pytest

from tests.data.conftest import write_jsonl
from tests.sweep.conftest import ONE_TASK, runs_in
from tests.whole import Workplace, record_of

DATA = (
    "data=files_300k",
    "data.base.path=base.jsonl",
    "data.pool.path=pool.jsonl",
    "data.base.rows=24",
    "data.rows=48",
)
QUICK = (*("+experiment=smoke", *ONE_TASK, "eval.limit=2", "seed=0,1"), "trainer.num_train_epochs=1")


@pytest.fixture(scope="module")
def files(place: Workplace) -> Workplace:
    """A workplace with a base, and a pool of long, short and rare rows."""

    def row(source: str, number: int, words: int) -> dict[str, object]:
        texts = f"{source} {number}?", " ".join(f"word{number * n % 7}" for n in range(words))
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
        return {"messages": turns, "source": source}

    write_jsonl(place.folder / "base.jsonl", (row("base", number, 10) for number in range(24)))
    kinds = (("long", 25, 40), ("short/one", 2, 40), ("rare", 9, 5))
    write_jsonl(
        place.folder / "pool.jsonl", (row(name, n, words) for name, words, count in kinds for n in range(count))
    )
    return place


def table_of(folder: Path) -> dict:
    return json.loads((folder / "table.json").read_text())


@pytest.mark.whole
@pytest.mark.nightly  # eight runs
def test_leave_one_source_out(files):
    sweep = (*QUICK, "+sweep=leave_one_source_out", *DATA, "trainer.max_steps=null")
    done = files.verb("train", *sweep, "plan=true")
    assert done.returncode == 0, done.stderr
    assert "8 runs: 0 done, 8 left" in done.stdout
    for arm in ("all-sources", "without-long", "without-short-one", "without-rare"):
        assert f"  tiny-{arm}: 48 rows train " in done.stdout
    assert done.stdout.count("with 32,768 adapter parameters") == 4

    status, stderr = files.train(*sweep)
    assert status == 0, stderr
    folder = files.folder / "multirun" / "leave_one_source_out"
    sources = {run: json.loads((path / "mix.json").read_text())["sources"] for run, path in runs_in(folder).items()}
    for run, counts in sources.items():
        assert sum(counts.values()) == 48
        assert ("short/one" in counts) == ("without-short" not in run)
    table = table_of(folder)
    pairs = {(entry["a"], entry["b"]) for entry in table["comparisons"]}
    assert pairs == {(f"without-{name}", "all-sources") for name in ("long", "short-one", "rare")}
    assert table["controls"]["settings"] == ["data.pool.without"]
    assert table["controls"]["constant"]["rows"] == 48
    assert table["controls"]["constant"]["parameters"] == 32_768
    assert set(table["controls"]["varied"]) == {"tokens", "trained_tokens"}
    row = next(row for row in table["rows"] if row["cell"] == "without-long")
    trained = [record_of(path)["train"] for run, path in runs_in(folder).items() if "without-long" in run]
    tokens = sum(entry["trained_tokens"] for entry in trained) / 2
    assert row["training"]["parameters_per_token"] == pytest.approx(32_768 / tokens, abs=1e-3)
    text = (folder / "table.md").read_text()
    assert "Each arm leaves out one source of the pool; the number of rows is held constant" in text
    assert "Effect on ROUGE-L of having this source in the mix, with " in text
    assert "Effect of each source" in (folder / "report.html").read_text()


SIZES = ("data.rows=24,48", "data.name=${data.rows}-rows")
SELECTIONS = "data=files_300k,files_300k_top,files_300k_longest,files_300k_ifd"
CONTROLS = {
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


@pytest.mark.whole
@pytest.mark.nightly
@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_is_planned_made_and_reported(files, name):
    more, mixes, cells = CONTROLS[name]
    data = [each for each in DATA if name != "sizes" or not each.endswith(("rows=24", "rows=48"))]
    sweep = (*QUICK, f"+sweep={name}", *data, *more)
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
    table, text = table_of(folder), (folder / "table.md").read_text()
    assert {row["data"] for row in table["rows"] if row["stage"] == "tuned"} == set(mixes)
    assert {entry["primary"] for entry in table["comparisons"]} == {True, False}
    assert table["controls"]["design"] in text
    assert {"rows", "tokens", "trained_tokens", "parameters"} <= {
        *table["controls"]["constant"],
        *table["controls"]["varied"],
    }
    assert "trained token" in (folder / "report.html").read_text()
