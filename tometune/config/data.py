"""Schema of the `data` group: a base, a pool, and how many rows of each make the mix."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tometune.config.filters import FiltersConfig, NearDedupConfig, ScorerConfig, filter_problems
from tometune.config.identity import NOT_IDENTITY, SINCE_DEFAULT, identity_if
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
    """`hub` reads `id`, `files` reads `path`, `pydocs` reads the embedded documentation of Python."""

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

    score: str = field(default="score", metadata=SINCE_DEFAULT)
    """Column with a score of each row, for `data.filters.min_score` and `data.scorer.kind=column`; may be missing."""

    rows: int | None = None
    """How many usable rows the source must give; null takes all of them."""


class PoolOrder(StrEnum):
    """In which order the pool's rows are added."""

    random = "random"
    best = "best"


@dataclass
class PoolConfig(SourceConfig):
    """A set of conversations of which a mix takes some."""

    draw: bool = field(default=True, metadata=NOT_IDENTITY)
    """Whether rows are drawn from it; where not, the mix is the base alone, and it is as if `pool` were null."""

    order: PoolOrder = field(default=PoolOrder.random, metadata=SINCE_DEFAULT)
    """`random` draws by `seeds.data`; `best` takes those that `data.scorer` puts highest."""

    weights: dict[str, float] = field(default_factory=dict, metadata=SINCE_DEFAULT)
    """Share, 0 to 1, of the added rows that are from a source; the others share the rest as they are in the pool."""

    caps: dict[str, int] = field(default_factory=dict, metadata=SINCE_DEFAULT)
    """Most rows that are added from a source."""


@dataclass
class DataConfig:
    """A mix: the whole base, then random rows of the pool up to exactly `rows`."""

    name: str = field(default="mix_100k", metadata=NOT_IDENTITY)
    """Short name in the run id and the tables."""

    rows: int = 100_000
    """Exact number of conversations in the mix; too few is an error, never a shorter mix."""

    base: SourceConfig = field(default_factory=SourceConfig)
    """Every mix contains all of it."""

    pool: PoolConfig | None = None
    """Added rows are drawn from here; first, rows whose normalised text is in the base or earlier in the pool go."""

    filters: FiltersConfig = field(default_factory=FiltersConfig, metadata=SINCE_DEFAULT)
    """What a row must be like."""

    near_dedup: NearDedupConfig = field(default_factory=NearDedupConfig, metadata=SINCE_DEFAULT)
    """What counts as the same text but for a few words."""

    scorer: ScorerConfig = field(default_factory=ScorerConfig, metadata=SINCE_DEFAULT)
    """What `data.pool.order=best` ranks by."""

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
        yield from _share_problems(data.pool)
    yield from filter_problems(data.filters, data.near_dedup, pool=data.pool is not None)
    if data.scorer != ScorerConfig() and (data.pool is None or data.pool.order is not PoolOrder.best):
        yield "data.scorer: not read, since the pool is not ranked; set data.pool.order=best"
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
            f"data.rows={data.rows}: above data.base.rows={base_rows}, and no rows are drawn from a pool; "
            f"choose a mix with a pool, e.g. data=mix_200k or files_200k, or set data.rows={base_rows}"
        )


def _share_problems(pool: PoolConfig) -> Iterator[str]:
    """Yield the problems of weights and caps."""
    for name, weight in pool.weights.items():
        if not 0 <= weight <= 1:
            yield f"data.pool.weights.{name}={weight}: not a share from 0 to 1 of the added rows"
    total = sum(pool.weights.values())
    if total > 1 + 1e-9 and max(pool.weights.values()) <= 1:
        yield f"data.pool.weights: together {total:g}, and all added rows are 1; lower them"
    for name, most in pool.caps.items():
        yield from at_least(1, {f"data.pool.caps.{name}": most})


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
