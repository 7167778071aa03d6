"""MLflow: a local database and folder, `<folder of the runs>/mlflow`, or the server that MLFLOW_TRACKING_URI names.

Nothing is sent to a server if that variable is not set, or with `tracking.mode=offline`.
"""

import contextlib
import io
import json
import logging
import os
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.config.tracking import TrackingConfig, TrackingMode
from tometune.tracking.tracker import RunLabels, RunTracker, check_installed, check_space, flatten, program

URI = "MLFLOW_TRACKING_URI"

# Read when MLflow is imported: it would report its use to its makers, and repeat a failed request for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


class MlflowTracker(RunTracker):
    """One run; a later attempt continues it."""

    def __init__(self, config: TrackingConfig, labels: RunLabels) -> None:
        super().__init__(config, labels)
        check(config)
        self._tables: list[dict[str, str]] = []
        mlflow = import_module("mlflow")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        given, files = os.environ.get(URI), None
        self._mlflow, self.server = mlflow, None if config.mode is TrackingMode.offline else given
        if self.server is None:
            check_space(self.place(labels))
            files = (self.place(labels) / "artifacts").as_uri()
        else:
            self.CONNECTION_ERRORS = (mlflow.MlflowException,)
        mlflow.set_tracking_uri(self.server or self._database)
        os.environ.pop(URI, None)  # MLflow sets it for processes that are started from here
        os.environ |= {URI: given} if given else {}
        client = mlflow.MlflowClient()
        if client.get_experiment_by_name(config.project) is None:
            with contextlib.suppress(mlflow.MlflowException):  # another run was faster
                client.create_experiment(config.project, files)
        project = mlflow.set_experiment(config.project).experiment_id
        same = f"tags.run_id = '{labels.run_id}' and tags.job_type = '{labels.job_type}'"
        resumed = client.search_runs([project], same)
        tags = {name: str(getattr(labels, name)) for name in ("run_id", "job_type", "group")}
        tags |= {"tags": ",".join(config.tags), "mlflow.source.name": "tometune", "mlflow.source.type": "LOCAL"}
        tags["mlflow.source.git.commit"] = labels.commit or ""  # shown if there is a source
        # `mlflow.start_run` would make a run with the user's name, the git remote and the file that was started.
        run = resumed[0] if resumed else client.create_run(project, tags=tags, run_name=labels.run_id)
        points = client.get_metric_history(run.info.run_id, "train/loss")
        self.next_step = 1 + max((point.step for point in points), default=-1)
        settings = {} if resumed else flatten(labels.config, ".")
        params = [mlflow.entities.Param(_key(name), str(value)) for name, value in settings.items()]
        for start in range(0, len(params), 100):  # the most that MLflow takes at once
            client.log_batch(run.info.run_id, params=params[start : start + 100])
        mlflow.start_run(run_id=run.info.run_id, log_system_metrics=config.system)

    @property
    def _database(self) -> str:
        return f"sqlite:///{self.place(self.labels)}/mlflow.db"

    @staticmethod
    def place(labels: RunLabels) -> Path:
        return labels.folder.parent / "mlflow"

    def points(self, metrics: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(metrics, step)

    def summary(self, values: dict[str, Any]) -> None:
        self._mlflow.log_metrics({_key(name): value for name, value in values.items()}, self.step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self._mlflow.log_dict({"columns": columns, "data": rows}, f"{name}.json")
        self._tables.append({"path": f"{name}.json", "type": "table"})
        self._mlflow.set_tag("mlflow.loggedArtifacts", json.dumps(self._tables))  # its page shows these as tables

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any] | None = None) -> None:
        del name, metadata  # a run's files are its own in MLflow
        (self._mlflow.log_artifacts if path.is_dir() else self._mlflow.log_artifact)(str(path), kind)

    def finish(self, status: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # a server's address, which `describe` has
            self._mlflow.end_run("FINISHED" if status == "completed" else "FAILED")

    def describe(self) -> dict[str, Any]:
        entry = {"tracker": "mlflow", "path": f"{self.config.project}/{self.labels.run_id}"}
        if self.server is not None:
            return {**entry, "mode": "online", "url": self.server}
        show = shlex.join([program("mlflow"), "ui", "--backend-store-uri", self._database])
        return {**entry, "mode": "offline", "folders": [str(self.place(self.labels))], "show": show}


TRACKER = MlflowTracker


def check(config: TrackingConfig) -> None:
    """Raise UserError if MLflow is not installed, the address holds a password, or the mode is `online` without one."""
    check_installed(config)
    server = os.environ.get(URI, "")
    if config.mode is TrackingMode.online and not server:
        raise UserError(f"tracking.mode: online needs a server's address in {URI}; set it, or tracking.mode=offline")
    if config.mode is not TrackingMode.offline and "@" in server:  # it would be in errors and run.json
        names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise UserError(f"{URI}: holds a name or password; put them into {names}, or set tracking.mode=offline")


def _key(name: str) -> str:
    return re.sub(r"[^\w./: -]", "_", name)
