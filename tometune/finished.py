"""What a finished run is, for all verbs that use its model: completed, with an adapter, on the base it was made on."""

from pathlib import Path
from typing import Any

from tometune.config.errors import UserError
from tometune.exporting.checks import check_adapter
from tometune.exporting.finished import _as_trained as as_trained
from tometune.run import read_record

__all__ = ["as_trained", "check_adapter", "finished_record"]


def finished_record(folder: Path) -> dict[str, Any]:
    """Return what run.json says of a run whose training and scoring are done.

    Raises:
        UserError: they are not, or the adapter's files are not there.
    """
    record = read_record(folder)
    if record["status"] != "completed":
        raise UserError(
            f"{folder}: not finished (status {record['status']}); run its command again, it goes on from there"
        )
    check_adapter(folder / "adapter")
    return record
