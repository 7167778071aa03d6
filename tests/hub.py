"""The Hugging Face hub's protocol over a folder tree, on localhost: enough to load data sets and models and to upload.

The routes are those of https://huggingface.co/docs/hub/api and of huggingface_hub's `hf_api.py`, `_commit_api.py` and
`lfs.py`. The commit of a repository is a hash of what lies in its folder.
"""

import base64
import json
import mmap
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha1, sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)(?:/(?P<verb>[^/]+)/(?P<rest>.+))?")
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
BATCH = re.compile(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch")
LARGE = (".safetensors", ".gguf")
"""Files that the hub keeps as LFS objects whatever their size."""


class NotFoundOnHubError(Exception):
    """A repository, revision or file is not there: the hub's own error code and a message."""


@dataclass(frozen=True)
class Repository:
    """One model or data set, with the single branch `main`."""

    id: str  # user/name
    folder: Path

    def files(self) -> dict[str, Path]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}

    def commit(self) -> str:
        """Return 40 hex digits that change with any name or content."""
        return sha1("".join(f"{path}\0{blob_id(file)}\n" for path, file in self.files().items()).encode()).hexdigest()

    def write(self, path: str, content: bytes | str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def tree(self, below: str, recursive: bool) -> list[dict[str, Any]]:
        folder = self.folder / below
        if not folder.is_dir():
            raise NotFoundOnHubError("EntryNotFound", f"{below} does not exist on this revision")
        paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
        return [self.entry(path.relative_to(self.folder).as_posix()) for path in paths]

    def entry(self, path: str) -> dict[str, Any]:
        file = self.folder / path
        if file.is_dir():
            return {"type": "directory", "oid": sha1(path.encode()).hexdigest(), "size": 0, "path": path}
        return {"type": "file", "oid": blob_id(file), "size": file.stat().st_size, "path": path}


def blob_id(file: Path) -> str:
    """Return git's id of a file's content."""
    found = file.stat()
    return _blob_id(file, found.st_size, found.st_mtime_ns)


@cache
def _blob_id(file: Path, size: int, _changed: int) -> str:
    """Hash a file once; weights are too large for that in each request."""
    digest = sha1(b"blob %d\0" % size)
    with content_of(file) as content:
        digest.update(content)
    return digest.hexdigest()


@contextmanager
def content_of(file: Path) -> Iterator[memoryview]:
    """Yield a file's bytes without reading them all into memory."""
    with file.open("rb") as opened, ExitStack() as stack:
        if not file.stat().st_size:
            yield memoryview(b"")
            return
        mapped = stack.enter_context(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        with memoryview(mapped) as content:
            yield content


class Request(NamedTuple):
    """One line of the server's log."""

    method: str
    path: str
    status: int


class Hub:
    """A hub over `root/models/<user>/<name>/` and `root/datasets/<user>/<name>/`; a context manager.

    Attributes:
        gated: ids whose files need one of `tokens`.
        private: ids that are only there for those who have one of `tokens`; uploads need one too.
        requests: everything that was asked for so far.
        commits: the commit of `main` by id, for a repository whose revision is pinned elsewhere; else a hash.
        cut_after: bytes of a file after which the connection breaks, from then on; None lets it be.
        objects: LFS objects by their sha256; kept as soon as they are whole, whether or not a commit names them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.commits: dict[str, str] = {}
        self.cut_after: int | None = None
        self.objects: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def env(self, home: Path) -> dict[str, str]:
        """Return the environment in which the hub client of a subprocess talks to this hub and caches under `home`."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), **switches}

    def add_model(self, repo_id: str) -> Repository:
        """Create a model repository; the caller saves into its `folder`."""
        return self._add("models", repo_id, {})

    def add_dataset(self, repo_id: str, files: Mapping[str, bytes | str]) -> Repository:
        return self._add("datasets", repo_id, files)

    def _add(self, kind: str, repo_id: str, files: Mapping[str, bytes | str]) -> Repository:
        repository = Repository(repo_id, self.root / kind / repo_id)
        repository.folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            repository.write(path, content)
        return repository


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Find the route; errors become the status and headers by which the hub client knows them."""
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        try:
            if match := API.fullmatch(path):
                self._api(match, parse_qs(url.query), body)
            elif match := RESOLVE.fullmatch(path):
                self._resolve(match)
            elif path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif self.token not in self.hub.tokens:
                self._error(HTTPStatus.UNAUTHORIZED, None, "Invalid credentials in Authorization header")
            elif path == "/api/whoami-v2":
                role = "read" if self.token.endswith("read") else "write"
                auth = {"type": "access_token", "accessToken": {"role": role}}
                self._json({"type": "user", "name": "tester", "orgs": [], "auth": auth})
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif BATCH.fullmatch(path):
                objects = [self._wanted(asked) for asked in json.loads(body)["objects"]]
                self._json({"transfer": "basic", "objects": objects})
            else:
                self._error(HTTPStatus.NOT_FOUND, None, path)
        except NotFoundOnHubError as error:
            code, message = error.args
            # The hub does not tell a stranger whether a repository exists.
            stranger = code == "RepoNotFound" and not self.token
            self._error(HTTPStatus.UNAUTHORIZED if stranger else HTTPStatus.NOT_FOUND, code, message)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        """Take an LFS object; who has its address may send it."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.objects[sha256(content).hexdigest()] = content
        self._send(HTTPStatus.OK, b"", {})

    def _find(self, kind: str, repo_id: str, revision: str | None = None) -> Repository:
        """Find a repository and check the revision; a private one is hidden from strangers."""
        repository = Repository(repo_id, self.hub.root / kind / repo_id)
        hidden = repo_id in self.hub.private and self.token not in self.hub.tokens
        if hidden or not repository.folder.is_dir():
            raise NotFoundOnHubError("RepoNotFound", "Repository not found")
        if revision not in (None, "main", "refs/heads/main", self._commit(repository)):
            raise NotFoundOnHubError("RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    def _commit(self, repository: Repository) -> str:
        return self.hub.commits.get(repository.id) or repository.commit()

    def _api(self, match: re.Match[str], query: dict[str, list[str]], body: bytes) -> None:
        """Answer `/api/{models,datasets}/{id}` with nothing, `revision`, `tree`, `paths-info` or an upload after it."""
        verb, (revision, _, below) = match["verb"], (match["rest"] or "main").partition("/")
        repository = self._find(match["kind"], match["id"], revision)
        if verb in ("preupload", "commit") and self.token not in self.hub.tokens:
            self._error(HTTPStatus.FORBIDDEN, None, "You don't have the rights to write here")
        elif verb == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if path.endswith(LARGE) else "regular" for path in paths]
            files = zip(paths, modes, strict=True)
            self._json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in files]})
        elif verb == "commit":
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if entry["key"] in ("file", "lfsFile"):
                    large = entry["key"] == "lfsFile"
                    content = self.hub.objects[value["oid"]] if large else base64.b64decode(value["content"])
                    repository.write(value["path"], content)
                elif entry["key"] == "deletedFile":
                    (repository.folder / value["path"]).unlink()
            commit = repository.commit()
            self._json({"commitUrl": f"{self.hub.url}/{repository.id}/commit/{commit}", "commitOid": commit})
        elif verb == "tree":
            self._json(repository.tree(below, query.get("recursive", ["false"])[0].lower() in ("true", "1")))
        elif verb == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            paths = (json.loads(body) if is_json else parse_qs(body.decode()))["paths"]
            self._json([repository.entry(path) for path in paths if (repository.folder / path).exists()])
        else:
            private, gated = repository.id in self.hub.private, "auto" if repository.id in self.hub.gated else False
            siblings, day = [{"rfilename": path} for path in repository.files()], "2024-07-26T00:00:00.000Z"
            counts = {"private": private, "gated": gated, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
            commit = self._commit(repository)
            names = {"_id": commit[:24], "id": repository.id, "sha": commit}
            self._json({**names, "siblings": siblings, "lastModified": day, "createdAt": day, **counts})

    def _resolve(self, match: re.Match[str]) -> None:
        """Send a file, or the range of it that was asked for."""
        repository = self._find("datasets" if match["kind"] else "models", match["id"], match["revision"])
        if repository.id in self.hub.gated and self.token not in self.hub.tokens:
            status = HTTPStatus.FORBIDDEN if self.token else HTTPStatus.UNAUTHORIZED
            return self._error(status, "GatedRepo", f"Access to {repository.id} is restricted")
        if (file := repository.files().get(match["path"])) is None:
            raise NotFoundOnHubError("EntryNotFound", f"Entry not found: {match['path']}")
        headers = {"ETag": f'"{blob_id(file)}"', "X-Repo-Commit": self._commit(repository), "Accept-Ranges": "bytes"}
        headers["Content-Type"], status = "application/octet-stream", HTTPStatus.OK
        with content_of(file) as content:
            first, last = 0, len(content) - 1
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(wanted[1]), min(int(wanted[2] or last), last)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                status = HTTPStatus.PARTIAL_CONTENT
            with content[first : last + 1] as part:
                return self._send(status, part, headers)

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        made = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        if (self.hub.root / "models" / repo_id).is_dir():
            return self._json({"error": "You already created this model repo", **made}, HTTPStatus.CONFLICT)
        self.hub.add_model(repo_id)
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(repo_id)
        return self._json(made)

    def _wanted(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer where an LFS object is to be sent; one that is there needs no action."""
        found = {"oid": asked["oid"], "size": asked["size"]}
        upload = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}}}
        return found if asked["oid"] in self.hub.objects else found | {"actions": upload}

    def _json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: HTTPStatus, code: str | None, message: str) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        self._send(status, json.dumps({"error": message}).encode(), headers | ({"X-Error-Code": code} if code else {}))

    def _send(self, status: HTTPStatus, content: bytes | memoryview, headers: Mapping[str, str]) -> None:
        self.hub.requests.append(Request(self.command, self.path, int(status)))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.hub.cut_after if "resolve" in self.path else None
            with memoryview(content)[:cut] as sent:
                self.wfile.write(sent)
            self.close_connection = self.close_connection or (cut is not None and cut < len(content))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the console quiet; `Hub.requests` has it all."""
