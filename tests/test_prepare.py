"""`python -m tometune.prepare`, whole, on small files."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.data.conftest import conversation, write_jsonl

SMALL = ("model=tiny", "trainer=cpu", "data=files_200k", "data.rows=9", "data.base.rows=5")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    base = [*(conversation(number, source="alpha") for number in range(5)), {"conversations": []}]
    pool = [conversation(number, dataset="beta") for number in range(3, 12)]
    return [
        f"data.base.path={write_jsonl(tmp_path / 'base.jsonl', base)}",
        f"data.pool.path={write_jsonl(tmp_path / 'pool.jsonl', pool)}",
    ]


def numbers(out: str) -> dict[str, list[str]]:
    """The lines of the tables: what, and its numbers."""
    lines = re.findall(r"^ +(?:− )?(\S.*?)  +(\d[\d,.%]*(?: +\d[\d,.%]*)?) *$", out, re.MULTILINE)
    return {what: values.split() for what, values in lines}


@pytest.mark.whole
def test_it_prints_the_mix_and_a_row_and_loads_no_model(run_verb: Run, paths: list[str], tmp_path: Path) -> None:
    first = run_verb("prepare", *SMALL, *paths, env={"COLUMNS": "80"})
    assert first.returncode == 0, first.stderr
    assert max(map(len, first.stdout.partition("row 0 as")[0].splitlines())) <= 80
    out = first.stdout
    assert out.startswith("files_200k: 9 rows, seeds.data=0, digest ")
    told = numbers(out)
    assert told["rows"] == ["9"]
    assert told["read"] == ["6", "9"]
    assert told["dropped: no_assistant_turn"] == ["1"]
    assert told["text is in the base"] == ["2"]
    assert told["left to draw from"] == ["7"]
    assert told["taken"] == ["5", "4"]
    assert told["alpha"] == ["5", "55.6%"]
    assert told["beta"] == ["4", "44.4%"]
    assert 0 < int(told["trainable tokens (answers and their ends)"][0]) < int(told["tokens"][0])
    assert "trained tokens between ⟦ and ⟧" in first.stdout
    assert re.search(r"⟦answer 0<\|\w+\|>⟧", first.stdout)
    assert not list(tmp_path.rglob("run.json")), "it makes no run"
    assert "! not checked against dialogue_summarisation, " in out, "the hub is out of reach"

    cache = tmp_path / "home" / "tometune"
    for weights in cache.rglob("*.safetensors"):
        weights.unlink()
    again = run_verb("prepare", *SMALL, *paths, env={"COLUMNS": "80"})
    assert (again.returncode, again.stdout) == (0, out)
    assert "standardised" in first.stderr
    assert "tokenised" in first.stderr
    assert again.stderr == "", "nothing was made a second time"
    other = run_verb("prepare", *SMALL, *paths, "data.rows=10", env={"COLUMNS": "80"})
    assert other.returncode == 0, "a tokenizer is all it needs of the model, whose weights are gone"
    assert other.stderr.splitlines() == ["1 of 1 rows tokenised"], "sources are read once, rows tokenised once"
    coloured = run_verb("prepare", *SMALL, *paths, env={"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert re.search(r"\x1b\[1;32manswer 0<\|\w+\|>\x1b\[0m", coloured.stdout)
    assert "⟦" not in coloured.stdout


TASK = ("eval=files", *(f"~eval.tasks.{name}" for name in ("summarisation", "question_answering", "data_to_text")))
SHARED = "zero one two three four five six seven eight nine ten eleven twelve"


@pytest.fixture
def task(paths: list[str], tmp_path: Path) -> list[str]:
    """A task, one example of which is in the last row of the pool's file."""
    pool = tmp_path / "pool.jsonl"
    pool.write_text(pool.read_text() + json.dumps(conversation(f"{SHARED} <b>", dataset="beta")) + "\n")
    examples = [{"id": "e1", "input": SHARED.title(), "references": ["x"]}, {"input": "other", "references": ["y"]}]
    return [*TASK, f"eval.tasks.instruction_following.path={write_jsonl(tmp_path / 'task.jsonl', examples)}"]


@pytest.mark.whole
def test_it_writes_a_card_and_finds_overlaps(run_verb: Run, paths: list[str], task: list[str], tmp_path: Path) -> None:
    small = [text.replace("data.rows=9", "data.rows=13") for text in SMALL]
    done = run_verb("prepare", *small, *paths, *task, env={"COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    out = " ".join(done.stdout.split())
    assert "with an evaluation example: 1 task rows share" in out
    assert re.search(r"instruction_following 1 7\.6923% \d beta 1", out)
    assert f"instruction_following e1, beta, 13 words: {SHARED}" in out
    assert "files_300k" not in out
    (page,) = tmp_path.glob("outputs/mixes/files_200k-s0-*/mix.html")
    assert str(page.relative_to(tmp_path)) in done.stdout
    assert SHARED in page.read_text(encoding="utf-8")
    assert SHARED in page.with_suffix(".md").read_text(encoding="utf-8")

    failed = run_verb("prepare", *small, *paths, *task, "data.contamination=fail")
    assert failed.returncode == 2
    assert "data.contamination=fail: 1 of 13 rows share a 13-word sequence" in failed.stderr.splitlines()[-1]
    dropped = run_verb("prepare", *SMALL, *paths, *task, "data.contamination=drop", "data.rows=12")
    assert dropped.returncode == 0, dropped.stderr
    assert "with an evaluation example: 0" in " ".join(dropped.stdout.split())
    (page,) = {*tmp_path.glob("outputs/mixes/files_200k-s0-*/mix.html")} - {page}
    assert "overlaps with an evaluation example" in page.read_text(encoding="utf-8")
    lost = run_verb("prepare", *small, *paths, *task[:-1], "eval.tasks.instruction_following.path=nowhere.jsonl")
    assert lost.returncode == 2
    assert "eval.tasks.instruction_following.path=nowhere.jsonl: no such file; " in lost.stderr
