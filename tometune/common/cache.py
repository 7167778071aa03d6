"""A cache of folders: each keyed by all that made it, built once, never half there."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.common.files import disk_errors, temporary_for


def cached_folder(root: Path, kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """Return the folder of this key, built first if it is not there.

    It is built under a temporary name and then renamed, so a kill leaves no half of it; what it leaves beside it is
    removed when the same is built again. Of two processes that build the same at once, the first to finish wins and
    both go on with its folder.

    Args:
        root: the cache, e.g. `~/.cache/tometune`.
        kind: what it holds, e.g. `tokens`; the folder is `<root>/<kind>/<hash of the key>`.
        key: everything that can change the content, as plain values; stored beside it as config.json.
        build: fills the empty folder it is given.
    """
    text = json.dumps(key, sort_keys=True, indent=2, ensure_ascii=False)
    final = root / kind / sha256(text.encode()).hexdigest()[:20]
    if (final / "config.json").exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{temporary_for(final).name}.", dir=final.parent))
    try:
        with disk_errors(final.parent):
            build(temporary)
            (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        try:
            os.replace(temporary, final)  # noqa: PTH105 -- Path.replace would not say what it is for: a folder's rename
        except OSError:
            if not (final / "config.json").exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final
