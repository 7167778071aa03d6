"""Schema of the `data` group: sources of rows, filters, near-duplicates, and how many rows make a mix."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tometune.config.validators import (
    NOT_IDENTITY,
    SINCE_DEFAULT,
    at_least,
    checked,
    file_name,
    identity_if,
    one_of,
    valid_if,
)

SourceKind = StrEnum("SourceKind", ["hub", "files", "pydocs"])
RowFormat = StrEnum("RowFormat", ["auto", "sharegpt", "messages", "alpaca", "prompt_completion"])
Preference = StrEnum("Preference", ["refuse", "chosen", "ignore"])
PoolOrder = StrEnum("PoolOrder", ["random", "best", "longest", "ifd"])
ScorerKind = StrEnum("ScorerKind", ["heuristic", "fineweb_edu", "column"])
BadRows = StrEnum("BadRows", ["drop", "stop"])
Contamination = StrEnum("Contamination", ["report", "drop", "fail"])

COLUMN_ROLES = ("messages", "user", "context", "assistant", "reasoning", "system", "history", "tools")
REJECTED = ("rejected", "rejected_response", "response_rejected", "rejected_messages")
"""Columns of preference data with the answer that was not chosen."""

LANGUAGE = valid_if(lambda code: re.fullmatch("[a-z]{2,3}", code), "not a code of ISO 639, e.g. en")
SHARE = valid_if(lambda share: 0 <= share <= 1, "not a share from 0 to 1")
ADDED_SHARE = valid_if(lambda share: 0 <= share <= 1, "not a share from 0 to 1 of the added rows")


@dataclass
class FiltersConfig:
    """Conditions on rows, checked before sampling and in this order. All are off by default."""

    base: bool = False
    """Whether the base is filtered too."""
    min_characters: int | None = field(default=None, metadata=at_least(1))
    """Fewest characters of a conversation, over all turns."""
    max_characters: int | None = field(default=None, metadata=at_least(1))
    """Most characters of a conversation, over all turns."""
    min_tokens: int | None = field(default=None, metadata=at_least(1))
    """Fewest tokens of a conversation's texts in the model's tokenizer, without those of the chat template."""
    max_tokens: int | None = field(default=None, metadata=at_least(1))
    """Most tokens of a conversation's texts in the model's tokenizer, without those of the chat template."""
    min_turns: int | None = field(default=None, metadata=at_least(1))
    """Fewest turns, including those of system and tools."""
    max_turns: int | None = field(default=None, metadata=at_least(1))
    """Most turns, including those of system and tools."""
    min_score: float | None = None
    """Lowest score, in the column that the source's `score` names; rows without a score are dropped."""
    refusals: bool = False
    """Whether rows are dropped in which the assistant refuses, e.g. `As an AI language model, I cannot`."""
    broken_code: bool = False
    """Whether rows are dropped in which a code fence (three backticks or tildes) is not closed."""
    max_repetition: float | None = None
    """Largest share, 0 to 1, of the assistant's words in lines or 5-word sequences that it repeats."""
    languages: list[str] = field(default_factory=list, metadata=LANGUAGE)
    """Languages to keep, as ISO 639-1 codes, recognised by the assistant's text; empty keeps all."""


@dataclass
class NearDedupConfig:
    """Near-duplicates, found by MinHash over 3-word sequences."""

    threshold: float | None = None
    """Drop pool rows with at least this Jaccard similarity (0 to 1) to a base row or to a pool row that is kept; null
    drops none."""
    base: bool = False
    """Whether base rows that are near-duplicates of another base row are dropped too."""


@dataclass
class ScorerConfig:
    """What ranks the pool if `data.pool.order=best`."""

    kind: ScorerKind = ScorerKind.heuristic
    """`heuristic` needs no model; `fineweb_edu` is a classifier from the hub, best on a GPU; `column` is a score in the
    data."""
    id: str = field(default="HuggingFaceFW/fineweb-edu-classifier", metadata=NOT_IDENTITY)
    """For `fineweb_edu`: hub id or local folder of a sequence classifier with one output."""
    revision: str = field(default="main", metadata=NOT_IDENTITY)
    """For `fineweb_edu`: branch, tag or commit."""


