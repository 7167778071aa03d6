"""A cache of folders: each has a key of everything that made it, is built once, and is never there in part."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.common.files import disk_errors, temporary_path


def default_cache() -> Path:
    """Return the cache folder that `conf/train.yaml` sets by default."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TOMETUNE_CACHE", f"{home}/tometune")).expanduser()


def cached_folder(root: Path, kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """Return the folder of this key, which is built first if it is not there.

    The folder is `<root>/<kind>/<hash of the key>`. The key holds everything that can change the content, as plain
    values, and is stored in the folder as config.json. `build` fills a folder with a temporary name, which is then
    renamed. If two processes build it at once, the first to finish wins and both use its folder.

    Raises:
        UserError: the cache cannot be written to.
        SaveError: the disk is full.
    """
    text = json.dumps(key, sort_keys=True, indent=2, ensure_ascii=False)
    final = root / kind / sha256(text.encode()).hexdigest()[:20]
    if (final / "config.json").exists():
        return final
    with ExitStack() as stack:
        with disk_errors(root, "paths.cache"):
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(temporary_path(final, folder=True))
        with disk_errors(final.parent):
            build(temporary)
            (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        try:
            temporary.replace(final)
        except OSError:
            if not (final / "config.json").exists():
                raise
    return final
