"""What to run where a package is missing."""

from pathlib import Path

import tometune


def install(extra: str, package: str) -> str:
    """Return the one command: of the checkout's script, or, where tometune is installed otherwise, of the package."""
    script = Path(tometune.__file__).parents[1] / "scripts" / "setup.sh"
    return f"bash scripts/setup.sh {extra}" if script.is_file() else f"pip install {package}"
