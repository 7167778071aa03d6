"""Weights & Biases: online with a key, else offline; never a prompt, never a hang.

Each attempt of an offline run is a folder under `<run folder>/wandb/`. All have the same run id and ask to be resumed,
so `wandb sync` joins them into one run, in the order of their start.
See https://docs.wandb.ai/models/ref/python/functions/init and https://docs.wandb.ai/models/ref/cli/wandb-sync.
"""

import contextlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.files import relative_path
from tometune.common.process import Stopped
from tometune.config.tracking import TrackingConfig, TrackingMode
from tometune.tracking.tracker import RunLabels, RunTracker, check_space, described, program, sanitise

# W&B reads this when it is imported: crash reports stay on the machine unless the user asks for them.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

# isort: split
import wandb
from pydantic import ValidationError
from wandb.errors import AuthenticationError, CommError, UsageError
from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

log = logging.getLogger(__name__)


class WandbTracker(RunTracker):
    """One attempt of a run in W&B."""

    CONNECTION_ERRORS = (wandb.Error, ConnectionError, TimeoutError, HandleAbandonedError, MailboxClosedError)

    def __init__(self, config: TrackingConfig, labels: RunLabels) -> None:
        """Start or resume the run. Raises UserError like `check`, or if the mode is `online` and the server is not."""
        super().__init__(config, labels)
        self.id = sanitise(labels.run_id, 64)
        check_space(self.place(self.labels))
        # Artifacts of an offline run wait for `wandb sync` in this folder, which by default is in the user's home.
        self._own_data_dir = "WANDB_DATA_DIR" not in os.environ
        if self._own_data_dir:
            os.environ["WANDB_DATA_DIR"] = str(self.place(labels) / "data")
        level = logging.INFO
        try:
            with rejections():
                self.mode, self.reason = choose_mode(config.mode)
                try:
                    self._run = self._init()
                except CommError as error:
                    self._go_offline(error)
                    level = logging.WARNING
                    self._run = self._init()
        except BaseException:
            self._release()
            raise
        # W&B would report each library that is imported, and raise in the import once its service is gone.
        unregister_all_post_import_hooks()
        self.step = self._run.step  # past the last step if the server knew the run
        if labels.replaces:  # uploaded after this one, an earlier attempt would replace it
            for folder in self._unsynced(others=True):
                shutil.rmtree(folder)
        # What a killed attempt wrote last never reached the server or its folder.
        self.next_step = self._run.step if self.mode == "online" else self._next_offline()
        if self.mode == "offline":
            sync = shlex.join(map(relative_path, shlex.split(self.describe()["sync"])))
            log.log(level, "W&B is offline (%s); to upload the run later: %s", self.reason or "as configured", sync)

    def _go_offline(self, error: CommError) -> None:
        """Switch to offline mode after a failed start."""
        server, timeout = wandb.setup().settings.base_url, quiet_settings().init_timeout
        reason = f"{server} did not accept the run within {timeout:g} s: {described(error)}"
        teardown()  # otherwise the service still holds the run id
        for failed in self.labels.folder.glob("wandb/run-*"):
            shutil.rmtree(failed)
        self.mode, self.reason = _offline(self.config.mode, reason)

    def _init(self) -> Any:
        """Call `wandb.init` with everything that identifies the run and nothing about the machine."""
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
            mode=self.mode,  # type: ignore[arg-type]
            settings=quiet_settings(git_commit=labels.commit, x_disable_stats=not self.config.system),
        )

    def points(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def summary(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        try:
            made = wandb.Table(columns=columns, data=rows)  # columns of numbers can be sorted and plotted
        except TypeError:
            made = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._run.log({name: made}, step=self.step)

    def page(self, name: str, html: str) -> None:
        # By default W&B would inject a stylesheet from its server.
        self._run.log({name: wandb.Html(html, inject=False, data_is_not_path=True)}, step=self.step)

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any] | None = None) -> None:
        artifact = wandb.Artifact(name, type=kind, metadata=metadata)
        # The files are read in place instead of being copied first.
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path), policy="immutable")
        self._run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        try:
            if not self.lost:
                self._run.finish(exit_code=0 if status == "completed" else 1)
                check_space(self.place(self.labels))
        finally:
            self._release()

    def _release(self) -> None:
        if self._own_data_dir:
            os.environ.pop("WANDB_DATA_DIR", None)
        with contextlib.suppress(*self.CONNECTION_ERRORS):
            teardown()

    def describe(self) -> dict[str, Any]:
        waiting = [] if self.mode == "disabled" else self._unsynced()
        path = "/".join(filter(None, [self._run.entity, self._run.project, self.id]))
        entry = {"tracker": "wandb", "mode": self.mode, "reason": self.reason, "path": path, "url": self._run.url}
        return {**entry, "folders": [*map(str, waiting)], "sync": _sync(*waiting) if waiting else None}

    @staticmethod
    def place(labels: RunLabels) -> Path:
        return labels.folder / "wandb"

    def sync_command(self) -> str:
        return _sync(self._run.settings.sync_dir)

    def _attempts(self, others: bool = False) -> list[Path]:
        """Return the offline folders of all attempts, or of the others."""
        found = sorted(self.labels.folder.glob(f"wandb/offline-run-*-{self.id}"))
        return [folder for folder in found if not (others and folder == Path(self._run.settings.sync_dir))]

    def _unsynced(self, others: bool = False) -> list[Path]:
        """Return those that no `wandb sync` has marked as uploaded."""
        return [folder for folder in self._attempts(others) if not any(folder.glob("*.wandb.synced"))]

    def _next_offline(self) -> int:
        """Return the step after the last one in the folders of earlier attempts, which W&B's own reader names."""
        steps = [-1]
        for folder in self._attempts(others=True):
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(folder)]
            try:
                done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)  # noqa: S603
                steps.append(json.loads(done.stdout).get("step") or 0)
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                log.debug("%s cannot be read: %s", folder, error)
        return 1 + max(steps)


