"""TensorBoard: event files in `<run folder>/tensorboard`; `tensorboard --logdir` on a folder of runs shows them all."""

import html
import re
import shlex
from pathlib import Path
from typing import Any

from tometune.config.tracking import TrackingConfig
from tometune.tracking.tracker import RunLabels, RunTracker, check_local, check_space, flatten, program

SHOWN = re.compile(r"(data|model)\.(name|rows)|seed|(lora|trainer)\..*")
"""Settings in the table of runs, which has a column for each; the text page has all settings."""


class TensorboardTracker(RunTracker):
    """One attempt of a run. It logs the curve from the first step on, so it replaces the files of earlier attempts."""

    def __init__(self, config: TrackingConfig, labels: RunLabels) -> None:
        super().__init__(config, labels)
        check_local(config)
        check_space(self.place(labels))
        for events in self.place(labels).glob("events.*"):
            events.unlink()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.place(labels)), flush_secs=10)
        facts = {"commit": labels.commit, "group": labels.group, "tags": config.tags, **flatten(labels.config, ".")}
        self._settings = {key: value for key, value in facts.items() if SHOWN.fullmatch(key) and value is not None}
        self.table("config", ["key", "value"], [[key, str(value)] for key, value in facts.items()])

    @staticmethod
    def place(labels: RunLabels) -> Path:
        return labels.folder / "tensorboard" / labels.job_type

    def points(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def summary(self, values: dict[str, Any]) -> None:
        """Fill the page HPARAMS with what is compared: main settings, and scores over tasks with their gains."""
        settings = {key: value if type(value) in (int, float) else str(value) for key, value in self._settings.items()}
        scores = {key: value for key, value in values.items() if key.startswith("eval/") and "/tasks/" not in key}
        self._writer.add_hparams(settings, scores, run_name=".", global_step=self.step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        def line(cells: list[Any]) -> str:
            texts = [f"{cell:.4g}" if isinstance(cell, float) else html.escape(str(cell)) for cell in cells]
            return "| " + " | ".join(text.replace("|", "&#124;").replace("\n", "<br>") for text in texts) + " |"

        self._writer.add_text(
            name, "\n".join([line(columns), "|---" * len(columns) + "|", *map(line, rows)]), self.step
        )

    def finish(self, status: str) -> None:
        self._writer.add_text("status", status, self.step)
        self._writer.close()

    def describe(self) -> dict[str, Any]:
        show = shlex.join([program("tensorboard"), "--logdir", str(self.labels.folder.parent)])
        return {"tracker": "tensorboard", "mode": "offline", "folders": [str(self.place(self.labels))], "show": show}


TRACKER = TensorboardTracker
check = check_local
