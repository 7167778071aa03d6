"""Experiment tracking: wandb, trackio or none behind one small interface; each library is imported only if chosen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tometune.config.tracking import Tracker, TrackingConfig
from tometune.tracking.base import RunLabels, RunTracker
from tometune.tracking.none import NoTracker

__all__ = ["RunTracker", "check_tracker", "start_tracker"]


def check_tracker(config: TrackingConfig) -> None:
    """Find what is wrong with the tracker before anything is written; needs no network.

    Raises:
        UserError: the tracker is not installed, does not take a name or tag, or is to be online without a key.
    """
    if config.tracker is Tracker.wandb:
        from tometune.tracking.wandb_setup import check

        check(config)
    elif config.tracker is Tracker.trackio:
        from tometune.tracking.trackio_tracker import check

        check(config)


def start_tracker(
    config: TrackingConfig,
    *,
    run_id: str,
    job_type: str,
    group: str,
    folder: Path,
    run_config: Mapping[str, Any],
    replaces: bool = False,
) -> RunTracker:
    """Start tracking a run, or go on with it where an earlier attempt was broken off.

    Args:
        config: the `tracking` group.
        run_id: the run's name; the same for every attempt.
        job_type: the verb, e.g. `train`.
        group: the group where `config.group` is null.
        folder: the run's folder; made if need be.
        run_config: the resolved config as plain values.
        replaces: whether this attempt makes earlier ones that were not uploaded yet worthless.

    Raises:
        UserError: the tracker is not installed, or was told to be online and cannot be.
    """
    labels = RunLabels(run_id, job_type, config.group or group, folder.resolve(), run_config, replaces)
    labels.folder.mkdir(parents=True, exist_ok=True)
    if config.tracker is Tracker.wandb:
        from tometune.tracking.wandb_tracker import WandbTracker

        return WandbTracker(config, labels)
    if config.tracker is Tracker.trackio:
        from tometune.tracking.trackio_tracker import TrackioTracker

        return TrackioTracker(config, labels)
    return NoTracker(config, labels)
