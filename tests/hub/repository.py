"""A repository of the local hub: a folder whose commit is a hash of what lies in it."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha1
from pathlib import Path
from typing import Any


class NotFoundOnHubError(Exception):
    """A repository, revision or file is not there; carries the hub's own error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Repository:
    """One model or data set, with the single branch `main`."""

    kind: str  # models or datasets
    id: str  # user/name
    folder: Path

    def files(self) -> dict[str, Path]:
        """Return every file by its path in the repository."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}

    def commit(self) -> str:
        """Return 40 hex digits that change with any name or content."""
        return sha1("".join(f"{path}\0{blob_id(file)}\n" for path, file in self.files().items()).encode()).hexdigest()

    def check(self, revision: str) -> None:
        if revision not in ("main", "refs/heads/main", self.commit()):
            raise NotFoundOnHubError("RevisionNotFound", f"Invalid rev id: {revision}")

    def file(self, path: str) -> Path:
        try:
            return self.files()[path]
        except KeyError:
            raise NotFoundOnHubError("EntryNotFound", f"Entry not found: {path}") from None

    def info(self) -> dict[str, Any]:
        """Return what `/api/{kind}/{id}` answers."""
        day = "2024-07-26T00:00:00.000Z"
        siblings = [{"rfilename": path} for path in self.files()]
        flags = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        return {"_id": self.commit()[:24], "id": self.id, "sha": self.commit(), "siblings": siblings, **flags} | {
            "lastModified": day,
            "createdAt": day,
        }

    def tree(self, below: str, recursive: bool) -> list[dict[str, Any]]:
        """Return the entries under a folder, as `/api/{kind}/{id}/tree/{revision}/{below}` answers."""
        prefix = f"{below}/" if below else ""
        inside = [path for path in self.files() if path.startswith(prefix)]
        if below and not inside:
            raise NotFoundOnHubError("EntryNotFound", f"{below} does not exist on this revision")
        entries = {path: self.entry(path) for path in inside}
        for path in inside:
            for parent in Path(path).parents:
                if parent.as_posix() != "." and parent.as_posix().startswith(prefix):
                    entries[parent.as_posix()] = self.entry(parent.as_posix())
        return [entry for path, entry in sorted(entries.items()) if recursive or "/" not in path[len(prefix) :]]

    def entry(self, path: str) -> dict[str, Any]:
        """Describe one file or folder."""
        file = self.folder / path
        if file.is_dir():
            return {"type": "directory", "oid": sha1(path.encode()).hexdigest(), "size": 0, "path": path}
        return {"type": "file", "oid": blob_id(file), "size": file.stat().st_size, "path": path}

    def paths_info(self, paths: list[str]) -> list[dict[str, Any]]:
        """Describe those of the paths that exist."""
        return [self.entry(path) for path in paths if (self.folder / path).exists()]


def blob_id(file: Path) -> str:
    """Return git's id of a file's content; computed once as long as the file does not change."""
    status = file.stat()
    return _blob_id(file, status.st_size, status.st_mtime_ns)


@lru_cache
def _blob_id(file: Path, size: int, mtime_ns: int) -> str:
    return sha1(b"blob %d\0" % size + file.read_bytes()).hexdigest()
