"""What `prepare` shows: a mix in numbers, and one row with the tokens that are trained on in colour."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tometune.data.mix import Mix
from tometune.data.tokens import IGNORE, Tokens

TRAINED = "bold green"
MOST_SOURCES = 12


def summary(mix: Mix, tokens: Tokens) -> RenderableType:
    """Return tables of sizes, sources, and what was dropped, mended or left out."""
    counts = tokens.counts
    sizes = Table(title=f"{mix.name}, seeds.data={mix.seed}, digest {mix.digest}", show_header=False)
    sizes.add_column()
    sizes.add_column(justify="right")
    for name, value in (
        ("rows", f"{counts.rows:,}"),
        ("tokens", f"{counts.tokens:,}"),
        ("trainable tokens", f"{counts.trainable_tokens:,} ({_share(counts.trainable_tokens, counts.tokens)})"),
        ("rows cut at max_length", f"{counts.truncated:,} ({_share(counts.truncated, counts.rows)})"),
        ("tokens cut off", f"{counts.tokens_cut:,} ({_share(counts.tokens_cut, counts.tokens + counts.tokens_cut)})"),
        ("rows with nothing to train on", f"{counts.without_labels:,}"),
        ("rows that spell a special token", f"{counts.special_text:,}"),
    ):
        sizes.add_row(name, value)
    return Group(sizes, _sources(mix), *_notes(mix))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _sources(mix: Mix) -> Table:
    """Return the rows by source, the most frequent first."""
    table = Table(title="sources")
    table.add_column("source")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    rows = list(mix.sources.items())
    rest = sum(count for _, count in rows[MOST_SOURCES:])
    shown = rows[:MOST_SOURCES] + ([(f"{len(rows) - MOST_SOURCES} more", rest)] if rest else [])
    for name, count in shown:
        table.add_row(Text(name), f"{count:,}", _share(count, len(mix.row_ids)))
    return table


def _notes(mix: Mix) -> Iterator[RenderableType]:
    """Yield what happened to the rows of base and pool before the draw."""
    for origin, facts in mix.facts.items():
        table = Table(
            title=f"{origin}: {facts['read']:,} rows read, {facts['usable']:,} usable, {facts['rows']:,} taken"
        )
        table.add_column("what")
        table.add_column("source")
        table.add_column("rows", justify="right")
        for what, reasons in (("dropped", facts["dropped"]), ("mended", facts["mended"])):
            for reason, by_source in reasons.items():
                for name, count in _largest(by_source):
                    table.add_row(f"{what}: {reason}", Text(name), f"{count:,}")
        for reason, count in facts.get("excluded", {}).items():
            table.add_row(f"excluded: {reason}", "", f"{count:,}")
        yield table if table.row_count else Text(f"{table.title}; none dropped or mended")


def _largest(by_source: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(by_source.items(), key=lambda entry: -entry[1])[:MOST_SOURCES]


def row(tokens: Tokens, tokenizer: Any, number: int) -> Text:
    """Return one row as the model sees it, the trained tokens in colour, special tokens spelt out."""
    entry = tokens.dataset[number]
    shown = Text()
    start = 0
    ids, labels = entry["input_ids"], entry["labels"]
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORE) != (labels[start] == IGNORE):
            text = tokenizer.decode(ids[start:end], skip_special_tokens=False)
            shown.append(text, style="dim" if labels[start] == IGNORE else TRAINED)
            start = end
    return shown
