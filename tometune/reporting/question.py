"""The question of a sweep: which comparisons answer it, whether it was asked before the runs, and a verdict for CI."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError, did_you_mean
from tometune.config.report import Asked, ReportConfig, asked, entries
from tometune.evaluation.metrics import label
from tometune.reporting.conclusions import LIMIT, between, other_settings, signed, tuned_rows
from tometune.reporting.grouping import group, pairs
from tometune.reporting.sweep import Sweep
from tometune.runs.sweep_file import read_sweep_file

Values = dict[str, Any]
Rows = Mapping[str, Mapping[str, Any]]


class Verdict(IntEnum):
    """Whether a requirement holds; the value is the exit status."""

    shown = 0
    refuted = 3
    undecided = 4


def check_question(sweep: Sweep, settings: ReportConfig) -> str | None:
    """Return the problem of an entry with names of cells that a sweep, which may be `planned`, does not compare.

    None without one, also if the sweep compares no cells at all: other commands may add some.
    """
    with suppress(UserError):  # e.g. runs that set single streams only
        cells = group(sweep)[0]
        rows = {cell.label: vars(cell) for cell in cells}
        compared = [{"a": a.label, "b": b.label} for a, b in pairs(cells)]
        for text in entries(settings.primary) if compared else ():
            chosen = (asked(text) or Asked(None, None, None, True, None))._replace(metric=None)
            if chosen.b is not None and not any(_chooses(chosen, entry, rows) for entry in compared):
                return f"report.primary={text}: {_reason(chosen, list(rows), ())}"
    return None


def ask(
    folder: Path, settings: ReportConfig, comparisons: Sequence[Values], rows: Rows, metrics: Sequence[str]
) -> tuple[Values, list[str]]:
    """Set `primary` in each comparison: whether it answers the question in sweep.json or, where set, in `settings`.

    `rows` has what the table says of each cell, by its name.

    Returns:
        The question with what was `recorded` before the runs, and notes for readers.

    Raises:
        UserError: an entry that was not recorded before the runs chooses no comparison.
    """
    recorded = read_sweep_file(folder)[1]
    before = recorded or {"primary": [], "margin": None}
    margin = before["margin"] if settings.margin is None else settings.margin
    question: Values = {"primary": entries(settings.primary) or before["primary"], "margin": margin}
    notes = []
    if question != before:
        start = "changed after the runs started" if recorded else "not recorded before the runs"
        notes.append(f"The question was {start}. Before: {_words(before)}; now: {_words(question)}.")
    for entry in comparisons:
        entry["primary"] = not question["primary"]
    for text in question["primary"]:
        chosen = asked(text)
        found = [entry for entry in comparisons if chosen and _chooses(chosen, entry, rows)]
        for entry in found:
            entry["primary"] = True
        if not found:
            problem = f"report.primary={text}: {_reason(chosen, list(rows), metrics)}"
            if text not in before["primary"]:
                raise UserError(problem)
            notes.append(f"{problem}.")
    return {**question, "recorded": recorded}, notes


def decide(requirements: Sequence[str], table: Mapping[str, Any]) -> tuple[Verdict, str]:
    """Return the verdict on all requirements together, and one line with the intervals that decided it.

    All must be shown; one that is refuted refutes the whole. The intervals are the report's uncorrected ones.

    Raises:
        UserError: a requirement names cells that the table does not compare, or an unknown metric.
    """
    found = [_decide(text, table) for text in requirements]
    verdicts = {verdict for verdict, _ in found}
    whole = min(verdicts - {Verdict.shown}, default=Verdict.shown)  # refuted before undecided
    return whole, f"{whole.name}: {'; '.join(line for verdict, line in found if verdict is whole)}"


def _decide(text: str, table: Mapping[str, Any]) -> tuple[Verdict, str]:
    chosen = asked(text)
    cells = {row["cell"]: row for row in tuned_rows(table)}
    found = [entry for entry in table["comparisons"] if chosen and _chooses(chosen, entry, cells)]
    if chosen is None or chosen.bound is None or not found:
        raise UserError(f"require={text}: {_reason(chosen, list(cells), table['metrics'])}")
    entry, bound = found[0], chosen.bound
    sign = 1 if _mix(entry["a"]) == _mix(str(chosen.a)) else -1
    low, high = sorted([sign * entry["ci_low"], sign * entry["ci_high"]])
    difference = f"{label(entry['metric'])} {signed(sign * entry['delta'])}"
    level = f"{table['interval']['confidence']:.0%} interval {between({'ci_low': low, 'ci_high': high})}"
    required = f"{'≥' if chosen.at_least else '≤'} {bound:g}".replace("-", "−")
    line = f"{chosen.a} − {chosen.b}: {difference} ({level}), required {required}"
    if table["limited"]:
        return Verdict.undecided, f"{line}; {LIMIT}"
    if entry["p"] is None:
        return Verdict.undecided, f"{line}; a single seed, so the interval covers examples only"
    # By how much each end of the interval meets the requirement.
    ends = sorted([low - bound, high - bound] if chosen.at_least else [bound - low, bound - high])
    return Verdict.shown if ends[0] >= 0 else Verdict.refuted if ends[1] < 0 else Verdict.undecided, line


def _chooses(chosen: Asked, entry: Values, rows: Rows) -> bool:
    """Whether a comparison, in either direction, is one of those chosen."""
    cells = {_mix(entry[name]) for name in "ab"}
    if chosen.mixes and other_settings(rows[entry["a"]]) != other_settings(rows[entry["b"]]):
        return False
    return chosen.metric in (None, entry.get("metric")) and {_mix(a) for a in (chosen.a, chosen.b) if a} <= cells


def _mix(cell: str) -> str:
    """Return the name of a cell without the ending that held-out rows give to its mix."""
    return re.sub(r"-held\d+", "", cell)


def _reason(chosen: Asked | None, cells: Sequence[str], metrics: Sequence[str]) -> str:
    a, b, metric = chosen[:3] if chosen else (None, None, None)
    for name, known, kind in ((a, cells, "cell"), (b, cells, "cell"), (metric, metrics, "metric")):
        if name is not None and _mix(name) not in map(_mix, known):
            return f"no {kind} {name}{did_you_mean(name, known)} ({kind}s: {', '.join(known)})"
    if chosen and chosen.mixes:
        return "no two cells differ in their mixes alone"
    return "these cells are not compared, because they do not differ in exactly one setting"


def _words(question: Values) -> str:
    margin = "" if question["margin"] is None else f" with the margin {question['margin']:g}"
    return f"{', '.join(question['primary']) or 'all comparisons'}{margin}"
