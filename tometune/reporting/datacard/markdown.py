"""mix.md: the same as the page, without pictures, in Markdown that shows texts as they are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tometune.reporting.datacard.page import KEPT, much

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
