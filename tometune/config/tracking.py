"""Schema of the `tracking` group: where curves, tables and artifacts go. Nothing here changes a result."""

from dataclasses import dataclass, field
from enum import StrEnum


class Tracker(StrEnum):
    """Service behind the tracking interface."""

    wandb = "wandb"
    trackio = "trackio"
    none = "none"


class TrackingMode(StrEnum):
    """Whether the tracker may use the network."""

    auto = "auto"
    online = "online"
    offline = "offline"


class Publish(StrEnum):
    """Service that shows a report."""

    wandb = "wandb"


@dataclass
class TrackingConfig:
    """Experiment tracking."""

    tracker: Tracker = Tracker.wandb
    """`none` keeps only the run folder."""

    mode: TrackingMode = TrackingMode.auto
    """`auto`: online with a W&B key, else offline, and it says how to sync later."""

    project: str = "tometune"
    """Project of the runs."""

    entity: str | None = None
    """W&B user or team; null takes the key's own."""

    group: str | None = None
    """Runs of one group are folded together; null takes the sweep's name, else model and data."""

    tags: list[str] = field(default_factory=list)
    """Free labels."""

    log_adapter: bool = True
    """Store the adapter as an artifact of the run (a few MB to 100 MB)."""

    prediction_rows: int = 50
    """Examples a task in the table of predictions; 0 logs none."""
