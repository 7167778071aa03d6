"""What `prepare` shows: a mix in numbers, and one row with the tokens that are trained on told from the others."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tometune.data.filters import NEAR
from tometune.data.labels import IGNORE
from tometune.data.mix import Mix
from tometune.data.tokens import Tokens

TRAINED, OTHER = "bold green", "dim"
MARKS = ("⟦", "⟧")
"""Around trained tokens where there is no colour, as in a file."""

MOST_SOURCES = 12
MOST_NAME = 40
"""Characters of a source's name."""


def summary(mix: Mix, tokens: Tokens, max_length: int) -> RenderableType:
    """Return tables of sizes, sources, and what was dropped, mended or left out.

    Args:
        mix: the conversations.
        tokens: the same, tokenised.
        max_length: tokens a row may have, as they were tokenised with.
    """
    count = len(mix.row_ids)
    rows = f"{count:,} row{'s' if count != 1 else ''}"
    title = Text(f"{mix.name}: {rows}, seeds.data={mix.seed}, digest {mix.digest}", style="bold")
    odd = list(_odd(mix))
    tables = [_sizes(tokens, max_length), _origins(mix), _sources(mix)]
    if odd:
        tables.append(_table("dropped and mended rows by source", ("what", "from", "source", "rows"), odd))
    return Group(title, *(part for table in tables for part in ("", table)))


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> RenderableType:
    """Return a table below its title, all its columns of numbers at the right; a title may be wider than its table."""
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for name in columns:
        number = name in ("rows", "share", "base", "pool", "number")
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(Text(title, style="bold"), table)


def _sizes(tokens: Tokens, max_length: int) -> RenderableType:
    """Return rows and tokens, and what was cut off."""
    counts = tokens.counts
    whole = counts.tokens + counts.tokens_cut
    rows = [
        ("rows", f"{counts.rows:,}", ""),
        (f"rows cut, being longer than trainer.max_length={max_length}", *_part(counts.truncated, counts.rows)),
        ("rows with nothing to train on after that, left out", *_part(counts.without_labels, counts.rows)),
        ("rows whose text spells a control token, kept as text", *_part(counts.special_text, counts.rows)),
        ("tokens", f"{counts.tokens:,}", ""),
        ("trainable tokens (answers and their ends)", *_part(counts.trainable_tokens, counts.tokens)),
        ("tokens cut off", *_part(counts.tokens_cut, whole)),
    ]
    return _table("size", ("what", "number", "share"), rows)


def _part(part: int, whole: int) -> tuple[str, str]:
    return f"{part:,}", f"{part / whole:.1%}" if whole else "–"


def _origins(mix: Mix) -> RenderableType:
    """Return the way from the rows that were read to those taken, a column for the base and one for the pool."""
    columns = [_steps(facts) for facts in mix.facts.values()]
    names = sorted({name for steps in columns for name in steps})
    rows = [
        (name, *(f"{steps[place, name]:,}" if (place, name) in steps else "" for steps in columns))
        for place, name in names
    ]
    return _table("where they come from", ("what", *mix.facts), rows)


def _steps(facts: Mapping[str, Any]) -> dict[tuple[int, str], int]:
    """Return the rows of a base or pool at each step, and what was taken off on the way; the number is its place."""
    steps = {(0, "read"): facts["read"], (2, "usable"): facts["usable"], (10, "taken"): facts["rows"]}
    for reason, by_source in facts["dropped"].items():
        steps[1, f"− dropped: {reason}"] = sum(by_source.values())
    for reason, by_source in facts["mended"].items():
        steps[3, f"  of them mended: {reason}"] = sum(by_source.values())
    for reason, by_source in facts["filtered"].items():
        steps[4, f"− filtered: {reason}"] = sum(by_source.values())
    if shared := facts.get("contaminated_rows", 0):
        steps[4, "− shares words with the evaluation"] = shared
    if NEAR in facts:
        steps[8, "− nearly the text of a row that is kept"] = sum(facts[NEAR].values())
    if "excluded" in facts:
        left = facts["usable"] - sum(sum(by_source.values()) for by_source in facts["filtered"].values()) - shared
        near = sum(facts.get(NEAR, {}).values())
        in_base, repeats = facts["excluded"]["in_base"], facts["excluded"]["repeats"]
        steps[5, "− text is in the base"] = in_base
        steps[6, "− text is in an earlier row of the pool"] = repeats
        if both := in_base + repeats - (left - near - facts["eligible"]):
            steps[7, "+ both, so taken off twice"] = both
        steps[9, "left to draw from"] = facts["eligible"]
    return steps


def _sources(mix: Mix) -> RenderableType:
    """Return the rows by source, the most frequent first."""
    rows = list(mix.sources.items())
    rest = sum(count for _, count in rows[MOST_SOURCES:])
    shown = rows[:MOST_SOURCES] + ([(f"{len(rows) - MOST_SOURCES} more", rest)] if rest else [])
    return _table(
        "sources",
        ("source", "rows", "share"),
        [(_name(name), *_part(count, len(mix.row_ids))) for name, count in shown],
    )


def _odd(mix: Mix) -> Iterator[tuple[str, ...]]:
    """Yield the rows that were dropped or mended: what, whether of base or pool, source, rows; most first."""
    for origin, facts in mix.facts.items():
        for what in ("dropped", "mended"):
            for reason, by_source in facts[what].items():
                for name, count in sorted(by_source.items(), key=lambda entry: -entry[1])[:MOST_SOURCES]:
                    yield f"{what}: {reason}", origin, _name(name), f"{count:,}"


def _name(source: str) -> str:
    """Return a source's name in one line, cut if it is long."""
    name = " ".join(source.split())
    return name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 1]}…"


def row(tokens: Tokens, tokenizer: Any, number: int, marks: tuple[str, str] = ("", "")) -> Text:
    """Return one row as the model sees it, the trained tokens in colour, special tokens spelt out.

    Args:
        tokens: the tokenised mix.
        tokenizer: it was made with.
        number: of the row among those that are trained on.
        marks: put around the trained tokens, where colour does not show.
    """
    entry = tokens.dataset[number]
    shown = Text()
    start = 0
    ids, labels = entry["input_ids"], entry["labels"]
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORE) != (labels[start] == IGNORE):
            text = tokenizer.decode(ids[start:end], skip_special_tokens=False)
            trained = labels[start] != IGNORE
            shown.append(f"{marks[0]}{text}{marks[1]}" if trained else text, style=TRAINED if trained else OTHER)
            start = end
    return shown
