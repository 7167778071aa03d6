"""Schema of the `tracking` group: where curves, tables and artifacts are logged. It does not change a result."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tometune.config.validators import at_least, valid_if

Tracker = StrEnum("Tracker", ["wandb", "trackio", "tensorboard", "mlflow", "none"])
"""The tracker; each is a module `tometune.tracking.<name>_tracker`."""

TrackingMode = StrEnum("TrackingMode", ["auto", "online", "offline"])
Publish = StrEnum("Publish", ["wandb"])


@dataclass
class TrackingConfig:
    """Experiment tracking."""

    tracker: Tracker = Tracker.wandb
    """`none` writes the run folder only."""
    mode: TrackingMode = TrackingMode.auto
    """`auto`: online with a W&B key or a server of MLflow, else offline, with a note on how to sync later."""
    project: str = field(
        default="tometune",
        metadata=valid_if(lambda name: re.fullmatch(r"[^/\\#?%:]+", name), r"a name without / \ # ? % : is needed"),
    )
    """Project of the runs."""
    entity: str | None = None
    """W&B user or team; null is the owner of the key."""
    group: str | None = None
    """Group of the run; null is the name of the sweep, else model and data."""
    tags: list[str] = field(default_factory=list)
    """Free labels."""
    system: bool = True
    """Whether the use of GPU, memory and CPU is logged, too; TensorBoard has no place for it."""
    log_adapter: bool = True
    """Whether the adapter is stored as an artifact of the run (a few MB to 100 MB); a full model never is."""
    prediction_rows: int = field(default=50, metadata=at_least(0))
    """Examples per task in the table of predictions; 0 logs none."""


def tracking_problems(tracking: TrackingConfig) -> Iterator[str]:
    """Yield the problems of the group."""
    if tracking.tracker is Tracker.none and tracking.mode is TrackingMode.online:
        yield "tracking.mode=online: tracking.tracker=none logs nowhere; choose tracking=wandb or tracking.mode=auto"
