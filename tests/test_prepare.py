"""`tometune prepare`, whole, on small files."""

import json
import re
from pathlib import Path

import pytest

from tests.data.conftest import conversation, write_jsonl
from tests.whole import Workplace

pytestmark = pytest.mark.whole

SHARED = "zero one two three four five six seven eight nine ten eleven twelve"
SMALL = (
    *("model=tiny", "trainer=cpu", "data=files_200k", "data.rows=9", "data.base.rows=5"),
    *("data.base.path=base.jsonl", "data.pool.path=pool.jsonl"),
)
TASK = (
    *("eval=files", *(f"~eval.tasks.{name}" for name in ("summarisation", "question_answering", "data_to_text"))),
    "eval.tasks.instruction_following.path=task.jsonl",
)


@pytest.fixture
def user(tmp_path: Path) -> Workplace:
    """A base, a pool, and a task, one example of which is in the pool's last row."""
    base = [*(conversation(number, source="alpha") for number in range(5)), {"conversations": []}]
    write_jsonl(tmp_path / "base.jsonl", base)
    write_jsonl(tmp_path / "pool.jsonl", [conversation(number, dataset="beta") for number in range(3, 12)])
    examples = [{"id": "e1", "input": SHARED.title(), "references": ["x"]}, {"input": "other", "references": ["y"]}]
    write_jsonl(tmp_path / "task.jsonl", examples)
    return Workplace(tmp_path)


def test_it_prints_the_mix_and_a_row(user):
    first = user.verb("prepare", *SMALL, env={"COLUMNS": "80"})
    assert first.returncode == 0, first.stderr
    out = first.stdout
    assert max(map(len, out.partition("data card: outputs")[0].splitlines())) <= 80
    assert out.lstrip().startswith("files_200k: data card")
    lines = re.findall(r"^ +(?:− )?(\S.*?)  +(\d[\d,.%]*(?: +\d[\d,.%]*)?) ", out, re.MULTILINE)
    numbers = [(what, *values.split()) for what, values in lines]
    for row in (
        *(("read", "6"), ("read", "9"), ("no assistant turn", "1"), ("text is in the base", "2"), ("eligible", "7")),
        *(("taken", "5"), ("taken", "4"), ("alpha", "5", "55.6%"), ("beta", "4", "44.4%")),
    ):
        assert row in numbers
    assert "trainable tokens (answers and their ends)" in out
    assert "trained tokens between ⟦ and ⟧" in out
    assert re.search(r"⟦answer 0<\|\w+\|>⟧", out)
    assert not list(user.folder.rglob("run.json")), "it makes no run"
    assert "Not checked against dialogue_summarisation, " in out, "the hub is out of reach"

    again = user.verb("prepare", *SMALL, env={"COLUMNS": "80"})
    assert (again.returncode, again.stdout, again.stderr) == (0, out, ""), "nothing was made a second time"
    other = user.verb("prepare", *SMALL, "data.rows=10", env={"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert other.returncode == 0
    assert "standardised" not in other.stderr, "sources are read once"
    assert "rows tokenised" in other.stderr, "of the pool, with a progress bar"
    assert len(list((user.folder / "home").glob("tometune/tokens/*"))) == 3, "the block of the base is not made again"
    assert re.search(r"\x1b\[1;32manswer \d<\|\w+\|>\x1b\[0m", other.stdout)
    assert "⟦" not in other.stdout


def test_it_writes_a_card_and_finds_overlaps(user):
    pool = user.folder / "pool.jsonl"
    pool.write_text(pool.read_text() + json.dumps(conversation(f"{SHARED} <b>", dataset="beta")) + "\n")
    all_rows = (*SMALL, *TASK, "data.rows=13")
    done = user.verb("prepare", *all_rows, env={"COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    out = " ".join(done.stdout.split())
    assert "1 row shares 13 consecutive words, or a whole shorter text, with an evaluation example" in out
    assert re.search(r"instruction_following 2 1 1 7\.6923% beta 1", out)
    assert "instruction_following e1 pool, beta 13 zero one two" in out
    (page,) = user.folder.glob("outputs/mixes/files_200k-s0-*/mix.html")
    assert str(page.relative_to(user.folder)) in done.stdout
    assert all(SHARED in path.read_text(encoding="utf-8") for path in (page, page.with_suffix(".md")))

    failed = user.verb("prepare", *all_rows, "data.contamination=fail")
    assert failed.returncode == 2
    assert "data.contamination=fail: 1 of 13 rows share a 13-word sequence" in failed.stderr.splitlines()[-1]
    dropped = user.verb("prepare", *SMALL, *TASK, "data.contamination=drop", "data.rows=12")
    assert dropped.returncode == 0, dropped.stderr
    assert "No row shares 13 consecutive words" in " ".join(dropped.stdout.split())
    (page,) = {*user.folder.glob("outputs/mixes/files_200k-s0-*/mix.html")} - {page}
    assert "overlaps with an evaluation example" in page.read_text(encoding="utf-8")
    lost = user.verb("prepare", *all_rows, "eval.tasks.instruction_following.path=nowhere.jsonl")
    assert lost.returncode == 2
    assert "eval.tasks.instruction_following.path=nowhere.jsonl: no such file; " in lost.stderr
