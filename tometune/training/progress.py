"""The progress bar, where there is a terminal to draw it on."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback


def progress_callbacks() -> list[TrainerCallback]:
    """Return the bar if standard error is a terminal; elsewhere the log lines are enough."""
    return [ProgressBar()] if sys.stderr.isatty() else []


class ProgressBar(TrainerCallback):
    """Optimiser steps done, with the last loss and the time left."""

    def __init__(self) -> None:
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, *times, console=Console(stderr=True), transient=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Show the bar at the step the training starts from."""
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step, loss="")
        self.progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Advance."""
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Show the loss."""
        if logs and "loss" in logs:
            self.progress.update(self.task, loss=f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Take the bar away."""
        self.progress.stop()
