"""What `prepare` prints of contamination."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tometune.data.contamination import MixOverlaps
from tometune.data.ngrams import SHORTEST
from tometune.reporting.datacard.content import causes

MOST_SOURCES = 12
WORDS = 24
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
            shown = " ".join(words[:WORDS]) + (" …" if entry["words"] > WORDS else "")
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
