"""The data card of a mix: an HTML page, the same as Markdown, and the Markdown without rows for the console.

Texts of rows come from strangers. They are escaped, Markdown in them stays text, and the page's Content-Security-Policy
forbids it to load or run anything.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import pandas as pd
from jinja2 import Environment

from tometune.common.errors import some
from tometune.data.contamination import MixOverlaps
from tometune.data.filters import NEAR
from tometune.data.mix import Mix
from tometune.data.preview import REASONS, described, drops, repeats, steps, unread_columns
from tometune.data.template import NOTES
from tometune.data.tokens import Counts
from tometune.reporting import mix_figures
from tometune.reporting.controls import large
from tometune.reporting.html import draw, environment, markdown_line

FOLDED_AFTER = 700  # characters of a turn that are visible without unfolding it
MOST_CHARACTERS = 20_000  # characters of a turn on the page
MOST_SOURCES = 6  # sources that are listed with their rows


def card(
    mix: Mix,
    values: pd.DataFrame,
    counts: Counts,
    samples: Sequence[Mapping[str, Any]],
    contamination: Mapping[str, Any],
    max_length: int,
) -> dict[str, Any]:
    """Return the content of a card as plain values; `contamination` is the result of `describe_overlaps`."""
    duplicates = repeats(values)
    scores = values["score"].dropna()
    return {
        **{"name": mix.name, "seed": mix.seed, "digest": mix.digest},
        "fingerprints": {origin: facts["fingerprint"] for origin, facts in mix.facts.items()},
        **_rows(values, values),
        "scores": {**described(scores), "rows": len(scores)} if len(scores) else None,
        "sizes": _sizes(counts, max_length),
        "sources": [{"source": name, **_rows(rows, values)} for name, rows in values.groupby("source", observed=True)],
        "steps": {
            origin: [(REASONS.get(reason, reason), count) for reason, count in steps(facts)]
            for origin, facts in mix.facts.items()
        },
        "dropped": _dropped(mix),
        "fixed": [
            _reason(reason, origin, sum(counts.values()), counts)
            for origin, facts in mix.facts.items()
            for reason, counts in facts["mended"].items()
        ],
        "unread": unread_columns(mix),
        "duplicates": {"rows": sum(duplicates.values()), "sources": duplicates},
        "contamination": contamination,
        "samples": samples,
    }


def _rows(rows: pd.DataFrame, whole: pd.DataFrame) -> dict[str, Any]:
    count, pool = len(rows), int(rows["pool"].sum())
    return {
        **{"rows": count, "base": count - pool, "pool": pool, "share": count / len(whole)},
        **{name: described(rows[name]) for name in ("characters", "turns", "tokens")},
    }


def _sizes(counts: Counts, max_length: int) -> list[tuple[str, int, float]]:
    """Return what became of the rows and tokens when the mix was tokenised: (text, number, share of rows or tokens)."""
    parts = [
        (f"rows truncated at trainer.max_length={max_length}", counts.truncated, counts.rows),
        ("rows skipped: nothing left to train on", counts.without_labels, counts.rows),
        ("rows whose text spells a control token, kept as text", counts.special_text, counts.rows),
        *((f"rows with {NOTES[note]}", count, counts.rows) for note, count in counts.template.items()),
        ("trainable tokens (answers and their ends)", counts.trainable_tokens, counts.tokens),
        ("tokens cut off", counts.tokens_cut, counts.tokens + counts.tokens_cut),
    ]
    return [(text, count, count / whole) for text, count, whole in parts]


def _dropped(mix: Mix) -> list[dict[str, Any]]:
    """Return the reasons why rows are not in the mix, the most frequent first, with example rows."""
    found = []
    for origin, part in mix.parts.items():
        for reason, (rows, sources) in drops(part.facts).items():
            entry = {**_reason(reason, origin, rows, sources), "examples": part.examples.get(reason, [])}
            if reason == NEAR and (near_base := sum(part.facts.get("near_base", {}).values())):
                entry["text"] += f" ({near_base:,} of them of a row of the base)"
            found.append(entry)
    return sorted(found, key=lambda entry: -entry["rows"])


def _reason(reason: str, origin: str, rows: int, by_source: Mapping[str, int]) -> dict[str, Any]:
    largest = sorted(by_source.items(), key=lambda entry: -entry[1])
    sources = some((f"{' '.join(name.split())} {count:,}" for name, count in largest), MOST_SOURCES)
    return {"text": REASONS.get(reason, reason), "origin": origin, "rows": rows, "sources": sources}


def describe_overlaps(found: MixOverlaps | None, unchecked: Mapping[str, str], setting: str) -> dict[str, Any]:
    """Return the overlaps with the evaluation by task, and the tasks that were not checked.

    Args:
        found: the overlaps; None if there were no evaluation texts.
        unchecked: the reason by task for the tasks that were not checked.
        setting: `data.contamination`.
    """
    found = found or MixOverlaps(0, 0, counts={}, touched={}, examples={}, too_short={}, shown=[])
    tasks = []
    for task, examples in found.examples.items():
        by_source = found.counts.get(task, {})
        rows = sum(by_source.values())
        entry = {"task": task, "examples": examples, "rows": rows, "share": rows / found.rows, "sources": by_source}
        tasks.append(entry | {"touched": found.touched.get(task, 0), "too_short": found.too_short.get(task, 0)})
    causes: dict[str, list[str]] = {}  # tasks by reason, without the config key in front
    for task, reason in unchecked.items():
        causes.setdefault(reason.partition(": ")[2] or reason, []).append(task)
    return {
        **{"setting": setting, "tasks": tasks},
        "unchecked": [(", ".join(names), reason) for reason, names in causes.items()],
        "overlapping": found.overlapping,
        "examples": found.shown,
    }


def card_page(content: Mapping[str, Any], values: pd.DataFrame, max_length: int, model: str) -> str:
    """Return the HTML page of `content`, the result of `card`; tokens of `model` were truncated at `max_length`."""
    overlaps = {task["task"]: task["sources"] for task in content["contamination"]["tasks"] if task["rows"]}
    title = "Overlapping rows of each task by source"
    pictures = {
        "composition": draw(mix_figures.composition, values),
        "lengths": draw(mix_figures.lengths, values, max_length),
        "overlaps": draw(mix_figures.stacked_bars, title, overlaps) if overlaps else None,
    }
    template = _templates().get_template("card.html.jinja")
    about = f"tokens of {model} · {date.today()}"
    return template.render(card=content, pictures=pictures, max_length=max_length, about=about)


def card_markdown(content: Mapping[str, Any], rows: bool = True) -> str:
    """Return the card as Markdown, without figures; without `rows`, texts of rows and small sources are left out."""
    templates = _templates()
    templates.autoescape = False
    return templates.get_template("card.md.jinja").render(card=content, rows=rows).rstrip() + "\n"


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


def folded(text: str) -> dict[str, Any]:
    """Split a turn into a visible and a folded part; also count the characters that are folded and those left out."""
    visible = FOLDED_AFTER if len(text) > FOLDED_AFTER * 1.3 else len(text)
    cut = max(len(text) - MOST_CHARACTERS, 0)
    return {"head": text[:visible], "tail": text[visible:MOST_CHARACTERS], "more": len(text) - visible, "cut": cut}


def inline(text: str) -> str:
    """Return a text as one line with Markdown and HTML escaped."""
    return re.sub(r"([\\`*_\[\]<>#~!$&])", r"\\\1", " ".join(text.split()))


def fenced(row: Mapping[str, Any]) -> str:
    """Return a conversation in a Markdown code fence longer than any fence in it."""
    turns = "\n\n".join(f"[{turn['role']}]\n{turn['content'][:MOST_CHARACTERS]}" for turn in row["messages"])
    longest = max((len(found) for found in re.findall(r"`{3,}", turns)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{turns}\n{fence}"
