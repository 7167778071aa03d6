"""trackio (https://github.com/gradio-app/trackio): a local database of runs; nothing is sent to a Space or a server.

All runs in one folder share one database, `<folder>/trackio` (or `TRACKIO_DIR`), so that one dashboard shows them
together.
"""

import contextlib
import io
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from tometune.config.tracking import TrackingConfig
from tometune.tracking.tracker import RunLabels, RunTracker, check_local, check_space, program

log = logging.getLogger(__name__)

# Environment variables that would make trackio send runs elsewhere.
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL")


class TrackioTracker(RunTracker):
    """One run in trackio's local database; a later attempt continues the run of the same name."""

    def __init__(self, config: TrackingConfig, labels: RunLabels) -> None:
        super().__init__(config, labels)
        check(config)
        os.environ.setdefault("TRACKIO_DIR", str(labels.folder.parent / "trackio"))
        for name in REMOTE:
            if os.environ.pop(name, None):
                log.warning("%s ignored: runs in trackio stay on this machine", name)
        facts = {"commit": labels.commit, "job_type": labels.job_type, "tags": list(config.tags)}
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio  # reads TRACKIO_DIR when it is imported

            self._trackio = trackio
            check_space(self.place(labels))
            self._run = trackio.init(
                project=config.project,
                name=labels.run_id,
                group=labels.group,
                config={**labels.config, **facts},
                resume="allow",
                embed=False,
                auto_log_gpu=None if config.system else False,  # None: if there is something to log
                auto_log_cpu=None if config.system else False,
            )
            self.next_step = getattr(self._run, "_next_step", 0)  # after the last one in the database
            # It writes in a thread, whose errors it would show as Python's warnings.
            self._run._warn_once = lambda _, message: self.warn(f"writing failed in {self.place(labels)} ({message})")

    @staticmethod
    def place(labels: RunLabels) -> Path:
        if "trackio" in sys.modules:  # it read TRACKIO_DIR when it was imported, maybe for another run
            return Path(sys.modules["trackio"].utils.TRACKIO_DIR)
        return Path(os.environ.get("TRACKIO_DIR") or labels.folder.parent / "trackio")

    def points(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def summary(self, values: dict[str, Any]) -> None:
        self._run.log(values, step=self.step)  # trackio has no summary

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        import pandas as pd

        self._run.log({name: self._trackio.Table(dataframe=pd.DataFrame(rows, columns=columns))}, step=self.step)

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any] | None = None) -> None:
        artifact = self._trackio.Artifact(name, type=kind, metadata=metadata)
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
        self._run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        """Write what is queued, after a last point that says whether the run was completed."""
        self._run.log({"completed": float(status == "completed")}, step=self.step)
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()

    def describe(self) -> dict[str, Any]:
        folder, path = str(self.place(self.labels)), f"{self.config.project}/{self.labels.run_id}"
        command = shlex.join([program("trackio"), "show", "--project", self.config.project])
        show = f"TRACKIO_DIR={shlex.quote(folder)} {command}"
        return {"tracker": "trackio", "mode": "offline", "path": path, "folders": [folder], "show": show}


TRACKER = TrackioTracker
check = check_local
