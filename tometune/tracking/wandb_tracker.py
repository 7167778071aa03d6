"""Weights & Biases: online with a key, else offline; never a prompt, never a hang.

Each attempt of an offline run is a folder of its own under `<run folder>/wandb/`. All carry the same run id and ask to
be resumed, so `wandb sync` joins them, in order of their start, into one run.
See https://docs.wandb.ai/models/ref/python/functions/init and https://docs.wandb.ai/models/ref/cli/wandb-sync.
"""

import contextlib
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.config.tracking import TrackingConfig
from tometune.tracking.base import RunLabels, RunTracker, sanitise
from tometune.tracking.program import program
from tometune.tracking.wandb_setup import (  # before wandb, whose error reporting it turns off
    REFUSALS,
    choose_mode,
    not_online,
    one_line,
    quiet_settings,
    refused,
    told_online,
)

# isort: split
import wandb
from wandb.errors import CommError
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

log = logging.getLogger(__name__)

TROUBLE = (wandb.Error, ConnectionError, TimeoutError, HandleAbandonedError, MailboxClosedError)
"""What W&B raises when its service process or its server is gone: no reason to lose a run."""


class WandbTracker(RunTracker):
    """One attempt of a run in W&B."""

    def __init__(self, config: TrackingConfig, labels: RunLabels) -> None:
        """Start or resume the run.

        Raises:
            UserError: W&B was told to be online and cannot be, or does not take a name, tag or setting.
        """
        super().__init__(config, labels)
        self.id = sanitise(labels.run_id, 64)
        self.level = logging.INFO
        self._lost = False
        # Artifacts of an offline run are staged until they are synced: beside the run, not in the user's home.
        self._own_data_dir = "WANDB_DATA_DIR" not in os.environ
        if self._own_data_dir:
            os.environ["WANDB_DATA_DIR"] = str(labels.folder / "wandb" / "data")
        try:
            self.mode, self.reason = choose_mode(config.mode)
            self._run = self._start()
            self.step = self._run.step  # past the last one where the server knew the run
        except REFUSALS as error:
            self._close()
            raise refused(error) from None
        except UserError:
            self._close()
            raise
        if labels.replaces:
            self._drop_earlier()
        if self.mode == "offline":
            reason = self.reason or "as asked"
            log.log(self.level, "W&B is offline: %s; to upload later: %s", reason, self.describe()["sync"])

    def _start(self) -> Any:
        """Start the run, offline where the server cannot be had and nobody insisted on it."""
        before = set(self.labels.folder.glob("wandb/*run-*"))
        settings = quiet_settings()
        try:
            return self._init(settings)
        except CommError as error:
            server = wandb.setup().settings.base_url
            reason = f"{server} did not take the run within {settings.init_timeout:g} s: {one_line(error)}"
        wandb.teardown()  # else the service still holds the run id
        for failed in set(self.labels.folder.glob("wandb/*run-*")) - before:
            failed.unlink() if failed.is_symlink() else shutil.rmtree(failed)
        if told_online(self.config.mode):
            raise not_online(reason)
        self.mode, self.reason, self.level = "offline", reason, logging.WARNING
        return self._init(quiet_settings())

    def _init(self, settings: wandb.Settings) -> Any:
        """Call `wandb.init` with everything that identifies the run and nothing that spies on the machine."""
        labels = self.labels
        return wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=labels.group,
            job_type=labels.job_type,
            tags=self.config.tags,
            name=labels.run_id,
            id=self.id,
            resume="allow",
            config=dict(labels.config),
            dir=labels.folder,
            mode=self.mode,
            settings=settings,
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add one point to each of these curves."""
        self.step = max(self.step, step)
        self._try(lambda: self._run.log(metrics, step=step))

    def summary(self, values: dict[str, Any]) -> None:
        """Set summary values."""
        self._try(lambda: self._run.summary.update(values))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a `wandb.Table` at the last step."""
        table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._try(lambda: self._run.log({name: table}, step=self.step))

    def page(self, name: str, html: str) -> None:
        """Log a `wandb.Html` at the last step, as it is: W&B would add a stylesheet from its own server."""
        page = wandb.Html(html, inject=False, data_is_not_path=True)
        self._try(lambda: self._run.log({name: page}, step=self.step))

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any] | None = None) -> None:
        """Log an artifact; its files are read from where they lie instead of being copied first."""
        artifact = wandb.Artifact(name, type=kind, metadata=metadata)
        if path.is_dir():
            artifact.add_dir(str(path), policy="immutable")
        else:
            artifact.add_file(str(path), policy="immutable")
        self._try(lambda: self._run.log_artifact(artifact))

    def finish(self, status: str) -> None:
        """Close the run and stop W&B's service process."""
        self._try(lambda: self._run.finish(exit_code=0 if status == "completed" else 1))
        self._close()

    def _try(self, action: Callable[[], object]) -> None:
        """Do this, unless W&B is gone; where it goes now, say so once and how to upload what it has."""
        if self._lost:
            return
        try:
            action()
        except TROUBLE as error:
            self._lost = True
            upload = sync_command([Path(self._run.settings.sync_dir)])
            log.warning("W&B stopped: %s; the run goes on, to upload what was logged: %s", error, upload)

    def _close(self) -> None:
        """Stop the service and leave the environment as it was."""
        with contextlib.suppress(*TROUBLE):
            wandb.teardown()
        if self._own_data_dir:
            os.environ.pop("WANDB_DATA_DIR", None)

    def describe(self) -> dict[str, Any]:
        """Return project path, mode, folders, the page's address or the command that uploads the run."""
        waiting = [] if self.mode == "disabled" else self._unsynced()
        path = [self._run.entity, self._run.project, self.id]
        return {
            "tracker": "wandb",
            "mode": self.mode,
            "reason": self.reason,
            "path": "/".join(part for part in path if part),
            "url": self._run.url,
            "folders": [str(folder) for folder in waiting],
            "sync": sync_command(waiting) if waiting else None,
        }

    def _drop_earlier(self) -> None:
        """Remove the offline folders of earlier attempts: uploaded after this one, they would take its place."""
        for folder in self._unsynced():
            if folder != Path(self._run.settings.sync_dir):
                shutil.rmtree(folder)

    def _unsynced(self) -> list[Path]:
        """Return the offline folders of this run, this attempt's and earlier ones', that no sync has marked as done."""
        folders = sorted(self.labels.folder.glob(f"wandb/offline-run-*-{self.id}"))
        return [folder for folder in folders if not any(folder.glob("*.wandb.synced"))]


def sync_command(folders: Sequence[Path]) -> str:
    """Return the command that uploads these folders of offline runs."""
    return shlex.join([program("wandb"), "sync", *map(str, folders)])
