"""The data card of a mix: an HTML page and Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tometune.data.contamination import MixOverlaps
from tometune.data.filters import NEAR
from tometune.data.mix import Mix
from tometune.data.ngrams import SHORTEST
from tometune.data.profile import Profile, described, repeats
from tometune.reporting import card_figures
from tometune.reporting.page import environment
from tometune.reporting.training_figures import stacked

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


CARD = "card.html.jinja"

SHOWN = 700
"""Characters of a turn that are shown unasked."""

KEPT = 20_000
"""Characters of a turn that are on the page at all."""


def card_page(card: Mapping[str, Any], mix: Profile, max_length: int | None) -> str:
    """Return the page of a mix.

    Args:
        card: `content.card`.
        mix: the values of its rows.
        max_length: tokens at which rows were cut.
    """
    shared = {
        card_figures.label(task["task"]): {card_figures.label(name): count for name, count in task["sources"].items()}
        for task in card["contamination"]["tasks"]
        if task["rows"]
    }
    with card_figures.drawing():
        steps = {origin: card_figures.steps(rows, origin) for origin, rows in card["ways"].items()}
        pictures = {
            "composition": Markup(card_figures.composition(mix)),  # noqa: S704 - drawn by us
            "shapes": Markup(card_figures.shapes(mix, max_length)),  # noqa: S704
            "overlaps": Markup(stacked(shared)) if shared else None,  # noqa: S704
            "steps": {origin: svg and Markup(svg) for origin, svg in steps.items()},  # noqa: S704
        }
    return _templates().get_template(CARD).render(card=card, pictures=pictures, max_length=max_length)


def _templates() -> Environment:
    """Return what reads the templates."""
    made = environment()
    made.filters |= {"much": much, "folded": folded}
    return made


def much(number: float) -> str:
    """Return a large number in three digits: `61.2 million`."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"


def folded(text: str) -> dict[str, Any]:
    """Return the part of a turn that is shown, the part that is folded away, and how much is left out of the page."""
    if len(text) <= SHOWN * 1.3:
        return {"head": text, "tail": "", "more": 0, "cut": 0}
    return {
        "head": text[:SHOWN],
        "tail": text[SHOWN:KEPT],
        "more": len(text) - SHOWN,
        "cut": max(len(text) - KEPT, 0),
    }


Values = Mapping[str, Any]


def card_markdown(card: Values) -> str:
    """Return the card of a mix."""
    parts = f": {card['base']:,} of the base, {card['pool']:,} of the pool" if card["pool"] else ""
    tokens = f", {much(card['tokens']['sum'])} tokens" if card["tokens"] else ""
    size = f"{much(card['characters']['sum'])} characters{tokens}, {card['turns']['mean']:.1f} turns a row."
    if scores := card["scores"]:
        size += f" Quality score of {scores['rows']:,} rows: mean {scores['mean']:.3f}, median {scores['median']:.3f}."
    lines = [f"# {inline(card['name'])}: data card", "", f"{card['rows']:,} conversations{parts}. {size}", ""]
    prints = [f"{origin} `{print_}`" for origin, print_ in card["fingerprints"].items()]
    lines += [f"seeds.data={card['seed']}, digest `{card['digest']}`, {', '.join(prints)}", ""]
    lines += ["## Sources", "", *_sources(card), ""]
    for origin, way in card["ways"].items():
        rows = [(f"− {name}" if off else name, f"{number:,}") for name, number, off in way]
        lines += [f"## Rows of the {origin}", "", *table(("what", "rows"), rows), ""]
    lines += ["## Left out", ""]
    left = [
        (entry["text"], entry["origin"], f"{entry['rows']:,}", entry["sources"] or "–") for entry in card["left_out"]
    ]
    lines += [*table(("since", "of", "rows", "most of them from"), left)] if left else ["Nothing was left out."]
    for entry in card["left_out"]:
        for row in entry["examples"]:
            lines += ["", f"Left out ({inline(entry['text'])}), {inline(row['source'])}:", "", *_chat(row)]
    repeats = card["repeats"]
    told = ", ".join(f"{inline(name)} {count:,}" for name, count in repeats["sources"].items())
    lines += ["", "## Duplicates in the mix", "", f"{repeats['rows']:,} rows have the text of an earlier row"
        f"{f' ({told})' if told else ''}.", ""]  # fmt: skip
    lines += ["## Words shared with the evaluation", "", *_contamination(card["contamination"]), ""]
    lines += [f"## {len(card['samples'])} rows, drawn with the seed", ""]
    for row in card["samples"]:
        lines += [f"Row {row['number']:,}, {inline(row['source'])}, `{row['row_id']}`:", "", *_chat(row), ""]
    return "\n".join(lines).rstrip() + "\n"


