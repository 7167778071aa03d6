"""Room on the disk for what an export writes, looked at before anything is made."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tometune.common.errors import UserError

BITS = {"f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q3_k_m": 4.0}
"""Bits a weight of a GGUF file, about; small models keep more tensors at higher precision."""

SPARE = 1.15
"""What is asked for over the estimate."""


def bytes_needed(parameters: int, adapter: int, wanted: Sequence[tuple[str, str | None]]) -> int:
    """Return about how many bytes the exports take while they are made.

    Args:
        parameters: of the base.
        adapter: bytes of the adapter's weights.
        wanted: format and quant of each export.
    """
    total = 0.0
    formats = {kind for kind, _ in wanted}
    if "adapter" in formats:
        total += adapter
    if formats & {"merged_16bit", "gguf"}:
        total += parameters * 2
    if "gguf" in formats:
        total += parameters * 2  # the file that is quantised from
    total += sum(parameters * BITS[quant] / 8 for _, quant in wanted if quant is not None)
    return int(total * SPARE)


def check_room(folder: Path, needed: int) -> None:
    """Check that a folder can be made and written, and that its disk has room.

    Raises:
        UserError: it cannot, or has not.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest}: is a file, so {folder} cannot be made; set export.folder to a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest}: cannot be written to; set export.folder to a folder that can")
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise UserError(
            f"{folder}: the exports take about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free some room, or "
            "set export.folder to another disk"
        )