TRACKER = WandbTracker


def check(config: TrackingConfig) -> None:
    """Raise UserError if W&B would reject a name or tag, or if the mode is `online` and there is no key."""
    names = {"project": config.project, "entity": config.entity, "run_group": config.group}
    try:
        with rejections():
            wandb.Settings(**names, run_tags=tuple(config.tags))
            choose_mode(config.mode)
    finally:
        teardown()


def teardown() -> None:
    """End W&B's service. If that has crashed, W&B would end this process with its exit status."""
    try:
        wandb.teardown()
    except Stopped:
        raise
    except SystemExit as error:
        log.debug("W&B's service ended with status %s", error.code)


def choose_mode(wanted: TrackingMode) -> tuple[str, str | None]:
    """Return the mode (online, offline or disabled) and, if `auto` could not go online, the reason.

    With `auto`, WANDB_MODE and W&B's own settings decide, then whether there is a key. Raises UserError if the mode is
    `online` and there is no key.
    """
    if wanted is TrackingMode.offline:
        return "offline", None
    explicit = {"mode": "online"} if wanted is TrackingMode.online else {}
    found = wandb.setup(settings=wandb.Settings(silent=True, **explicit)).settings.mode
    if found in ("offline", "dryrun", "disabled"):
        return ("disabled" if found == "disabled" else "offline"), None
    try:
        key = wandb.login(prompt=False, verify=False)
        reason = f"no API key (`{program('wandb')} login` stores one)"
    except AuthenticationError as error:
        key, reason = False, described(error)
    return ("online", None) if key else _offline(wanted, reason)


def _offline(wanted: TrackingMode, reason: str) -> tuple[str, str]:
    """Return the mode and the reason. Raises UserError if the config or the environment insists on the server."""
    if wanted is TrackingMode.online or (wanted is TrackingMode.auto and os.environ.get("WANDB_MODE") == "online"):
        raise UserError(
            f"tracking.mode: online is not possible ({reason}); set tracking.mode=offline, or tracking=none"
        )
    return "offline", reason


@contextlib.contextmanager
def rejections() -> Iterator[None]:
    """Turn W&B's errors for a name, tag or setting that it does not accept into a `UserError`."""
    try:
        yield
    except (UsageError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        texts = [problem["msg"] for problem in error.errors()] if isinstance(error, ValidationError) else []
        problem = "; ".join(texts) or described(error)
        raise UserError(f"tracking: W&B rejects this: {problem}; fix it, or set tracking=none") from None


def quiet_settings(**more: Any) -> wandb.Settings:
    """Return settings with which W&B prints nothing and sends nothing except what it is given and, if asked, its stats.

    The stats (use of the GPU, its memory, CPU, disk and network) hold no name of the machine.
    """
    return wandb.Settings(
        silent=True,
        console="off",
        use_dot_wandb=False,
        disable_git=True,
        disable_code=True,
        save_code=False,
        finish_timeout_raises=True,
        host="",
        x_disable_meta=True,
        x_disable_machine_info=more.get("x_disable_stats", True),  # this would turn off the stats, too
        x_save_requirements=False,
        x_transaction_log_flush_interval=2.0,  # seconds of curves that a kill can cost
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", 20)),  # seconds until a run starts offline instead
        finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", 300)),  # the rest is left to `wandb sync`
        **more,
    )


def _sync(*folders: Path | str) -> str:
    return shlex.join([program("wandb"), "sync", *map(str, folders)])
