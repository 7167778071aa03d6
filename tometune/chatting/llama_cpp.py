"""The engine that runs a GGUF file with llama.cpp's own server, in a process of its own (extra `gguf`).

llama.cpp aborts its process on fatal errors, which must not end the chat. Started as
`python -m tometune.chatting.llama_cpp FILE CONTEXT`, this module is that process.
"""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import httpx

from tometune.chatting.conversation import End, Message, Piece, Settings
from tometune.common.errors import UserError

KEY = "TOMETUNE_LLAMA_KEY"  # environment variable with the API key of the server
ERROR = re.compile(r"^(?:[\d.]+ )?E (?:\w+ +)?(.+)$", re.MULTILINE)
"""An error line of llama.cpp's log."""

NEUTRAL = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0}
"""Values that switch off the server's other samplers, which are on by default."""


class LlamaEngine:
    """A GGUF file with the chat template and the end-of-turn tokens that it carries.

    The server is a child process that ends when its input does, so it never outlives this process. It has a session of
    its own, so that Ctrl-C in the terminal stops the answer and not the server.
    """

    def __init__(self, file: Path, context: int) -> None:
        """Start the server and wait until it has read the file.

        Raises:
            UserError: llama.cpp is not installed or cannot read the file.
        """
        if util.find_spec("xllamacpp") is None:
            raise UserError(f"{file}: needs llama.cpp; run: bash scripts/setup.sh gguf, or pip install xllamacpp")
        key = secrets.token_urlsafe(16)
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 -- lives as long
        self._process = subprocess.Popen(  # noqa: S603 -- our own module
            [sys.executable, "-m", "tometune.chatting.llama_cpp", str(file), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, KEY: key},
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        if not address:
            raise UserError(f"{file}: llama.cpp cannot read it ({self._exit_reason()}); export it again")
        headers = {"Authorization": f"Bearer {key}"}
        # Without a time limit, because a large model on a slow machine is not an error.
        self._client = httpx.Client(base_url=address, headers=headers, timeout=None, trust_env=False)  # noqa: S113
        self.context = int(self._request("GET", "/props")["default_generation_settings"]["n_ctx"])

    def count(self, messages: Sequence[Message]) -> int:
        text = {"content": self._prompt(messages), "add_special": True, "parse_special": True}
        return len(self._request("POST", "/tokenize", text)["tokens"])

    def stream(self, messages: Sequence[Message], settings: Settings) -> Generator[Piece, None, None]:
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed, **NEUTRAL}
        limit = min(settings.max_new_tokens, self.context - self.count(messages))
        body = {"prompt": self._prompt(messages), "n_predict": limit, **sampling, "stream": True}
        body["return_progress"] = True  # the server also reports while it reads a long prompt, not only after it
        with self._errors(), self._client.stream("POST", "/completion", json=body) as response:
            if response.is_error:
                response.read()  # the message of the error
            for line in response.raise_for_status().iter_lines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    stop = event.get("stop_type") if event["stop"] else None
                    end = stop and (End.length if stop == "limit" else End.turn)
                    yield Piece(event["content"], event["tokens_predicted"], end)
                    if end:
                        return
        raise UserError("llama.cpp broke off in the middle of an answer; start chat again")

    def _prompt(self, messages: Sequence[Message]) -> Any:
        return self._request("POST", "/apply-template", {"messages": list(messages)})["prompt"]

    def _request(self, method: str, route: str, body: dict[str, Any] | None = None) -> Any:
        with self._errors():
            return self._client.request(method, route, json=body).raise_for_status().json()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the server's errors, and a lost connection, into one line."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise UserError(f"llama.cpp: {error.response.text[:300]}") from error
        except httpx.TransportError as error:
            raise UserError(f"llama.cpp has ended ({self._exit_reason()}); start chat again") from error

    def _exit_reason(self) -> str:
        """End the server; return its exit status and the first error (or the last line) of its log."""
        self.end()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["no message"]
        errors = [found[1] for found in map(ERROR.match, lines) if found]
        status = self._process.returncode
        return f"{f'signal {-status}' if status < 0 else f'status {status}'}: {[*errors, lines[-1]][0][:300]}"

    def end(self) -> None:
        """End the server; without this it ends with this process."""
        try:
            self._process.communicate(timeout=5)  # closes its input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def serve(file: str, context: str) -> None:
    """Run the server on localhost until the input ends; prints the address."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel = int(context), 1
    params.api_keys = [os.environ[KEY]]  # without a key, any page in a browser could send requests
    params.warmup = False
    params.n_batch = 256  # the server notices between two batches of the prompt that the client has gone
    if threads := os.environ.get("OMP_NUM_THREADS"):  # llama.cpp has its own threads and ignores the variable
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)

    def exit_with_input() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=exit_with_input, daemon=True).start()
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve(*sys.argv[1:])
