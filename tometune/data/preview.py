"""What `prepare` prints: counts of the mix, and one row with its trained tokens highlighted."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tometune.data.filters import NEAR
from tometune.data.labels import IGNORE
from tometune.data.mix import Mix
from tometune.data.profile import unread_columns
from tometune.data.tokens import Tokens

TRAINED, OTHER = "bold green", "dim"
MARKS = ("⟦", "⟧")  # around trained tokens if there is no colour, as in a file
MOST_SOURCES = 12
LONGEST_NAME = 40


def summary(mix: Mix, tokens: Tokens, max_length: int) -> RenderableType:
    """Return tables of sizes, steps from read to taken rows, sources, and dropped and fixed rows."""
    count = len(mix.row_ids)
    rows = f"{count:,} row{'s' if count != 1 else ''}"
    title = Text(f"{mix.name}: {rows}, seeds.data={mix.seed}, digest {mix.digest}", style="bold")
    # Steps from the rows read to the rows taken, one column each for base and pool.
    columns = [_steps(facts) for facts in mix.facts.values()]
    steps = sorted({step for column in columns for step in column})
    table = [(step[1], *(f"{column[step]:,}" if step in column else "" for column in columns)) for step in steps]
    tables = [
        _sizes(tokens, max_length),
        _table("from rows read to rows taken", ("step", *mix.facts), table),
        _sources(mix),
    ]
    odd = [
        (f"{verb}: {reason}", origin, _name(name), f"{number:,}")
        for origin, facts in mix.facts.items()
        for verb, key in (("dropped", "dropped"), ("cannot be read", "malformed"), ("fixed", "mended"))
        for reason, by_source in facts[key].items()
        for name, number in sorted(by_source.items(), key=lambda entry: -entry[1])[:MOST_SOURCES]
    ]
    if odd:
        tables.append(_table("dropped and fixed rows by source", ("reason", "from", "source", "rows"), odd))
    if unread := unread_columns(mix):
        shown = [(origin, _name(source), names) for origin, source, names in unread[:MOST_SOURCES]]
        tables.append(
            _table("columns and keys of turns that were not read", ("from", "source", "name and rows"), shown)
        )
    return Group(title, *(part for table in tables for part in ("", table)))


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> RenderableType:
    """Return a table below its title, which may be wider; columns of numbers are right-aligned."""
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for name in columns:
        number = name in ("rows", "share", "base", "pool", "number")
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(Text(title, style="bold"), table)


def _sizes(tokens: Tokens, max_length: int) -> RenderableType:
    counts = tokens.counts
    rows = [
        ("rows", f"{counts.rows:,}", ""),
        (f"rows truncated at trainer.max_length={max_length}", *_share(counts.truncated, counts.rows)),
        ("rows skipped: no trainable tokens left after that", *_share(counts.without_labels, counts.rows)),
        ("rows whose text spells a control token, kept as text", *_share(counts.special_text, counts.rows)),
        ("tokens", f"{counts.tokens:,}", ""),
        ("trainable tokens (answers and their ends)", *_share(counts.trainable_tokens, counts.tokens)),
        ("tokens cut off", *_share(counts.tokens_cut, counts.tokens + counts.tokens_cut)),
    ]
    return _table("size", ("", "number", "share"), rows)


def _share(part: int, whole: int) -> tuple[str, str]:
    return f"{part:,}", f"{part / whole:.1%}" if whole else "–"


def _steps(facts: Mapping[str, Any]) -> dict[tuple[int, str], int]:
    """Return the rows of a base or pool at each step, and those subtracted on the way; the number is the order."""
    steps = {(0, "read"): facts["read"], (2, "usable"): facts["usable"], (10, "taken"): facts["rows"]}
    for place, key, prefix in (
        (1, "dropped", "− dropped"),
        (1, "malformed", "− cannot be read"),
        (3, "mended", "  of them fixed"),
        (4, "filtered", "− filtered"),
    ):
        steps |= {(place, f"{prefix}: {reason}"): sum(counts.values()) for reason, counts in facts[key].items()}
    if contaminated := facts.get("contaminated_rows", 0):
        steps[4, "− shares words with the evaluation"] = contaminated
    if NEAR in facts:
        steps[8, "− near-duplicate of a row that stays"] = sum(facts[NEAR].values())
    if "excluded" in facts:
        left = facts["usable"] - sum(number for (place, _), number in steps.items() if place == 4)
        near = sum(facts.get(NEAR, {}).values())
        in_base, repeats = facts["excluded"]["in_base"], facts["excluded"]["repeats"]
        steps[5, "− text is in the base"] = in_base
        steps[6, "− text is in an earlier row of the pool"] = repeats
        if both := in_base + repeats - (left - near - facts["eligible"]):
            steps[7, "+ both, so subtracted twice"] = both
        steps[9, "left to draw from"] = facts["eligible"]
    return steps


def _sources(mix: Mix) -> RenderableType:
    rows = list(mix.sources.items())
    if rest := rows[MOST_SOURCES:]:
        rows = [*rows[:MOST_SOURCES], (f"{len(rest)} more", sum(count for _, count in rest))]
    entries = ((_name(name), *_share(count, len(mix.row_ids))) for name, count in rows)
    return _table("sources", ("source", "rows", "share"), entries)


def _name(source: str) -> str:
    name = " ".join(source.split())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def row(tokens: Tokens, tokenizer: Any, number: int, marks: tuple[str, str] = ("", "")) -> Text:
    """Return one row of `tokens.dataset` as the model sees it, with the trained tokens in colour and between marks."""
    entry = tokens.dataset[number]
    ids, labels = entry["input_ids"], entry["labels"]
    shown, start = Text(), 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORE) != (labels[start] == IGNORE):
            text = tokenizer.decode(ids[start:end], skip_special_tokens=False)
            trained = labels[start] != IGNORE
            shown.append(f"{marks[0]}{text}{marks[1]}" if trained else text, style=TRAINED if trained else OTHER)
            start = end
    return shown
