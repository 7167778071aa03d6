"""A cache of folders: each has a key of everything that made it, is built once, and is never there in part."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from tometune.common.files import disk_errors, temporary_path
from tometune.common.integrity import changed_file, list_files

log = logging.getLogger(__name__)


def default_cache() -> Path:
    """Return the cache folder that `conf/train.yaml` sets by default."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TOMETUNE_CACHE", f"{home}/tometune")).expanduser()


def cached_folder(
    root: Path, kind: str, key: Mapping[str, Any], build: Callable[[Path], None], alone: bool = False
) -> Path:
    """Return the folder of this key, which is built first if it is not there or a file of it is damaged.

    The folder is `<root>/<kind>/<hash of the key>`. The key holds everything that can change the content, as plain
    values, and is stored in the folder as config.json. `build` fills a folder with a temporary name, which is then
    renamed. If two processes build it at once, the first to finish wins and both use its folder; with `alone`, the
    second waits for the first instead. files.json has the digest of each file.

    Raises:
        UserError: the cache cannot be written to.
        SaveError: the disk is full.
    """
    text = json.dumps(key, sort_keys=True, indent=2, ensure_ascii=False)
    final = folder_of(root, kind, key)
    if final.exists():
        remove_damaged(final)
    if final.exists():
        return final
    with ExitStack() as stack:
        with disk_errors(root, "paths.cache"):
            final.parent.mkdir(parents=True, exist_ok=True)
            if alone:
                lock = _lock_of(final)
                stack.enter_context(FileLock(lock))
                stack.callback(_remove, lock)
                if final.exists():
                    return final
            temporary = stack.enter_context(temporary_path(final, folder=True))
        with disk_errors(final.parent):
            build(temporary)
            (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
            list_files(temporary)
        try:
            temporary.replace(final)
        except OSError:
            if changed_file(final) is not None:
                raise
    return final


def folder_of(root: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """Return where the folder of a key is, or will be."""
    return root / kind / sha256(json.dumps(key, sort_keys=True, indent=2, ensure_ascii=False).encode()).hexdigest()[:20]


def remove_damaged(folder: Path) -> bool:
    """Remove a cached folder of which a file is missing or changed, and return whether that was so.

    Raises:
        UserError: the folder cannot be removed.
    """
    if changed_file(folder) is None:
        return False
    lock = _lock_of(folder)
    with disk_errors(folder, "paths.cache"), FileLock(lock):
        if (name := changed_file(folder)) is not None:  # another process may have built it again by now
            log.warning("%s: %s is missing or damaged; making it again", folder, name)
            if folder.exists():
                shutil.rmtree(folder)
        _remove(lock)
    return True


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _remove(lock: Path) -> None:
    """Remove the file of a lock that is still held; Windows does not allow it, and it is empty."""
    with suppress(PermissionError):
        lock.unlink(missing_ok=True)
