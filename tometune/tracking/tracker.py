"""The base class of all trackers, and how one is started. Whatever goes wrong in it costs one warning, never the run.

The tracker `name` is the module `tometune.tracking.<name>_tracker`, with a function `check(config)` and a subclass of
`RunTracker` called `TRACKER`; it is imported only if that tracker is chosen.
"""

import functools
import importlib.util
import json
import logging
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tometune.common.errors import UserError, one_line
from tometune.config.tracking import Tracker, TrackingConfig, TrackingMode

log = logging.getLogger(__name__)

MARKERS = re.compile(r"<\|[^<>|]*\|>|</?s>|<bos>|<(?:start|end)_of_turn>|\[/?INST\]|\[gMASK\]")
"""Markers of chat templates, which a table of predictions leaves out of the prompts."""


@dataclass(frozen=True)
class RunLabels:
    """The labels under which a run is tracked."""

    run_id: str  # the same for every attempt
    job_type: str  # the verb, e.g. `train`
    group: str  # used if `tracking.group` is null
    folder: Path  # of the run; trackers write below it
    config: Mapping[str, Any]  # the resolved config as plain values
    commit: str | None = None  # of the code that makes the run
    replaces: bool = False  # whether this attempt replaces earlier ones that were not uploaded


def _safe(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method of a tracker with exceptions turned into one warning per run."""

    @functools.wraps(method)
    def call(self: "RunTracker", *arguments: Any, **options: Any) -> Any:
        if self.lost and method.__name__ not in ("finish", "describe"):
            return None
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            self.lost = self.lost or isinstance(error, self.CONNECTION_ERRORS)
            self.warn(f"{method.__name__} failed{self.where(error, self.labels)} ({described(error)})")
            return {"tracker": str(self.config.tracker)} if method.__name__ == "describe" else None

    return call


class RunTracker:
    """Curves, tables and files of one run; as a context manager it closes the run at the end.

    The base class tracks nothing: everything is in the run folder anyway. A subclass overrides the methods from
    `points` to `sync_command`, and may raise in them.
    """

    # Errors after which nothing more is sent, because each further attempt would wait for a dead connection.
    CONNECTION_ERRORS: tuple[type[Exception], ...] = ()

    def __init__(self, config: TrackingConfig, labels: RunLabels, reason: str | None = None) -> None:
        self.config, self.labels, self.reason = config, labels, reason
        self.step = 0  # the last step that was logged; tables and final values belong to it
        self.next_step = 0  # earlier ones were logged already, in this attempt or a killed one
        self.lost = self.warned = False

    def __init_subclass__(cls) -> None:
        for name in ("log", "summary", "table", "page", "artifact", "finish", "describe"):
            if name in vars(cls):
                setattr(cls, name, _safe(vars(cls)[name]))

    @_safe
    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add one point to each of these curves at this optimiser step (0 is before training).

        A resumed training logs from its first step on, so the steps before `next_step` are skipped.
        """
        if step >= self.next_step:
            self.step, self.next_step = max(self.step, step), step + 1
            self.points(metrics, step)

    def points(self, metrics: dict[str, float], step: int) -> None:
        """Add one point to each of these curves, see `log`."""

    def summary(self, values: dict[str, Any]) -> None:
        """Set the final values by which runs are compared."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Store a table, e.g. of predictions."""

    def page(self, name: str, html: str) -> None:
        """Show an HTML page, if the tracker can."""

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any] | None = None) -> None:
        """Store a file or folder as a named, versioned artifact."""

    def finish(self, status: str) -> None:
        """Close the run; every status but `completed` marks it as failed."""

    def describe(self) -> dict[str, Any]:
        """Return the entry `tracking` of run.json: the tracker, its mode, where the run is, how to upload it."""
        return {"tracker": "none"} if self.reason is None else {"tracker": "none", "reason": self.reason}

    @staticmethod
    def place(labels: RunLabels) -> Path:
        """Return the folder in which it writes."""
        return labels.folder

    @classmethod
    def where(cls, error: Exception, labels: RunLabels) -> str:
        """Return " in FOLDER" if the error is about the tracker's files."""
        about_files = isinstance(error, OSError | sqlite3.Error) and not isinstance(error, cls.CONNECTION_ERRORS)
        return f" in {cls.place(labels)}" if about_files else ""

    def warn(self, problem: str) -> None:
        """Warn of a problem; of the further ones, only the debug log has a line."""
        upload = f"; to upload what was logged: {command}" if (command := self.sync_command()) else ""
        text = f"{self.config.tracker}: {problem}; the run continues{upload}"
        log.log(logging.DEBUG if self.warned else logging.WARNING, text)
        self.warned = True

    def sync_command(self) -> str | None:
        """Return the command that uploads this attempt later; None if there is none."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.finish("completed" if kind is None else "failed")

    @_safe
    def results(self, record: Mapping[str, Any], folder: Path, gains: Callable[[], Mapping[str, Any]]) -> None:
        """Store the results of a run: the numbers of run.json, its gains, predictions, its mix and its adapter."""
        if record.get("train"):  # an attempt that found the training finished has logged no step itself
            self.step = max(self.step, record["train"]["steps"])
        groups = {name: record[name] for name in ("data", "train", "eval") if record.get(name)}
        if "eval" in groups and type(self) is not RunTracker:  # their intervals take seconds
            groups["eval"] = {**groups["eval"], "gain": gains()}
        values = flatten(groups, "/").items()
        self.summary({key: value for key, value in values if type(value) in (int, float)})
        for task, (columns, rows) in prediction_tables(folder, self.config.prediction_rows).items():
            self.table(f"predictions/{task}", columns, rows)
        name = sanitise(self.labels.run_id, 100)
        if (folder / "mix.json").exists():
            self.artifact(f"mix-{name}", "mix", folder / "mix.json", {"rows": groups["data"]["rows"]})
        if self.config.log_adapter and (folder / "adapter").exists():
            self.artifact(f"adapter-{name}", "model", folder / "adapter", dict(record["model"]))


def check_tracker(config: TrackingConfig) -> None:
    """Check the tracker's settings before anything is written; needs no network.

    Raises:
        UserError: the tracker is not installed, rejects a name or tag, or has no key although the mode is `online`.
    """
    if config.tracker is not Tracker.none:
        try:
            _module(config).check(config)
        except UserError:
            raise
        except Exception as error:  # start_tracker warns if the tracker cannot be used then either
            log.debug("%s could not be checked: %s", config.tracker, described(error))


def start_tracker(config: TrackingConfig, labels: RunLabels) -> RunTracker:
    """Start tracking a run, or resume it after an interrupted attempt; if the tracker breaks, track nothing.

    Raises:
        UserError: the tracker is not installed, or the mode is `online` and that is not possible.
    """
    labels = replace(labels, group=config.group or labels.group, folder=labels.folder.resolve())
    labels.folder.mkdir(parents=True, exist_ok=True)
    tracker, reason = RunTracker, None
    try:
        if config.tracker is not Tracker.none:
            tracker = _module(config).TRACKER
            return tracker(config, labels)  # type: ignore[no-any-return]
    except UserError:
        raise
    except Exception as error:
        reason = f"{config.tracker} could not be started{tracker.where(error, labels)} ({described(error)})"
        log.warning("%s; the run continues without a tracker", reason)
    return RunTracker(config, labels, reason)


def _module(config: TrackingConfig) -> Any:
    return importlib.import_module(f"tometune.tracking.{config.tracker}_tracker")


def check_installed(config: TrackingConfig) -> None:
    """Raise UserError if the tracker's package, which has its name, is not installed."""
    name = str(config.tracker)
    if importlib.util.find_spec(name) is None:
        raise UserError(f'tracking.tracker: {name} is not installed; pip install "tometune[{name}]"')


