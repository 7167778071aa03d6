"""As much of W&B's server as runs and reports need, artifacts being there already; keeps what is sent to it."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self


class WandbServer:
    """A server on localhost; a context manager."""

    def __init__(self, status: int = 200) -> None:
        self.status = status  # any but 200 refuses everything
        self.leave_after: str | None = None  # the GraphQL operation after which it answers 503 to everything
        self.queries: dict[str, dict] = {}  # GraphQL operations by name, with their last variables
        self.bodies: dict[str, str] = {}  # what was sent to each path other than GraphQL's
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"server_state": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def query(self, name: str, variables: dict) -> dict:
        self.queries[name] = variables
        if name == self.leave_after:
            self.status = 503
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        run = {"id": "r", "name": variables.get("name"), "displayName": variables.get("name"), "config": "{}"}
        names = variables.get("files") or []
        files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in names]
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}  # so nothing is uploaded
        node = {"id": "p", "name": "tometune", "entityName": "me", "createdAt": "", "isBenchmark": False, "user": None}
        pages = {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": node}]}
        view = {"id": variables.get("id") or "view1", "name": variables.get("name"), "displayName": "", "spec": "{}"}
        answers = {
            "RunResumeStatus": {"model": {**project, "bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": {**run, "project": project}, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}},
            "Viewer": {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}},
            "ArtifactType": {"project": {"artifact": None}},
            "CreateArtifact": {"createArtifact": {"artifact": artifact}},
            "GetProjects": {"models": pages},
            "ProjectInternalId": {"project": {"internalId": "7"}},
            "upsertView": {"upsertView": {"view": view, "inserted": variables.get("id") is None}},
        }
        return answers.get(name, {})


class Handler(BaseHTTPRequestHandler):
    server_state: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        state, answer = self.server_state, {}
        status = state.status
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            answer = {"data": state.query(operation[1] if operation else "", asked.get("variables") or {})}
        else:
            state.bodies[self.path] = state.bodies.get(self.path, "") + body
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_POST  # noqa: N815 -- the names that http.server calls

    def log_message(self, format: str, *args: object) -> None:
        """Keep the console quiet."""
