"""trackio (https://github.com/gradio-app/trackio): a local database of runs; nothing goes to a Space or a server.

All runs beside each other share one database, `<folder of the runs>/trackio` (or `TRACKIO_DIR`), so that one dashboard
shows them together.
"""

import contextlib
import importlib.util
import io
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tometune.common.errors import UserError
from tometune.config.tracking import TrackingConfig, TrackingMode
from tometune.tracking.base import RunLabels, RunTracker
from tometune.tracking.program import program

log = logging.getLogger(__name__)

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL")
"""Environment variables by which trackio would send runs elsewhere; a run is started without them."""


class TrackioTracker(RunTracker):
    """One run in trackio's local database; an attempt goes on with the run of the same name."""

    def __init__(self, config: TrackingConfig, labels: RunLabels) -> None:
        """Start or resume the run.

        Raises:
            UserError: trackio is not installed, or was told to be online.
        """
        super().__init__(config, labels)
        check(config)
        with _local(labels.folder.parent / "trackio"):
            import trackio  # reads TRACKIO_DIR when it is imported

            self._trackio = trackio
            self.folder = Path(trackio.utils.TRACKIO_DIR)
            self._run = trackio.init(
                project=config.project,
                name=labels.run_id,
                group=labels.group,
                config={**labels.config, "job_type": labels.job_type, "tags": list(config.tags)},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add one point to each of these curves."""
        self.step = max(self.step, step)
        self._run.log(metrics, step=step)

    def summary(self, values: dict[str, Any]) -> None:
        """Log the values at the last step: trackio has no summary of its own."""
        self._run.log(values, step=self.step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a `trackio.Table` at the last step."""
        frame = pd.DataFrame(rows, columns=columns)
        self._run.log({name: self._trackio.Table(dataframe=frame)}, step=self.step)

    def page(self, name: str, html: str) -> None:
        """Do nothing: trackio shows no pages."""

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any] | None = None) -> None:
        """Store a file or folder in trackio's artifact store."""
        artifact = self._trackio.Artifact(name, type=kind, metadata=metadata)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        """Write out what is queued, after a last point that says whether the run was completed."""
        self._run.log({"completed": float(status == "completed")}, step=self.step)
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()

    def describe(self) -> dict[str, Any]:
        """Return the database's folder and the command that shows it."""
        command = shlex.join([program("trackio"), "show", "--project", self.config.project])
        show = f"TRACKIO_DIR={shlex.quote(str(self.folder))} {command}"
        path = f"{self.config.project}/{self.labels.run_id}"
        return {"tracker": "trackio", "mode": "offline", "path": path, "folders": [str(self.folder)], "show": show}


def check(config: TrackingConfig) -> None:
    """Find whether trackio can be used.

    Raises:
        UserError: it is not installed, or was told to be online.
    """
    if config.mode is TrackingMode.online:
        raise UserError("tracking.mode: trackio keeps runs on this machine only; set tracking.mode=auto")
    if importlib.util.find_spec("trackio") is None:
        raise UserError('tracking.tracker: trackio is not installed; pip install "tometune[trackio]"')


@contextlib.contextmanager
def _local(folder: Path) -> Iterator[None]:
    """Start trackio quietly, on `folder` unless the user chose another, and without an address to send to."""
    os.environ.setdefault("TRACKIO_DIR", str(folder))
    hidden = {name: os.environ.pop(name) for name in REMOTE if name in os.environ}
    if hidden:
        log.warning("%s: ignored, trackio stays on this machine", ", ".join(hidden))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.environ |= hidden
