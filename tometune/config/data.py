"""Schema of the `data` group: a base, a pool, and how many rows of each make the mix."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tometune.config.identity import NOT_IDENTITY, identity_if
from tometune.config.rules import at_least, file_name


class SourceKind(StrEnum):
    """Where rows come from."""

    hub = "hub"
    files = "files"
    pydocs = "pydocs"


class RowFormat(StrEnum):
    """Shape of one row; every shape is standardised to role/content messages."""

    auto = "auto"
    sharegpt = "sharegpt"
    messages = "messages"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"


class Contamination(StrEnum):
    """What to do about rows that share a run of words with an evaluation example."""

    report = "report"
    drop = "drop"
    fail = "fail"


@dataclass
class SourceConfig:
    """One set of conversations."""

    kind: SourceKind = SourceKind.hub
    """`hub` reads `id`, `files` reads `path`, `pydocs` reads this Python's own documentation."""

    id: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Hub dataset, e.g. `mlabonne/FineTome-100k`."""

    revision: str = field(default="main", metadata=NOT_IDENTITY)
    """Branch, tag or commit of the hub dataset."""

    subset: str | None = None
    """Configuration name of the hub dataset, where it has several."""

    split: str = "train"
    """Split of the hub dataset."""

    path: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Parquet, JSONL or JSON file, a folder of them, or a glob; used when `kind=files`."""

    filtered: bool = False
    """Only for `pydocs`: keep the rows with the best text (the base is filtered, the pool is not)."""

    format: RowFormat = RowFormat.auto
    """`auto` recognises the shape by the columns of the first rows."""

    rows: int | None = None
    """How many usable rows the source must give; null takes all of them."""


@dataclass
class DataConfig:
    """A mix: the whole base, then random rows of the pool up to exactly `rows`."""

    name: str = field(default="mix_100k", metadata=NOT_IDENTITY)
    """Short name in the run id and the tables."""

    rows: int = 100_000
    """Exact number of conversations in the mix; too few is an error, never a shorter mix."""

    base: SourceConfig = field(default_factory=SourceConfig)
    """Every mix contains all of it."""

    pool: SourceConfig | None = None
    """Added rows are drawn from here; first, rows whose normalised text is in the base or earlier in the pool go."""

    contamination: Contamination = field(default=Contamination.report, metadata=identity_if(Contamination.drop))
    """What to do about rows that share 13 words in a row with an example of `eval.tasks`, see docs/contamination.md.

    `report` has `prepare` tell how many there are, `drop` draws from the others (so it makes other runs), `fail` stops
    `prepare` and `train` if there is one in the mix.
    """


def data_problems(data: DataConfig) -> Iterator[str]:
    """Yield the problems of the `data` group."""
    yield from file_name("data.name", data.name)
    yield from at_least(1, {"data.rows": data.rows})
    yield from _source_problems("data.base", data.base)
    if data.pool is not None:
        yield from _source_problems("data.pool", data.pool)
        yield from at_least(1, {"data.pool.rows": data.pool.rows})
    base_rows = data.base.rows
    if base_rows != data.rows:  # where it follows data.rows, that is told already
        yield from at_least(1, {"data.base.rows": base_rows})
    if base_rows is None or base_rows < 1 or data.rows < 1:  # nothing to compare
        return
    if base_rows > data.rows:
        yield (
            f"data.rows={data.rows}: below data.base.rows={base_rows}, and a mix contains the whole base; "
            f"raise data.rows or set data.base.rows={data.rows}"
        )
    if base_rows < data.rows and data.pool is None:
        yield (
            f"data.rows={data.rows}: above data.base.rows={base_rows}, and data.pool is null; "
            f"choose a mix with a pool, e.g. data=mix_200k or files_200k, or set data.rows={base_rows}"
        )


def _source_problems(key: str, source: SourceConfig) -> Iterator[str]:
    """Yield the problems of one source of rows."""
    needs = {SourceKind.hub: "id", SourceKind.files: "path"}
    values = {"id": source.id, "path": source.path}
    for kind, name in needs.items():
        if source.kind is kind and not values[name]:
            yield f"{key}.{name}: missing, {key}.kind={kind} reads it; set {key}.{name}=…"
        if source.kind is not kind and values[name]:
            yield (
                f"{key}.{name}={values[name]}: not read with {key}.kind={source.kind}; "
                f"choose a mix over {kind}, e.g. data={'mix' if kind is SourceKind.hub else 'files'}_100k"
            )
    if source.filtered and source.kind is not SourceKind.pydocs:
        yield f"{key}.filtered=true: only {key}.kind=pydocs has a filter; set {key}.filtered=false"
