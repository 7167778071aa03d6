"""Errors that stop `train` or `prepare` before anything is written: machine, config, data; one line each."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.data.conftest import conversation, write_jsonl
from tests.whole import Workplace, assert_one_line

pytestmark = pytest.mark.whole
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")

SMOKE = ("+experiment=smoke", "trainer.max_steps=6")


@no_gpu
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], r"^model=llama32_3b: .*need an NVIDIA GPU.* python -m tometune\.train \+experiment=quickstart$"),
        (
            ["+experiment=smoke", "model=llama32_3b", "model.id=someone/thing", "model.quantization=none"],
            r"^model\.id=someone/thing: the model hub cannot be reached.* python -m tometune\.train \+experiment=quick",
        ),
        (
            ["+experiment=smoke", "model.id=./none", "model.weights=pretrained"],
            r"^model\.id=\./none: ",
        ),
        (["+experiment=smoke", "run=some"], r"^run=some: only evaluate, export and chat read it"),
        (["+experiment=smoke", "trainer.optim=lion_8bit"], r"^trainer\.optim=lion_8bit: needs bitsandbytes; "),
        (
            ["+experiment=smoke", "model.attn_implementation=flash_attention_2"],
            r"^model\.attn_.* needs the package flash",
        ),
    ],
)
def test_what_is_missing_is_one_line_and_no_folder_is_made(place: Workplace, overrides: list[str], says: str) -> None:
    start = time.monotonic()
    done = place.verb("train", *overrides, "paths.outputs=refused")
    assert done.returncode == 2
    assert time.monotonic() - start < 20, "no retries of the hub, which take 25 s"
    assert_one_line(done, says)
    assert not (place.folder / "refused").exists()


def test_a_wrong_layer_is_told_before_anything_is_scored(place: Workplace) -> None:
    status, stderr = place.train(*SMOKE, "lora.target_modules=[q_prj]", "paths.outputs=refused")
    assert status == 2
    assert "no layer is named q_prj; did you mean q_proj" in stderr
    assert "base summarisation" not in stderr
    assert not (place.folder / "refused").exists()


def test_a_broken_task_is_told_before_the_rows_are_tokenised(place: Workplace) -> None:
    task = [
        "+eval/task@eval.tasks.mine=jsonl",
        f"eval.tasks.mine.path={write_jsonl(place.folder / 'mine.jsonl', [[1]])}",
    ]
    status, stderr = place.train(*SMOKE, *task, "trainer.max_length=77", "paths.outputs=refused")
    assert status == 2
    assert stderr.splitlines()[-1].endswith("mine.jsonl, line 1: is not an object {…}; fix or delete this line")
    assert "tokenised" not in stderr


GOOD = [conversation(number) for number in range(12)]


FILES = ("model=tiny", "eval=pydocs", "tracking=none", "data=files_100k", "data.rows=10")


def lines(place: Workplace, name: str, rows: list[Any]) -> str:
    return f"data.base.path={write_jsonl(place.folder / name, rows)}"


def broken_at_7(place: Workplace) -> list[str]:
    path = write_jsonl(place.folder / "broken.jsonl", GOOD)
    text = path.read_text().splitlines()
    text[6] = text[6][:20]
    path.write_text("\n".join(text) + "\n")
    return [f"data.base.path={path}"]


def without_conversations(place: Workplace) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = place.folder / "columns.parquet"
    pq.write_table(pa.table({"title": ["a"] * 12, "score": [1] * 12}), path)
    return [f"data.base.path={path}"]


def unknown_role(place: Workplace) -> list[str]:
    strange = {"conversations": [{"from": "human", "value": "hi"}, {"from": "narrator", "value": "and then"}]}
    return [lines(place, "roles.jsonl", [*GOOD, strange])]


def small_pool(place: Workplace) -> list[str]:
    pool = write_jsonl(place.folder / "pool.jsonl", GOOD[:4] + [conversation(n) for n in range(100, 103)])
    base = lines(place, "base.jsonl", GOOD)
    return ["data=files_200k", "data.rows=20", "data.base.rows=12", base, f"data.pool.path={pool}"]


BAD: dict[str, tuple[Callable[[Workplace], list[str]], str]] = {
    "missing file": (lambda _: ["data.base.path=none.jsonl"], r"^data\.base\.path=none\.jsonl: no such file"),
    "broken line": (broken_at_7, r"broken\.jsonl, line 7: is not JSON .*fix or delete this line"),
    "no conversations": (without_conversations, r"columns\.parquet.*title.*score|columns\.parquet.*score.*title"),
    "unknown role": (unknown_role, r"roles\.jsonl, line 13: .*narrator"),
    "empty after filters": (
        lambda place: [lines(place, "empty.jsonl", [{"conversations": [{"from": "human", "value": "hi"}]}] * 12)],
        r"^data\.base: none of its 12 rows is usable \(dropped: no_assistant_turn 12\)",
    ),
    "base too small": (
        lambda place: ["data.base.rows=10", lines(place, "small.jsonl", GOOD[:3])],
        r"^data\.base\.rows=10: the base has 3 usable rows",
    ),
    "pool too small": (small_pool, r"^data\.pool: 3 usable rows of 7 .*data\.rows=20 needs 8"),
    "no pool": (
        lambda place: ["data=files_300k", "data.rows=20", "data.base.rows=12", lines(place, "base.jsonl", GOOD)],
        r"^data\.pool\.path: ",
    ),
    "max_length": (
        lambda place: ["trainer.max_length=4", lines(place, "base10.jsonl", GOOD[:10])],
        r"^trainer\.max_length=4: the chat template alone takes \d+ tokens",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_line_and_nothing_is_made(place: Workplace, name: str) -> None:
    overrides, says = BAD[name]
    done = place.verb("prepare", *FILES, *overrides(place), "paths.outputs=bad")
    assert done.returncode == 2, done.stderr
    assert_one_line(done, says)
    assert done.stdout == ""
    assert not (place.folder / "bad").exists()
