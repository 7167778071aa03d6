"""llama.cpp's own server for a GGUF file, in a process of its own (extra `gguf`); chat and the gate of exports use it.

llama.cpp aborts its process on fatal errors, which must not end ours. Started as
`python -m tometune.models.llama_cpp FILE CONTEXT SLOTS`, this module is that process.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from tometune.common.errors import UserError

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
KEY = "TOMETUNE_LLAMA_KEY"  # environment variable with the API key of the server
ERROR = re.compile(r"^(?:[\d.]+ )?E (?:\w+ +)?(.+)$", re.MULTILINE)
"""An error line of llama.cpp's log."""


class LlamaError(UserError):
    """llama.cpp cannot read a file, refuses a request, or has ended."""


class LlamaServer:
    """A GGUF file with the chat template that it carries; as a context manager the server ends with the body.

    The server is a child process that ends when its input does, so it never outlives this process. It has a session of
    its own, so that Ctrl-C in the terminal does not reach it.
    """

    def __init__(self, file: Path, context: int, slots: int = 1, seconds: float | None = None) -> None:
        """Start the server and wait until it has read the file; `slots` prompts at once share the context's tokens.

        `seconds` is the longest wait for an answer. By default there is no limit, because a large model on a slow
        machine is not an error.

        Raises:
            LlamaError: llama.cpp cannot read the file.
        """
        self._lock, self._reason = threading.RLock(), ""
        key = secrets.token_urlsafe(16)
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 -- lives as long
        self.process = subprocess.Popen(  # noqa: S603 -- our own module
            [sys.executable, "-m", "tometune.models.llama_cpp", str(file), str(context), str(slots)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, KEY: key},
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        address = self.process.stdout.readline().strip()
        if not address:
            raise LlamaError(f"{file}: llama.cpp cannot read it ({self._exit_reason()}); export it again")
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=address, headers=headers, timeout=seconds, trust_env=False)

    def prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """Return a conversation in the file's own chat template, up to where the answer begins."""
        return str(self.request("POST", "/apply-template", {"messages": list(messages)})["prompt"])

    def tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the tokens of a prompt, by the file's own tokenizer."""
        text = {"content": self.prompt(messages), "add_special": True, "parse_special": True}
        found: list[int] = self.request("POST", "/tokenize", text)["tokens"]
        return found

    def request(self, method: str, route: str, body: dict[str, Any] | None = None) -> Any:
        """Return the server's answer; a LlamaError if it refuses or has ended."""
        with self._errors():
            return self._client.request(method, route, json=body).raise_for_status().json()

    def stream(self, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the events of a completion. Closing the iterator stops the generation."""
        with self._errors(), self._client.stream("POST", "/completion", json=body | {"stream": True}) as response:
            if response.is_error:
                response.read()  # the message of the error
            for line in response.raise_for_status().iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the server's errors, and a lost connection, into one line."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise LlamaError(f"llama.cpp: {error.response.text[:300]}") from error
        except httpx.TransportError as error:
            late = isinstance(error, httpx.TimeoutException)
            reason = self._exit_reason(f"no answer within {self._client.timeout.read} s" if late else "")
            raise LlamaError(f"llama.cpp has ended ({reason}); run the command again") from error

    def _exit_reason(self, known: str = "") -> str:
        """End the server; return the known reason, or its exit status and the first error (or last line) of its log.

        The first caller finds the reason. The other threads that share the server only see that it has ended.
        """
        with self._lock:
            self.end()
            if not self._reason:
                self._log.seek(0)
                lines = self._log.read().strip().splitlines() or ["no message"]
                errors = [found[1] for found in map(ERROR.match, lines) if found]
                status = self.process.returncode
                how = f"signal {-status}" if status < 0 else f"status {status}"
                self._reason = known or f"{how}: {[*errors, lines[-1]][0][:300]}"
            return self._reason

    def end(self) -> None:
        """End the server; without this it ends with this process."""
        with self._lock:  # `communicate` is not for several threads
            try:
                self.process.communicate(timeout=5)  # closes its input
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def serve(file: str, context: str, slots: str) -> None:
    """Run the server on localhost until the input ends; prints the address."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel = int(context), int(slots)
    params.api_keys = [os.environ[KEY]]  # without a key, any page in a browser could send requests
    params.warmup = False
    params.n_batch = 256  # the server notices between two batches of the prompt that the client has gone
    # llama.cpp has its own threads and ignores the variable.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(os.environ.get("OMP_NUM_THREADS") or THREADS)

    def exit_with_input() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=exit_with_input, daemon=True).start()
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve(*sys.argv[1:])
