"""Small sources on disk, and mixes over them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tometune.common.errors import UserError
from tometune.config.data import DataConfig, PoolConfig, SourceKind
from tometune.data.mix import Mix, build_mix


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
