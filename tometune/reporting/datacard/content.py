"""What a data card says, as plain values that both the page and the Markdown show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tometune.data.contamination import MixOverlaps
from tometune.data.filters import NEAR
from tometune.data.mix import Mix
from tometune.data.profile import Profile, described, repeats

Reasons = list[dict[str, Any]]

WORDS = {
    "no_assistant_turn": "no answer of the assistant in it",
    "in_base": "its text is in the base",
    "repeats": "its text is in an earlier row of the pool",
    NEAR: "nearly the same as another row",
    "contaminated": "shares a run of words with an evaluation example",
}
"""Reasons in words; others are shown as they are called."""

SHORT = {
    "no_assistant_turn": "without an answer",
    "in_base": "in the base",
    "repeats": "repeats",
    NEAR: "near-duplicates",
    "contaminated": "in the evaluation",
}
"""The same where there is little room."""


def sources(mix: Profile) -> list[dict[str, Any]]:
    """Return what there is to say of each source, the one with most rows first."""
    found = []
    for name, rows in mix.by_source():
        count, pool = int(rows.sum()), int(mix.pool[rows].sum())
        entry = {"source": name, "rows": count, "base": count - pool, "pool": pool, "share": count / len(mix)}
        entry["characters"] = described(mix.characters[rows])
        entry["turns"] = described(mix.turns[rows])
        entry["tokens"] = None if mix.tokens is None else described(mix.tokens[rows])
        found.append(entry)
    return found


def way(facts: Mapping[str, Any]) -> list[tuple[str, int, bool]]:
    """Return the way from the rows of a base or pool that were read to those taken: name, rows, whether taken off.

    A row that went for two reasons is counted under the first of them.
    """
    off = [*facts.get("excluded", {}).items(), *_later(facts)]
    rows = [("read", facts["read"], False)]
    rows += [(SHORT.get(reason, reason), _total(counts), True) for reason, counts in facts["dropped"].items()]
    if "eligible" in facts:
        twice = sum(count for _, count in off) - (facts["usable"] - facts["eligible"])
        for place, (name, count) in reversed(list(enumerate(off))):  # a row that went twice counts the first time
            off[place] = (name, count - min(count, max(twice, 0)))
            twice -= count - off[place][1]
    rows += [(SHORT.get(name, name), count, True) for name, count in off if count]
    rows += [("left to draw from", facts["eligible"], False)] if "eligible" in facts else []
    return [*rows, ("taken", facts["rows"], False)]


def _later(facts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return what filters, near-duplicates and contamination took off, where the mix tells it."""
    rows = [(reason, _total(counts)) for reason, counts in facts.get("filtered", {}).items()]
    if NEAR in facts:
        rows.append((NEAR, _total(facts[NEAR])))
    if "contaminated_rows" in facts:
        rows.append(("contaminated", facts["contaminated_rows"]))
    return rows


def _total(counts: Mapping[str, int]) -> int:
    """Return the sum over sources."""
    return sum(counts.values())


def left_out(mix: Mix) -> Reasons:
    """Return why rows are not in the mix: reason, origin, rows, the sources most of them are of, some of them."""
    found: Reasons = []
    for origin, facts in mix.facts.items():
        by_source: dict[str, Any] = {**facts["dropped"], **facts.get("filtered", {})}
        by_source |= {NEAR: facts[NEAR]} if facts.get(NEAR) else {}
        found += [_reason(reason, origin, _total(counts), counts) for reason, counts in by_source.items()]
        sources = facts.get("excluded_sources", {})
        excluded = facts.get("excluded", {}).items()
        found += [_reason(reason, origin, count, sources.get(reason)) for reason, count in excluded if count]
        if facts.get("contaminated_rows"):
            of_tasks = {f"{task}: {name}": n for task, by in facts["contaminated"].items() for name, n in by.items()}
            found.append(_reason("contaminated", origin, facts["contaminated_rows"], of_tasks))
    for entry in found:
        of_base = _total(mix.facts[entry["origin"]].get("near_base", {})) if entry["reason"] == NEAR else 0
        entry["text"] += f" ({of_base:,} of them as one of the base)" if of_base else ""
        given = [row for row in mix.examples.get(entry["reason"], []) if row["origin"] == entry["origin"]]
        entry["examples"] = given
    return sorted(found, key=lambda entry: -entry["rows"])


def _reason(reason: str, origin: str, rows: int, by_source: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return one reason."""
    first = sorted((by_source or {}).items(), key=lambda entry: -entry[1])[:6]
    more = len(by_source or {}) - len(first)
    told = ", ".join(f"{name} {count:,}" for name, count in first) + (f" and {more} more" if more > 0 else "")
    return {"reason": reason, "text": WORDS.get(reason, reason), "origin": origin, "rows": rows, "sources": told}


def contamination(found: MixOverlaps | None, unchecked: Mapping[str, str], asked: str) -> dict[str, Any]:
    """Return what to say of rows that share words with the evaluation."""
    tasks: Sequence[str] = [] if found is None else list(found.examples)
    rows = []
    for task in tasks:
        assert found is not None
        by_source = found.counts.get(task, {})
        rows.append({"task": task, "examples": found.examples[task], "touched": found.touched.get(task, 0),
            "too_short": found.too_short.get(task, 0), "rows": sum(by_source.values()),
            "share": sum(by_source.values()) / found.rows, "sources": by_source})  # fmt: skip
    return {
        "asked": asked,
        "tasks": rows,
        "unchecked": causes(unchecked),
        "overlapping": 0 if found is None else found.overlapping,
        "shown": [] if found is None else found.shown,
    }


def causes(unchecked: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return tasks that could not be looked at, those of one cause together, and the cause without the task's key."""
    found: dict[str, list[str]] = {}
    for task, reason in unchecked.items():
        found.setdefault(reason.partition(": ")[2] or reason, []).append(task)
    return [(", ".join(tasks), cause) for cause, tasks in found.items()]


def card(mix: Mix, values: Profile, found: dict[str, Any], drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all that a card says.

    Args:
        mix: the mix.
        values: of its rows.
        found: `contamination`.
        drawn: sampled rows.
    """
    again = repeats(values)
    return {
        "name": mix.name,
        "seed": mix.seed,
        "digest": mix.digest,
        "rows": len(values),
        "fingerprints": {origin: facts["fingerprint"] for origin, facts in mix.facts.items()},
        "base": int((~values.pool).sum()),
        "pool": int(values.pool.sum()),
        "characters": described(values.characters),
        "turns": described(values.turns),
        "tokens": None if values.tokens is None else described(values.tokens),
        "scores": _scores(values),
        "sources": sources(values),
        "ways": {origin: way(facts) for origin, facts in mix.facts.items()},
        "left_out": left_out(mix),
        "mended": _mended(mix),
        "repeats": {"rows": sum(again.values()), "sources": again},
        "contamination": found,
        "samples": drawn,
    }


def _scores(values: Profile) -> dict[str, float] | None:
    """Return what there is to say of the quality scores, and how many rows have one."""
    if values.scores is None:
        return None
    known = values.scores[~np.isnan(values.scores)]
    return {**described(known), "rows": len(known)}


def _mended(mix: Mix) -> list[dict[str, Any]]:
    """Return what was mended in rows that are kept."""
    return [
        _reason(reason, origin, _total(counts), counts)
        for origin, facts in mix.facts.items()
        for reason, counts in facts["mended"].items()
    ]