def check_local(config: TrackingConfig) -> None:
    """Raise UserError if a tracker that sends nothing is not installed or the mode is `online`."""
    if config.mode is TrackingMode.online:
        raise UserError(f"tracking.mode: {config.tracker} keeps runs on this machine only; set tracking.mode=auto")
    check_installed(config)


def check_space(folder: Path) -> None:
    """Raise OSError if a folder cannot be written to or the disk is full, which the services of trackers keep quiet."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".space.") as file:
        file.write(bytes(64 * 1024))
        file.flush()


def described(error: Exception) -> str:
    """Return an error in one line; some have no text but their type."""
    return one_line(error).rstrip(".") or type(error).__name__


def sanitise(name: str, most: int) -> str:
    """Return `name` with only letters, digits, `.`, `_` and `-`, cut at the front: a run id has its hash at the end."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-most:].lstrip(".-")


def flatten(values: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings under joined keys: `{"base": {"rouge1": .3}}` → `{"base/rouge1": .3}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, separator, f"{prefix}{key}{separator}") if nested else {f"{prefix}{key}": value}
    return flat


def prediction_tables(folder: Path, rows_per_stage: int) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return (columns, rows) by task: the first rows of every stage's `eval/<stage>/<task>.jsonl`."""
    examples: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("eval/*/*.jsonl")) if rows_per_stage else []:
        with path.open(encoding="utf-8") as lines:
            for line in islice(lines, rows_per_stage):
                row = {"stage": path.parent.name, **flatten(json.loads(line), ".")}
                if "prompt" in row:
                    row["prompt"] = re.sub(r"\n{3,}", "\n\n", MARKERS.sub("\n", row["prompt"])).strip()
                for key, value in row.items():
                    if isinstance(value, list):  # e.g. of references
                        texts = [
                            each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in value
                        ]
                        row[key] = "\n\n".join(texts)
                examples.setdefault(path.stem, []).append(row)
    tables = {}
    for task, rows in examples.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        tables[task] = columns, [[row.get(column) for column in columns] for row in rows]
    return tables


def program(name: str) -> str:
    """Return how to start a program of this environment from the user's shell: its path if that is not active."""
    installed = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    same = found is not None and Path(found).resolve() == installed.resolve()
    return name if same or not installed.exists() else str(installed)
