"""As much of W&B's server as runs and reports need, artifacts being there already; keeps what is sent to it."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Self


class WandbServer:
    """A server on localhost; a context manager.

    Attributes:
        status: what it answers with; any but 200 refuses everything.
        leave_after: the GraphQL operation after which it answers 503 to everything.
        queries: GraphQL operations by name, with their last variables.
        bodies: the last body sent to each path other than GraphQL's.
    """

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.leave_after: str | None = None
        self.queries: dict[str, dict] = {}
        self.bodies: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"server_state": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def query(self, name: str, variables: dict) -> dict:
        """Answer one GraphQL operation."""
        self.queries[name] = variables
        if name == self.leave_after:
            self.status = 503
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": None}}
        if name == "UpsertBucket":
            run = {"id": "r", "name": variables["name"], "displayName": variables["name"], "config": "{}"}
            return {"upsertBucket": {"bucket": {**run, "project": project}, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return self._answers(name, variables)

    @staticmethod
    def _answers(name: str, variables: dict) -> dict:
        """Answer what is asked for artifacts and for a W&B report."""
        if name == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":  # as one that is there already, so that nothing is uploaded
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}}}
        if name == "GetProjects":
            pages = {"endCursor": None, "hasNextPage": False}
            node = {"id": "p", "name": "tometune", "entityName": "me", "createdAt": ""}
            return {"models": {"pageInfo": pages, "edges": [{"node": {**node, "isBenchmark": False, "user": None}}]}}
        if name == "ProjectInternalId":
            return {"project": {"internalId": "7"}}
        if name == "upsertView":
            view = {"id": variables["id"] or "view1", "name": variables["name"], "displayName": "", "spec": "{}"}
            return {"upsertView": {"view": view, "inserted": variables["id"] is None}}
        return {}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server_state: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        answer: dict = {}
        status = self.server_state.status
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            answer = {"data": self.server_state.query(operation[1] if operation else "", asked.get("variables") or {})}
        else:
            self.server_state.bodies[self.path] = self.server_state.bodies.get(self.path, "") + body
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        self.do_POST()

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the console quiet."""
