"""Schema of what makes rows of a mix eligible beside their text: filters, near-duplicates, and a scorer to rank by."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tometune.config.identity import NOT_IDENTITY
from tometune.config.rules import at_least


class ScorerKind(StrEnum):
    """What ranks the pool where `data.pool.order=best`."""

    heuristic = "heuristic"
    fineweb_edu = "fineweb_edu"
    column = "column"


@dataclass
class FiltersConfig:
    """What a row must be like to be drawn; all of it is off by default. They run before sampling, in this order."""

    base: bool = False
    """Whether the base is filtered too; else it is taken as it is."""

    min_characters: int | None = None
    """Fewest characters of a conversation, all turns together."""

    max_characters: int | None = None
    """Most characters of a conversation, all turns together."""

    min_tokens: int | None = None
    """Fewest tokens of a conversation's texts by the model's own tokenizer, without the template's."""

    max_tokens: int | None = None
    """Most tokens of a conversation's texts by the model's own tokenizer, without the template's."""

    min_turns: int | None = None
    """Fewest turns, the system's and tools' counted."""

    max_turns: int | None = None
    """Most turns, the system's and tools' counted."""

    min_score: float | None = None
    """Lowest score, of the column that `score` of the source names; a row without a score is dropped."""

    refusals: bool = False
    """Drop rows in which the assistant refuses, e.g. `As an AI language model, I cannot`."""

    broken_code: bool = False
    """Drop rows with a turn in which a fence of code (three backticks or tildes) is opened and not closed."""

    max_repetition: float | None = None
    """Largest share, 0 to 1, of the assistant's words that are in lines or runs of 5 words that it wrote before."""

    languages: list[str] = field(default_factory=list)
    """Languages that are kept, as ISO 639-1 codes, recognised on the assistant's text; empty keeps all."""


@dataclass
class NearDedupConfig:
    """Near-duplicates, by MinHash over runs of 3 words."""

    threshold: float | None = None
    """Pool rows whose runs of words are the same by this share (Jaccard, 0 to 1) as those of a base row, or of a pool
    row that is kept, are left out; null leaves them in."""

    base: bool = False
    """Whether base rows that are near-duplicates of another base row are left out too."""


@dataclass
class ScorerConfig:
    """What ranks the pool where `data.pool.order=best`."""

    kind: ScorerKind = ScorerKind.heuristic
    """`heuristic` needs nothing; `fineweb_edu` is a classifier from the hub, best on a GPU; `column` is a score that
    the rows come with."""

    id: str = field(default="HuggingFaceFW/fineweb-edu-classifier", metadata=NOT_IDENTITY)
    """For `fineweb_edu`: hub id or local folder of a sequence classifier with one output."""

    revision: str = field(default="main", metadata=NOT_IDENTITY)
    """For `fineweb_edu`: branch, tag or commit."""


def filter_problems(filters: FiltersConfig, near: NearDedupConfig, pool: bool) -> Iterator[str]:
    """Yield the problems of filters and near-duplicates; `pool` tells whether there is one."""
    for name in ("characters", "tokens", "turns"):
        low, high = getattr(filters, f"min_{name}"), getattr(filters, f"max_{name}")
        yield from at_least(1, {f"data.filters.min_{name}": low, f"data.filters.max_{name}": high})
        if low is not None and high is not None and low > high:
            yield f"data.filters.min_{name}={low}: above data.filters.max_{name}={high}; no row is both"
    for key, share in (("filters.max_repetition", filters.max_repetition), ("near_dedup.threshold", near.threshold)):
        if share is not None and not 0 <= share <= 1:
            yield f"data.{key}={share}: not a share from 0 to 1"
    if near.threshold is not None and 0 <= near.threshold < LEAST_THRESHOLD:
        yield f"data.near_dedup.threshold={near.threshold}: below {LEAST_THRESHOLD}, texts of one form count; raise it"
    for code in filters.languages:
        if not re.fullmatch("[a-z]{2,3}", code):
            yield f"data.filters.languages={code}: not a code of ISO 639, e.g. en"
    if not pool and not filters.base and filters != FiltersConfig():
        yield "data.filters: the base is not filtered and there is no pool; set data.filters.base=true"


LEAST_THRESHOLD = 0.5
