"""A repository of the local hub: a folder whose commit is a hash of what lies in it."""

from dataclasses import dataclass
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
        if path not in self.files():
            raise NotFoundOnHubError("EntryNotFound", f"Entry not found: {path}")
        return self.folder / path

    def write(self, path: str, content: bytes | str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def info(self) -> dict[str, Any]:
        """Return what `/api/{kind}/{id}` answers."""
        siblings, day = [{"rfilename": path} for path in self.files()], "2024-07-26T00:00:00.000Z"
        flags = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        return {
            **{"_id": self.commit()[:24], "id": self.id, "sha": self.commit(), "siblings": siblings},
            **{"lastModified": day, "createdAt": day, **flags},
        }

    def tree(self, below: str, recursive: bool) -> list[dict[str, Any]]:
        """Return the entries under a folder, as `/api/{kind}/{id}/tree/{revision}/{below}` answers."""
        folder = self.folder / below
        if not folder.is_dir():
            raise NotFoundOnHubError("EntryNotFound", f"{below} does not exist on this revision")
        paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
        return [self.entry(path.relative_to(self.folder).as_posix()) for path in paths]

    def entry(self, path: str) -> dict[str, Any]:
        """Describe one file or folder."""
        file = self.folder / path
        if file.is_dir():
            return {"type": "directory", "oid": sha1(path.encode()).hexdigest(), "size": 0, "path": path}
        return {"type": "file", "oid": blob_id(file), "size": file.stat().st_size, "path": path}


def blob_id(file: Path) -> str:
    """Return git's id of a file's content."""
    return sha1(b"blob %d\0" % file.stat().st_size + file.read_bytes()).hexdigest()
