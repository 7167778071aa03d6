"""The writing half of the hub's protocol: LFS objects and commits; uploads stand still on demand.

huggingface_hub's `_commit_api.py` and `lfs.py` are the source of the routes. Objects are kept by their sha256 as soon
as they are whole, whether or not a commit ever names them.
"""

import base64
import json
import re
import threading
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.hub.repository import Repository

BATCH = re.compile(r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
OBJECT = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})")
LARGE = (".safetensors", ".gguf")
"""Files that the hub keeps as LFS objects whatever their size."""


class Uploads:
    """What the hub holds of uploads.

    Attributes:
        stall: which PUT of an object stands still half way, counted from 1; None lets all through.
        stalled: set when it does; it then waits until the client is gone.
        received: oids of the objects that came whole, in order.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / ".lfs"
        self.stall: int | None = None
        self.stalled = threading.Event()
        self.received: list[str] = []
        self._puts = 0

    def put(self, handler: Any, oid: str) -> HTTPStatus:
        """Read an object from the connection and keep it, if it is whole and what its name says."""
        self._puts += 1
        size = int(handler.headers["Content-Length"])
        if self._puts == self.stall:
            handler.rfile.read(size // 2)
            self.stalled.set()
            while handler.rfile.read(1 << 16):
                pass  # nobody reads on: the client is killed, which ends the connection
            raise ConnectionAbortedError
        content = handler.rfile.read(size)
        if len(content) != size or sha256(content).hexdigest() != oid:
            return HTTPStatus.BAD_REQUEST
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / oid).write_bytes(content)
        self.received.append(oid)
        return HTTPStatus.OK

    def batch(self, url: str, body: bytes) -> dict[str, Any]:
        """Answer which objects are to be sent, and where to; those that are there need no action."""
        objects = []
        for wanted in json.loads(body)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if not (self.folder / wanted["oid"]).exists():
                found["actions"] = {"upload": {"href": f"{url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def commit(self, repository: Repository, body: bytes) -> None:
        """Write the files of a commit into a repository."""
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                repository.write(value["path"], base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                repository.write(value["path"], (self.folder / value["oid"]).read_bytes())


def preupload(body: bytes) -> dict[str, Any]:
    """Answer which files are kept as LFS objects."""
    asked = ((file["path"], file["path"].endswith(LARGE)) for file in json.loads(body)["files"])
    modes = {False: "regular", True: "lfs"}
    return {"files": [{"path": path, "uploadMode": modes[large], "shouldIgnore": False} for path, large in asked]}