def _filter_problems(filters: FiltersConfig, near: NearDedupConfig, pool: bool) -> Iterator[str]:
    for name in ("characters", "tokens", "turns"):
        low, high = getattr(filters, f"min_{name}"), getattr(filters, f"max_{name}")
        if low is not None and high is not None and low > high:
            yield f"data.filters.min_{name}={low}: above data.filters.max_{name}={high}; no row is both"
    for key, share in (("filters.max_repetition", filters.max_repetition), ("near_dedup.threshold", near.threshold)):
        if share is not None and not 0 <= share <= 1:
            yield f"data.{key}={share}: not a share from 0 to 1"
    if near.threshold is not None and 0 <= near.threshold < 0.5:
        low = f"data.near_dedup.threshold={near.threshold}: below 0.5"
        yield f"{low}, texts that only share a form are similar; raise it"
    if not pool and not filters.base and filters != FiltersConfig():
        yield "data.filters: has no effect, since there is no pool to filter; set data.filters.base=true"


@dataclass
class SourceConfig:
    """A set of conversations."""

    kind: SourceKind = SourceKind.hub
    """`hub` reads `id`, `files` reads `path`, `pydocs` reads the embedded documentation of Python."""
    id: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Hub dataset, e.g. `mlabonne/FineTome-100k`."""
    revision: str = field(default="main", metadata=NOT_IDENTITY)
    """Branch, tag or commit of the hub dataset."""
    subset: str | None = None
    """Configuration name of the hub dataset, if it has several."""
    split: str = "train"
    """Split of the hub dataset, or of a folder of files, or a JSON file, with splits."""
    path: str | None = field(default=None, metadata=NOT_IDENTITY)
    """File (JSONL, JSON, CSV, TSV, parquet, Arrow), folder of them, or glob, for `kind=files`."""
    filtered: bool = False
    """For `kind=pydocs`: keep the rows with the best text (in the base, not in the pool)."""
    format: RowFormat = RowFormat.auto
    """`auto` recognises the format of each row by its columns."""
    columns: dict[str, str] = field(default_factory=dict, metadata=SINCE_DEFAULT)
    """Columns with names that are not recognised, by what they hold: `messages` (a list of turns), or `user` and
    `assistant`; and `context`, `reasoning`, `system`, `history`, `tools`."""
    preference: Preference = field(default=Preference.refuse, metadata=SINCE_DEFAULT)
    """Rows with a rejected answer or a label: `refuse` counts them as rows that cannot be read, `chosen` trains on the
    chosen side, `ignore` does not read these columns."""
    score: str = field(default="score", metadata=SINCE_DEFAULT)
    """Column with the score of a row, for `data.filters.min_score` and `data.scorer.kind=column`; may be missing."""
    rows: int | None = field(default=None, metadata=at_least(1))
    """Number of usable rows to take; null takes all, but no more than the mix has."""


@dataclass
class PoolConfig(SourceConfig):
    """A set of conversations from which a mix draws rows."""

    draw: bool = field(default=True, metadata=NOT_IDENTITY)
    """Whether rows are drawn from it, if `add` is null; false is the same as `pool=null`."""
    add: int | None = field(default=None, metadata=SINCE_DEFAULT | at_least(0))
    """Number of rows to add to the base, whatever its size, with `data.rows=null`; null adds up to `data.rows`."""
    order: PoolOrder = field(default=PoolOrder.random, metadata=SINCE_DEFAULT)
    """`random` draws by `seeds.data`; `best` takes those with the highest score of `data.scorer`, `longest` those with
    the longest answers, `ifd` those that the base model finds hardest to derive from the prompt (arXiv:2308.12032)."""
    only: list[str] = field(default_factory=list, metadata=SINCE_DEFAULT)
    """Sources that rows are drawn from; empty draws from all."""
    without: list[str] = field(default_factory=list, metadata=SINCE_DEFAULT)
    """Sources that no row is drawn from. The next rows in draw order take the place of theirs."""
    weights: dict[str, float] = field(default_factory=dict, metadata=SINCE_DEFAULT | ADDED_SHARE)
    """Share, 0 to 1, of the added rows per source; the other sources share the rest in proportion to the pool."""
    caps: dict[str, int] = field(default_factory=dict, metadata=SINCE_DEFAULT | at_least(1))
    """Most added rows per source."""

    @property
    def draws(self) -> bool:
        return self.draw if self.add is None else self.add > 0


@dataclass
class HeldOutConfig:
    """Rows that are set aside for scoring: no mix contains them, nor their repeats, for any seed or size."""

    rows: int | None = field(default=0, metadata=at_least(0))
    """Number of rows of the base, and as many of the pool if there is one; 0 sets none aside. Null is a tenth of the
    base, at most 200."""
    pool: bool = field(default=True, metadata=SINCE_DEFAULT)
    """Whether rows of the pool are set aside, too."""
    seed: int = field(default=0, metadata=at_least(0))
    """Seed of this draw; it does not follow the run's seed."""


