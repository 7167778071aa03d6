"""What a finished run is, for all verbs that use its model: completed, with what was trained, on the base it had."""

from pathlib import Path
from typing import Any

from tometune.config.errors import UserError
from tometune.config.stored import stored_config
from tometune.exporting.checks import check_adapter, check_trained
from tometune.exporting.finished import _as_trained as as_trained
from tometune.run import read_record

__all__ = ["as_trained", "check_adapter", "check_trained", "finished_record"]


def finished_record(folder: Path) -> dict[str, Any]:
    """Return what run.json says of a run whose training and scoring are done.

    Raises:
        UserError: they are not, or the files of the adapter or of the whole model are not there.
    """
    record = read_record(folder)
    if record["status"] != "completed":
        raise UserError(
            f"{folder}: not finished (status {record['status']}); run its command again, it goes on from there"
        )
    check_trained(folder, stored_config(folder).lora.enabled)
    return record
