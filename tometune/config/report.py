"""Schema of the `report` group, the question that a sweep is to answer, and the syntax of its comparisons."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tometune.common.errors import did_you_mean
from tometune.config.metrics import COLUMNS
from tometune.config.validators import valid_if

COMPARISON = re.compile(
    r"(?:(?P<a>[^>]*)>(?P<b>[^>=][^>]*?)(?::(?P<of_pair>[\w./-]+))?|(?P<data>data:)?(?P<of_all>[\w./-]+))"
    r"(?: *(?P<sign>[<>])= *(?P<bound>[-+]?\d*\.?\d+(?:e-?\d+)?))?"
)


@dataclass
class ReportConfig:
    """The question that a sweep is to answer. It is recorded in sweep.json before the first run starts."""

    primary: Any = None
    """The comparisons that answer it, one or a list: `METRIC`, `A>B` or `A>B:METRIC`; `>B` is every cell against B.

    `data:METRIC` is every pair of cells that differ in their mixes alone. Only these comparisons are corrected for
    their number; all others are exploratory. Null makes all comparisons primary.
    """
    margin: float | None = field(default=None, metadata=valid_if(lambda margin: margin > 0, "not above 0"))
    """Differences below this are too small to matter: adds tests of "no worse than" and "the same within"."""


class Asked(NamedTuple):
    """What a setting says of the difference a - b on a metric; None is any cell or metric, or no bound."""

    a: str | None
    b: str | None
    metric: str | None
    at_least: bool  # whether the bound is a lower one
    bound: float | None
    mixes: bool = False  # whether only cells are compared that differ in their mixes alone


def asked(text: str) -> Asked | None:
    """Read an entry of `report.primary`, or with a bound of `require`; None if its syntax is wrong."""
    if (found := COMPARISON.fullmatch(text)) is None or (found["a"] and found["a"] == found["b"]):
        return None
    metric, bound = found["of_pair"] or found["of_all"], found["bound"]
    number = None if bound is None else float(bound)
    return Asked(found["a"] or None, found["b"], metric, found["sign"] == ">", number, bool(found["data"]))


def entries(value: Any) -> list[str]:
    """Return a setting that is one text or a list of them as a list."""
    return [] if value is None else [str(entry).strip() for entry in (value if isinstance(value, list) else [value])]


def report_problems(config: ReportConfig, require: Any) -> Iterator[str]:
    """Yield the problems of the group and of `require`; names of cells are known only when the sweep is read."""
    for text in entries(config.primary):
        if (chosen := asked(text)) is None or chosen.bound is not None:
            syntax = "METRIC, data:METRIC, A>B or A>B:METRIC, e.g. rougeL or 'mix_300k>mix_100k:rougeL'"
            yield f"report.primary={text}: write {syntax}"
        elif (metric := (chosen.metric or COLUMNS[0]).partition("/")[0]) not in COLUMNS and (
            near := did_you_mean(metric, COLUMNS)
        ):
            yield f"report.primary={text}: no such metric{near}"
    for text in entries(require):
        if (chosen := asked(text)) is None or None in chosen:
            fix = "write A>B:METRIC>=VALUE or A>B:METRIC<=VALUE, e.g. 'files_300k>files_100k:rougeL>=-0.01'"
            yield f"require={text}: {fix}"