@dataclass
class DataConfig:
    """A mix: the whole base, then pool rows up to exactly `rows`."""

    name: str = field(default="mix_100k", metadata=NOT_IDENTITY | checked(file_name))
    """Short name in the run id and the tables."""
    rows: int | None = field(default=100_000, metadata=at_least(1))
    """Exact number of conversations in the mix; a run stops if there are fewer. Null takes all rows of the base, and
    `data.pool.add` or all rows of the pool, if it draws from one."""
    path: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Short for `data.base.path`, in mixes over your own files."""
    base: SourceConfig = field(default_factory=SourceConfig)
    """The data that every mix contains."""
    pool: PoolConfig | None = None
    """The data from which rows are added, except rows whose normalised text is in the base or earlier in the pool."""
    filters: FiltersConfig = field(default_factory=FiltersConfig, metadata=SINCE_DEFAULT)
    """Conditions on rows."""
    near_dedup: NearDedupConfig = field(default_factory=NearDedupConfig, metadata=SINCE_DEFAULT)
    """Near-duplicates."""
    scorer: ScorerConfig = field(default_factory=ScorerConfig, metadata=SINCE_DEFAULT)
    """What ranks the pool if `data.pool.order=best`."""
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig, metadata=SINCE_DEFAULT)
    """Rows that are set aside for scoring."""
    bad_rows: BadRows = field(default=BadRows.drop, metadata=NOT_IDENTITY)
    """Rows that cannot be read: `drop` leaves them out and counts them, `stop` shows the first three."""
    max_bad_share: float = field(default=0.05, metadata=NOT_IDENTITY | SHARE)
    """Largest share, 0 to 1, of rows that cannot be read, in a source of at least 100 rows."""
    contamination: Contamination = field(default=Contamination.report, metadata=identity_if(Contamination.drop))
    """What to do about rows that share a 13-word sequence with an example of `eval.tasks`, see docs/contamination.md.

    `report`: `prepare` counts them. `drop`: they are left out of the mix, which makes it a different run. `fail`:
    `prepare` and `train` stop if the mix contains one.
    """

    @property
    def draws(self) -> bool:
        return self.pool is not None and self.pool.draws


def ranking(data: DataConfig) -> str | None:
    """Return what ranks the pool: `longest`, `ifd` or a kind of scorer; None if rows are drawn at random, or none."""
    if data.pool is None or data.pool.order is PoolOrder.random:
        return None
    return str(data.scorer.kind if data.pool.order is PoolOrder.best else data.pool.order)


def without_unused_pool(data: DataConfig) -> DataConfig:
    """Return the config with `pool=null` if no rows are drawn from the pool, and none are held out of it."""
    pool = data.pool
    held_out = data.held_out.rows != 0 and data.held_out.pool
    if pool is None or pool.draws or (held_out and (pool.id or pool.path or pool.kind is SourceKind.pydocs)):
        return data
    return replace(data, pool=None)


def without_unused(data: DataConfig) -> DataConfig:
    """Return the config of a mix with the settings that it does not use at their defaults.

    `+sweep=random_vs_best data.scorer.kind=fineweb_edu` sets a scorer for three mixes, but only one of them ranks its
    pool. For the other two the setting is no error, and it is not part of their identity.
    """
    data = without_unused_pool(data)
    filters, near = data.filters, data.near_dedup
    if replace(filters, base=False) == FiltersConfig() or (data.pool is None and not filters.base):
        filters = FiltersConfig()
    if near.threshold is None or (data.pool is None and not near.base):
        near = NearDedupConfig()
    ranked = data.pool is not None and data.pool.order is PoolOrder.best
    scorer = data.scorer if ranked else ScorerConfig()
    held_out = data.held_out if data.held_out.rows != 0 else HeldOutConfig()
    return replace(data, filters=filters, near_dedup=near, scorer=scorer, held_out=held_out)


def data_problems(data: DataConfig) -> Iterator[str]:
    """Yield the problems of the group."""
    yield from _source_problems("data.base", data.base)
    if data.path is not None and data.path != data.base.path:
        reads = f"is not data.base.path={data.base.path}; set one of the two"
        reads = reads if data.base.path else "this mix does not read it; for rows of your own write data=mine"
        yield f"data.path={data.path}: {reads}"
    if data.rows is not None and data.pool is not None and data.pool.add is not None:
        yield f"data.pool.add={data.pool.add}: the mix has data.rows={data.rows}, whatever is added; set one to null"
    if data.pool is not None:
        yield from _source_problems("data.pool", data.pool)
        weights = data.pool.weights.values()
        if sum(weights) > 1 + 1e-9 and max(weights) <= 1:
            yield f"data.pool.weights: their sum is {sum(weights):g}, above 1; lower them"
        if data.pool.only and data.pool.without:
            yield "data.pool.without: has no effect next to data.pool.only, which names the sources; set one of the two"
    yield from _held_out_problems(data.held_out, data.base.rows)
    yield from _filter_problems(data.filters, data.near_dedup, pool=data.pool is not None)
    if data.scorer != ScorerConfig() and (data.pool is None or data.pool.order is not PoolOrder.best):
        yield "data.scorer: has no effect, since the pool is not ranked; set data.pool.order=best"
    base_rows = data.base.rows
    if data.rows is None or base_rows is None or min(base_rows, data.rows) < 1:
        return
    if base_rows > data.rows:
        yield f"data.rows={data.rows}: below data.base.rows={base_rows}, and a mix contains the whole base; raise it"
    if base_rows < data.rows and not data.draws:
        above = f"data.rows={data.rows}: above data.base.rows={base_rows}, and there is no pool"
        yield f"{above}; choose a mix with one, e.g. data=mix_200k or files_200k"


def _held_out_problems(held_out: HeldOutConfig, base_rows: int | None) -> Iterator[str]:
    if held_out.seed != HeldOutConfig().seed and held_out.rows == 0:
        yield f"data.held_out.seed={held_out.seed}: has no effect, since no rows are held out; set data.held_out.rows"
    if base_rows is not None and held_out.rows is not None and 0 < base_rows <= held_out.rows:
        yield f"data.held_out.rows={held_out.rows}: not below data.base.rows={base_rows}, so no row of the base is left"


def _source_problems(key: str, source: SourceConfig) -> Iterator[str]:
    needs = ((SourceKind.hub, "id", source.id, "mix_100k"), (SourceKind.files, "path", source.path, "files_100k"))
    for kind, name, value, example in needs:
        if source.kind is kind and not value:
            setting = f"{key}.{name}".replace("data.base.path", "data.path")
            yield f"{key}.{name} is required if {key}.kind={kind}; set {setting}=…"
        if source.kind is not kind and value:
            fix = f"choose a mix over {kind}, e.g. data={example}"
            yield f"{key}.{name}={value}: is ignored if {key}.kind={source.kind}; {fix}"
    yield from filter(None, (one_of(COLUMN_ROLES)(f"{key}.columns", role) for role in source.columns))
    for role, column in source.columns.items():
        if column in REJECTED and source.preference is not Preference.ignore:
            fix = f"name the chosen side, or set {key}.preference=ignore if it is not preference data"
            yield f"{key}.columns.{role}={column}: is the rejected side of preference data; {fix}"
    if source.filtered and source.kind is not SourceKind.pydocs:
        yield f"{key}.filtered=true: only {key}.kind=pydocs has a filter; set {key}.filtered=false"
