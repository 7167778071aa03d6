"""How a tracker's own program is called, in a line that works as it is copied."""

import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """Return what starts a program of this environment in the user's shell: its path where that is not active."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    same = found is not None and Path(found).resolve() == beside.resolve()
    return name if same or not beside.exists() else str(beside)
