"""Small sources on disk, and mixes over them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tometune.common.errors import UserError
from tometune.config.data import DataConfig, PoolConfig, SourceKind
from tometune.data.mix import Mix, Part, build_mix
from tometune.data.standardise import Standardised
from tometune.data.template import Messages


def conversation(number: int | str, **columns: Any) -> dict[str, Any]:
    """Return a row in ShareGPT's shape."""
    turns = [{"from": "human", "value": f"question {number}"}, {"from": "gpt", "value": f"answer {number}"}]
    return {"conversations": turns, **columns}


def files(path: Path | str | None, **options: Any) -> PoolConfig:
    """Return a source of local files, which may be a pool."""
    return PoolConfig(kind=SourceKind.files, path=None if path is None else str(path), **options)


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write one row a line; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def error_of(call: Callable[..., Any], *arguments: Any, kind: type[Exception] = UserError, **options: Any) -> str:
    """Return the text of the error that a call raises, which is one line."""
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mix_from(conversations: list[Messages], digest: str = "d", extras: list[str | None] | None = None) -> Mix:
    """Return a mix of these conversations, whose source is in memory alone."""
    columns = zip(conversations, extras or [None] * len(conversations), strict=True)
    dataset = Dataset.from_list([{"source": "test", "messages": turns, "extras": more} for turns, more in columns])
    count = len(conversations)
    source = Standardised(
        fingerprint=digest, folder=Path(), rows=dataset, keys=np.zeros(count, "S16"), labels=np.zeros(count, np.int32),
        names=["test"], scores=None, read=count, dropped={}, mended={},
    )  # fmt: skip
    facts = {"fingerprint": "f", "read": count, "usable": count, "rows": count}
    row_ids = [f"base:{number}" for number in range(count)]
    part = Part(source, np.arange(count), facts, {})
    return Mix("test", 0, dataset, row_ids, digest, {"test": count}, {"base": part})


@pytest.fixture
def mix_of(tmp_path: Path) -> Callable[..., Mix]:
    """Return a function that mixes rows: those of the base, those of the pool, to a number of rows.

    `drawn` are settings of the pool, `parts` arguments of `build_mix`, other options are of the mix.
    """

    def build(base, pool, rows, seed=0, base_rows=None, drawn=None, parts=None, **options) -> Mix:
        config = DataConfig(
            name="test",
            rows=rows,
            base=files(write_jsonl(tmp_path / "base.jsonl", base), rows=base_rows),
            pool=None if pool is None else files(write_jsonl(tmp_path / "pool.jsonl", pool), **(drawn or {})),
            **options,
        )
        return build_mix(config, seed, tmp_path / "cache", **(parts or {}))

    return build
