"""The data card of a mix: an HTML page, the same as Markdown, and a summary of contamination for the console.

Texts of rows come from strangers. They are escaped, Markdown in them stays text, and the page's Content-Security-Policy
forbids it to load or run anything.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tometune.data.contamination import MixOverlaps
from tometune.data.filters import NEAR
from tometune.data.mix import Mix
from tometune.data.ngrams import SHORTEST
from tometune.data.profile import Profile, described, repeats, unread_columns
from tometune.reporting import mix_figures
from tometune.reporting.page import draw, environment
from tometune.reporting.text import markdown_line

# Reasons in words; any other reason is shown by its key.
REASONS = {
    "no_assistant_turn": "no assistant turn",
    "in_base": "text is in the base",
    "repeats": "text is in an earlier row of the pool",
    NEAR: "near-duplicate of another row",
    "contaminated": "overlaps with an evaluation example",
}
FOLDED_AFTER = 700  # characters of a turn that are visible without unfolding it
MOST_CHARACTERS = 20_000  # characters of a turn on the page
MOST_SOURCES = 12  # sources per task listed on the console
MOST_WORDS = 24  # words of an overlap listed on the console


def card(
    mix: Mix,
    values: Profile,
    samples: Sequence[Mapping[str, Any]],
    overlaps: MixOverlaps | None,
    unchecked: Mapping[str, str],
    contamination: str,
) -> dict[str, Any]:
    """Return the content of a card as plain values.

    Args:
        mix: the mix.
        values: the values of its rows.
        samples: rows to show.
        overlaps: with the evaluation texts; None if there were no texts.
        unchecked: the reason by task for the tasks that were not checked.
        contamination: `data.contamination`.
    """
    duplicates = repeats(values)
    scores = None if values.scores is None else values.scores[~np.isnan(values.scores)]
    return {
        **{"name": mix.name, "seed": mix.seed, "digest": mix.digest},
        "fingerprints": {origin: facts["fingerprint"] for origin, facts in mix.facts.items()},
        **_rows(values, np.ones(len(values), dtype=bool)),
        "scores": None if scores is None else {**described(scores), "rows": len(scores)},
        "sources": [{"source": name, **_rows(values, rows)} for name, rows in values.by_source()],
        "steps": {origin: steps(facts) for origin, facts in mix.facts.items()},
        "dropped": _dropped(mix),
        "fixed": [
            _reason(reason, origin, _total(counts), counts)
            for origin, facts in mix.facts.items()
            for reason, counts in facts["mended"].items()
        ],
        "unread": unread_columns(mix),
        "duplicates": {"rows": _total(duplicates), "sources": duplicates},
        "contamination": _contamination(overlaps, unchecked, contamination),
        "samples": samples,
    }


def _rows(values: Profile, rows: np.ndarray) -> dict[str, Any]:
    """Describe the rows of a mask."""
    count, pool = int(rows.sum()), int(values.pool[rows].sum())
    return {
        **{"rows": count, "base": count - pool, "pool": pool, "share": count / len(values)},
        "characters": described(values.characters[rows]),
        "turns": described(values.turns[rows]),
        "tokens": None if values.tokens is None else described(values.tokens[rows]),
    }


def steps(facts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the steps from the rows read from a base or pool to the rows taken; rows dropped are negative.

    A row that was dropped for two reasons is counted under the first of them.
    """
    rows = [("read", facts["read"])]
    unusable = {**facts["dropped"], **facts["malformed"]}
    rows += [(_words(reason), -_total(counts)) for reason, counts in unusable.items()]
    filtered = {**facts.get("filtered", {}), NEAR: facts.get(NEAR, {})}
    later = {**facts.get("excluded", {}), **{reason: _total(counts) for reason, counts in filtered.items()}}
    later["contaminated"] = facts.get("contaminated_rows", 0)
    twice = sum(later.values()) - (facts["usable"] - facts["eligible"]) if "eligible" in facts else 0
    for reason in reversed(later):
        counted_before = min(later[reason], max(twice, 0))
        later[reason] -= counted_before
        twice -= counted_before
    rows += [(_words(reason), -count) for reason, count in later.items() if count]
    rows += [("eligible", facts["eligible"])] if "eligible" in facts else []
    return [*rows, ("taken", facts["rows"])]


def _dropped(mix: Mix) -> list[dict[str, Any]]:
    """Return the reasons why rows are not in the mix, the most frequent first, with example rows."""
    found = []
    for origin, facts in mix.facts.items():
        by_source: dict[str, Any] = {**facts["dropped"], **facts["malformed"], **facts.get("filtered", {})}
        by_source |= {NEAR: facts[NEAR]} if facts.get(NEAR) else {}
        found += [_reason(reason, origin, _total(counts), counts) for reason, counts in by_source.items()]
        sources = facts.get("excluded_sources", {})
        excluded = facts.get("excluded", {}).items()
        found += [_reason(reason, origin, count, sources.get(reason, {})) for reason, count in excluded if count]
        if facts.get("contaminated_rows"):
            by_task = {f"{task}: {name}": n for task, by in facts["contaminated"].items() for name, n in by.items()}
            found.append(_reason("contaminated", origin, facts["contaminated_rows"], by_task))
    for entry in found:
        near_base = _total(mix.facts[entry["origin"]].get("near_base", {})) if entry["reason"] == NEAR else 0
        entry["text"] += f" ({near_base:,} of them of a row of the base)" if near_base else ""
        entry["examples"] = mix.parts[entry["origin"]].examples.get(entry["reason"], [])
    return sorted(found, key=lambda entry: -entry["rows"])