def _sources(card: Values) -> list[str]:
    """Return the table of sources."""
    head = ["source", "rows", "share", "base", "pool", "characters, median", "turns, mean"]
    head += ["tokens"] if card["tokens"] else []
    rows = []
    for entry in card["sources"]:
        numbers = [f"{entry[name]:,}" for name in ("rows", "base", "pool")]
        row = [entry["source"], numbers[0], f"{entry['share']:.1%}", *numbers[1:]]
        row += [f"{entry['characters']['median']:,.0f}", f"{entry['turns']['mean']:.1f}"]
        rows.append([*row, f"{entry['tokens']['sum']:,.0f}"] if card["tokens"] else row)
    return table(head, rows)


def _contamination(found: Values) -> list[str]:
    """Return the table of tasks, and some overlaps."""
    lines = []
    if found["tasks"]:
        rows = [
            (task["task"], f"{task['examples']:,}", f"{task['touched']:,}", f"{task['rows']:,}", f"{task['share']:.4%}",
                ", ".join(f"{name} {count:,}" for name, count in task["sources"].items()) or "–")
            for task in found["tasks"]
        ]  # fmt: skip
        lines += [f"{found['overlapping']:,} rows in all (data.contamination={found['asked']}).", ""]
        lines += table(("task", "examples", "of them found", "rows", "share of rows", "by source"), rows)
    else:
        lines.append("Not looked for: no text of a task was at hand.")
    shown = [
        (entry["task"], entry["example"], f"{entry['origin']}, {entry['source']}", str(entry["words"]), entry["shared"])
        for entry in found["shown"]
    ]
    lines += ["", *table(("task", "example", "row of", "words", "longest run shared"), shown)] if shown else []
    for tasks, cause in found["unchecked"]:
        lines += ["", f"Not looked for in {inline(tasks)}: {inline(cause)}"]
    return lines


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(inline(text) for text in line)} |" for line in lines]


def inline(text: str) -> str:
    """Return a text in one line in which nothing is Markdown or HTML."""
    line = " ".join(text.split())
    return line if line == "---" else re.sub(r"([\\`*_\[\]<>|#~!$&])", r"\\\1", line)


def _chat(row: Values) -> list[str]:
    """Return a conversation in a fence longer than any in it."""
    texts = [f"[{turn['role']}]\n{turn['content'][:KEPT]}" for turn in row["messages"]]
    whole = "\n\n".join(texts)
    longest = max((len(found) for found in re.findall(r"`{3,}", whole)), default=2)
    fence = "`" * (longest + 1)
    return [f"{fence}text", whole, fence]


MOST_SOURCES = 12
SHARED_WORDS = 24
"""Words printed of what is shared."""


def print_contamination(console: Console, found: MixOverlaps | None, unchecked: Mapping[str, str]) -> None:
    """Print a table by task and source, and some of what is shared.

    Args:
        console: where to.
        found: of the mix; None where no task could be looked at.
        unchecked: why, by task.
    """
    if found is not None:
        head = "rows that share 13 words in a row, or a whole shorter text, with an evaluation example"
        rows = [
            (task, name, f"{count:,}", f"{count / found.rows:.4%}")
            for task, by_source in found.counts.items()
            for name, count in list(by_source.items())[:MOST_SOURCES]
        ]
        clean = [task for task in found.examples if task not in found.counts]
        _title(console, f"{head}: {found.overlapping:,}")
        if rows:
            _table(console, ("task", "source", "rows", "share"), rows)
        for entry in found.shown:
            words = entry["shared"].split()
            shown = " ".join(words[:SHARED_WORDS]) + (" …" if entry["words"] > SHARED_WORDS else "")
            told = f"  {entry['task']} {entry['example']}, {entry['source']}, {entry['words']} words: {shown}"
            console.print(Text(told))
        if clean:
            console.print(Text(f"  none with {', '.join(clean)}"))
        if found.too_short:
            short = ", ".join(f"{task} {count:,}" for task, count in found.too_short.items())
            console.print(Text(f"  not looked for, having fewer than {SHORTEST} words: {short}"))
    for tasks, cause in causes(unchecked):
        console.print(Text(f"! evaluation texts not looked for in {tasks}: {cause}", style="yellow"))


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, numbers at the right."""
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for name in head:
        left = name in ("task", "source")
        table.add_column(Text(name), justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        table.add_row(*(Text(" ".join(text.split())) for text in row))
    console.print(table)
