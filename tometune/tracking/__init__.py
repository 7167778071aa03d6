"""Experiment tracking behind one small class; a tracker's library is imported only if that tracker is chosen.

The tracker `name` is the module `tometune.tracking.<name>_tracker`, with a function `check(config)` and a subclass of
`RunTracker` called `TRACKER`.
"""

import logging
from dataclasses import replace
from importlib import import_module
from typing import Any

from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.tracking.tracker import RunLabels, RunTracker, described

__all__ = ["RunLabels", "RunTracker", "check_tracker", "start_tracker"]

log = logging.getLogger(__name__)


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
    reason = None
    if config.tracker is not Tracker.none:
        tracker = RunTracker
        try:
            tracker = _module(config).TRACKER
            return tracker(config, labels)  # type: ignore[no-any-return]
        except UserError:
            raise
        except Exception as error:
            reason = f"{config.tracker} could not be started{tracker.where(error, labels)} ({described(error)})"
            log.warning("%s; the run continues without a tracker", reason)
    return RunTracker(config, labels, reason)


def _module(config: TrackingConfig) -> Any:
    return import_module(f"tometune.tracking.{config.tracker}_tracker")