def _reason(reason: str, origin: str, rows: int, by_source: Mapping[str, int]) -> dict[str, Any]:
    """Return one reason with its largest sources."""
    largest = sorted(by_source.items(), key=lambda entry: -entry[1])[:6]
    more = len(by_source) - len(largest)
    sources = ", ".join(f"{name} {count:,}" for name, count in largest) + (f" and {more} more" if more else "")
    return {"reason": reason, "text": _words(reason), "origin": origin, "rows": rows, "sources": sources}


def _words(reason: str) -> str:
    return REASONS.get(reason, reason)


def _total(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _contamination(found: MixOverlaps | None, unchecked: Mapping[str, str], setting: str) -> dict[str, Any]:
    """Return the overlaps by task, and the tasks that were not checked."""
    tasks = []
    for task, examples in found.examples.items() if found else ():
        assert found
        by_source = found.counts.get(task, {})
        rows = _total(by_source)
        tasks.append(
            {
                **{"task": task, "examples": examples, "rows": rows, "share": rows / found.rows, "sources": by_source},
                **{"touched": found.touched.get(task, 0), "too_short": found.too_short.get(task, 0)},
            }
        )
    return {
        **{"setting": setting, "tasks": tasks, "unchecked": _causes(unchecked)},
        "overlapping": 0 if found is None else found.overlapping,
        "examples": [] if found is None else found.shown,
    }


def _causes(unchecked: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (tasks, reason), with the tasks of one reason together and without the config key in front."""
    found: dict[str, list[str]] = {}
    for task, reason in unchecked.items():
        found.setdefault(reason.partition(": ")[2] or reason, []).append(task)
    return [(", ".join(tasks), reason) for reason, tasks in found.items()]


def card_page(content: Mapping[str, Any], values: Profile, max_length: int | None) -> str:
    """Return the HTML page of `content`, the result of `card`; tokens were truncated at `max_length`."""
    overlaps = {task["task"]: task["sources"] for task in content["contamination"]["tasks"] if task["rows"]}
    title = "Overlapping rows of each task by source"
    pictures = {
        "composition": draw(mix_figures.composition, values),
        "lengths": draw(mix_figures.lengths, values, max_length),
        "overlaps": draw(mix_figures.stacked_bars, "overlaps", title, overlaps) if overlaps else None,
    }
    template = _templates().get_template("card.html.jinja")
    return template.render(card=content, pictures=pictures, max_length=max_length)


def card_markdown(content: Mapping[str, Any]) -> str:
    """Return the card as Markdown, without figures."""
    templates = _templates()
    templates.autoescape = False
    return templates.get_template("card.md.jinja").render(card=content).rstrip() + "\n"


def _templates() -> Environment:
    templates = environment()
    templates.filters |= {
        "cells": lambda texts: markdown_line(map(inline, map(str, texts))),
        "counted": lambda counts: ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "–",
        "fenced": fenced,
        "folded": folded,
        "inline": inline,
        "large": large,
    }
    return templates


def large(number: float) -> str:
    """Format a large number with three digits: `61.2 million`."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"


def folded(text: str) -> dict[str, Any]:
    """Split a turn into its visible part and its folded part, with the number of characters hidden and left out."""
    visible = FOLDED_AFTER if len(text) > FOLDED_AFTER * 1.3 else len(text)
    cut = max(len(text) - MOST_CHARACTERS, 0)
    return {"head": text[:visible], "tail": text[visible:MOST_CHARACTERS], "more": len(text) - visible, "cut": cut}


def inline(text: str) -> str:
    """Return a text as one line in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>#~!$&])", r"\\\1", " ".join(text.split()))


def fenced(row: Mapping[str, Any]) -> str:
    """Return a conversation in a Markdown code fence longer than any fence in it."""
    turns = "\n\n".join(f"[{turn['role']}]\n{turn['content'][:MOST_CHARACTERS]}" for turn in row["messages"])
    longest = max((len(found) for found in re.findall(r"`{3,}", turns)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{turns}\n{fence}"


def print_contamination(console: Console, found: MixOverlaps | None, unchecked: Mapping[str, str]) -> None:
    """Print the overlaps by task and source, with examples, and the tasks that were not checked."""
    if found is not None:
        title = "rows that share 13 consecutive words, or a whole shorter text, with an evaluation example"
        console.print(Text(f"\n{title}: {found.overlapping:,}", style="bold"))
        grid = Table("task", "source", box=SIMPLE_HEAD, show_edge=False)
        grid.add_column("rows", justify="right")
        grid.add_column("share", justify="right")
        for task, by_source in found.counts.items():
            for name, count in list(by_source.items())[:MOST_SOURCES]:
                grid.add_row(task, Text(" ".join(name.split())), f"{count:,}", f"{count / found.rows:.4%}")
        if grid.rows:
            console.print(grid)
        for entry in found.shown:
            shared = " ".join(entry["shared"].split()[:MOST_WORDS]) + (" …" if entry["words"] > MOST_WORDS else "")
            place = f"{entry['task']} {entry['example']}, {entry['source']}, {entry['words']} words"
            console.print(Text(f"  {place}: {shared}"))
        clean = [task for task in found.examples if task not in found.counts]
        if clean:
            console.print(Text(f"  no overlap with {', '.join(clean)}"))
        if found.too_short:
            short = ", ".join(f"{task} {count:,}" for task, count in found.too_short.items())
            console.print(Text(f"  not checked because shorter than {SHORTEST} words: {short}"))
    for tasks, reason in _causes(unchecked):
        console.print(Text(f"! not checked against {tasks}: {reason}", style="yellow"))
