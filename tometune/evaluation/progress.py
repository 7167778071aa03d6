"""A progress bar over the answers of a stage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def answers_bar(
    stage: str, instead: Callable[[str, int, int], None] | None = None
) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function to tell of a task's name, its answers so far and its number of examples.

    Args:
        stage: `base` or `tuned`.
        instead: used in place of the bar, which shows only where stderr is a terminal.
    """
    if instead is not None:
        yield instead
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        shown = bar.add_task(stage, total=None)

        def tell(task: str, done: int, total: int) -> None:
            bar.update(shown, description=f"{stage}: {task}", completed=done, total=total)

        yield tell
