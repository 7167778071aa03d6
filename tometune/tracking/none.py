"""No tracker: the run folder holds everything there is."""

from pathlib import Path
from typing import Any

from tometune.tracking.base import RunTracker


class NoTracker(RunTracker):
    """Takes everything and keeps nothing; curves stay in the trainer's own log."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Do nothing."""

    def summary(self, values: dict[str, Any]) -> None:
        """Do nothing."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Do nothing."""

    def page(self, name: str, html: str) -> None:
        """Do nothing."""

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any] | None = None) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""

    def describe(self) -> dict[str, Any]:
        """Return that there is no tracker."""
        return {"tracker": "none"}
