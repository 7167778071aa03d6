"""The Hugging Face hub's protocol over a folder tree, on localhost: enough for `datasets` and `transformers` to load.

Reading is here, writing in `uploads`. The routes are those of https://huggingface.co/docs/hub/api and `hf_api.py`.
"""

import json
import re
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.repository import NotFoundOnHubError, Repository, blob_id
from tests.hub.uploads import BATCH, OBJECT, Uploads, preupload

API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)(?:/(?P<verb>[^/]+)/(?P<rest>.+))?")
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


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
        uploads: what was uploaded.
        requests: everything that was asked for so far.
        cut_after: bytes of a file after which the connection breaks, from then on; None lets it be.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.uploads = Uploads(root)
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.cut_after: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port; the hub is unreachable from then on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def env(self, home: Path) -> dict[str, str]:
        """Return the environment in which the hub client of a subprocess talks to this hub and caches under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def add_model(self, repo_id: str, files: Mapping[str, bytes | str] | None = None) -> Repository:
        """Create or change a model repository; with no files, the caller saves into its `folder`."""
        return self._add("models", repo_id, files or {})

    def add_dataset(self, repo_id: str, files: Mapping[str, bytes | str] | None = None) -> Repository:
        """Create or change a data set repository; with no files, the caller saves into its `folder`."""
        return self._add("datasets", repo_id, files or {})

    def _add(self, kind: str, repo_id: str, files: Mapping[str, bytes | str]) -> Repository:
        repository = Repository(kind, repo_id, self.root / kind / repo_id)
        repository.folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            repository.write(path, content)
        return repository


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Find the route; errors become the status and headers by which the hub client knows them."""
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path, known = unquote(url.path), self.token in self.hub.tokens
        try:
            if match := API.fullmatch(path):
                self._api(match, parse_qs(url.query), body)
            elif match := RESOLVE.fullmatch(path):
                self._resolve(match)
            elif path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif not known:
                self._error(HTTPStatus.UNAUTHORIZED, None, "Invalid credentials in Authorization header")
            elif path == "/api/whoami-v2":
                self._json({"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}})
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif BATCH.fullmatch(path):
                self._json(self.hub.uploads.batch(self.hub.url, body))
            else:
                self._error(HTTPStatus.NOT_FOUND, None, path)
        except NotFoundOnHubError as error:
            # The hub does not tell a stranger whether a repository exists.
            stranger = error.code == "RepoNotFound" and not self.token
            self._error(HTTPStatus.UNAUTHORIZED if stranger else HTTPStatus.NOT_FOUND, error.code, str(error))

    do_HEAD = do_POST = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        """Take an LFS object; who has its address may send it."""
        try:
            self._send(self.hub.uploads.put(self, OBJECT.fullmatch(self.path)["oid"]), b"", {})
        except ConnectionError:
            self.close_connection = True

    def _find(self, kind: str, repo_id: str) -> Repository:
        """Find a repository; a private one is hidden from strangers."""
        repository = Repository(kind, repo_id, self.hub.root / kind / repo_id)
        hidden = repo_id in self.hub.private and self.token not in self.hub.tokens
        if ".." in repo_id or hidden or not repository.folder.is_dir():
            raise NotFoundOnHubError("RepoNotFound", "Repository not found")
        return repository

    def _api(self, match: re.Match[str], query: dict[str, list[str]], body: bytes) -> None:
        """Answer `/api/{models,datasets}/{id}` with nothing, `revision`, `tree`, `paths-info` or an upload after it."""
        repository = self._find(match["kind"], match["id"])
        verb, (revision, _, below) = match["verb"], (match["rest"] or "main").partition("/")
        if verb in ("preupload", "commit") and self.token not in self.hub.tokens:
            return self._error(HTTPStatus.FORBIDDEN, None, "You don't have the rights to write here")
        if verb == "preupload":
            return self._json(preupload(body))
        if verb == "commit":
            self.hub.uploads.commit(repository, body)
            commit = repository.commit()
            return self._json({"commitUrl": f"{self.hub.url}/{repository.id}/commit/{commit}", "commitOid": commit})
        repository.check(revision)
        if verb == "tree":
            return self._json(repository.tree(below, query.get("recursive", ["false"])[0].lower() in ("true", "1")))
        if verb == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            paths = (json.loads(body) if is_json else parse_qs(body.decode()))["paths"]
            paths = [paths] if isinstance(paths, str) else paths
            return self._json([repository.entry(path) for path in paths if (repository.folder / path).exists()])
        flags = {
            "gated": "auto" if repository.id in self.hub.gated else False,
            "private": repository.id in self.hub.private,
        }
        return self._json({**repository.info(), **flags})

    def _resolve(self, match: re.Match[str]) -> None:
        """Send a file, or the range of it that was asked for."""
        repository = self._find("datasets" if match["kind"] else "models", match["id"])
        if repository.id in self.hub.gated and self.token not in self.hub.tokens:
            status = HTTPStatus.FORBIDDEN if self.token else HTTPStatus.UNAUTHORIZED
            return self._error(status, "GatedRepo", f"Access to {repository.id} is restricted")
        repository.check(match["revision"])
        file = repository.file(match["path"])
        content, status = file.read_bytes(), HTTPStatus.OK
        headers = {"ETag": f'"{blob_id(file)}"', "X-Repo-Commit": repository.commit(), "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], HTTPStatus.PARTIAL_CONTENT
        return self._send(status, content, {"Content-Type": "application/octet-stream", **headers})

    def _create(self, asked: dict[str, Any]) -> None:
        """Create a repository, or say that it is there."""
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        made = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        if (self.hub.root / "models" / repo_id).is_dir():
            return self._json({"error": "You already created this model repo", **made}, HTTPStatus.CONFLICT)
        self.hub.add_model(repo_id)
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(repo_id)
        return self._json(made)

    def _json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: HTTPStatus, code: str | None, message: str) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        self._send(status, json.dumps({"error": message}).encode(), headers | ({"X-Error-Code": code} if code else {}))

    def _send(self, status: HTTPStatus, content: bytes, headers: Mapping[str, str]) -> None:
        self.hub.requests.append(Request(self.command, self.path, int(status)))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.hub.cut_after if "resolve" in self.path else None
            self.wfile.write(content[:cut])
            self.close_connection = self.close_connection or (cut is not None and cut < len(content))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the console quiet; `Hub.requests` has it all."""
