"""Schema of the `data` group: a base, a pool, and how many rows of each make the mix."""

from dataclasses import dataclass, field
from enum import StrEnum

from tometune.config.identity import NOT_IDENTITY


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
