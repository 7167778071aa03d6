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
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any

import httpx

from tometune.chatting.engine import End, Message, Piece, Settings, install_command
from tometune.common.errors import UserError

LONGEST_WAIT = 3600.0
"""Seconds to wait for the server: a large model on a slow machine is not an error."""

EXIT_SECONDS = 5.0
"""Time to let the server exit by itself before it is killed."""

ERROR = re.compile(r"^(?:[\d.]+ )?E (?:\w+ +)?(.+)$", re.MULTILINE)
"""An error line of llama.cpp's log."""

NEUTRAL = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0}
"""Values that switch off the server's other samplers, which are on by default."""

PLACEHOLDERS = range(0x100000, 0x10FFFE)
"""Private-use characters that stand for texts while the chat template is applied."""


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
            raise UserError(f"{file}: a GGUF file needs llama.cpp; run: {install_command('gguf', 'xllamacpp')}")
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 -- lives as long
        self._process = subprocess.Popen(  # noqa: S603 -- our own module
            [sys.executable, "-m", "tometune.chatting.llama_cpp", str(file), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        key = secrets.token_urlsafe(16)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and its log says why
            print(key, file=self._process.stdin, flush=True)
        address = self._process.stdout.readline().strip()
        if not address:
            raise UserError(f"{file}: llama.cpp cannot read it ({self._exit_reason()}); export it again")
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=address, headers=headers, timeout=LONGEST_WAIT, trust_env=False)
        self.context = int(self._request("GET", "/props")["default_generation_settings"]["n_ctx"])
        # Both are called several times with the same text while a long conversation is truncated and then answered.
        self._spells_special = lru_cache(4096)(lambda text: self._tokens(text, True) != self._tokens(text, False))
        self._encode_cached = lru_cache(1)(self._encode)

    def count(self, messages: Sequence[Message]) -> int:
        """Return the number of tokens of a prompt."""
        return len(self.encode(messages))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt; text that looks like a special token stays text, as in training."""
        return self._encode_cached(tuple((message["role"], message["content"]) for message in messages))

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Piece]:
        """Yield the answer, one piece per token. Closing the connection stops the server."""
        ids = self.encode(messages)
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed, **NEUTRAL}
        limit = min(settings.max_new_tokens, self.context - len(ids))
        # With `return_progress` the server also reports while it reads a long prompt, not only after it.
        body = {"prompt": ids, "n_predict": limit, "stream": True, "return_progress": True, **sampling}
        with self._reachable(), self._client.stream("POST", "/completion", json=body) as response:
            _check(response)
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                end = None
                if event.get("stop"):
                    end = End.length if event["stop_type"] == "limit" else End.turn
                yield Piece(event["content"], event["tokens_predicted"], end)
                if end is not None:
                    return
        raise UserError("llama.cpp broke off in the middle of an answer; start chat again")

    def _encode(self, messages: tuple[tuple[str, str], ...]) -> list[int]:
        texts = {}
        for place, (_, content) in zip(PLACEHOLDERS, messages, strict=False):
            if self._spells_special(content):
                texts[chr(place)] = content
        names = {content: place for place, content in texts.items()}
        given = [{"role": role, "content": names.get(content, content)} for role, content in messages]
        prompt: str = self._request("POST", "/apply-template", messages=given)["prompt"]
        if not texts:
            return self._tokens(prompt, special=True, bos=True)
        ids: list[int] = []
        for number, part in enumerate(re.split(f"([{''.join(texts)}])", prompt)):
            ids += self._tokens(texts.get(part, part), special=part not in texts, bos=number == 0)
        return ids

    def _tokens(self, text: str, special: bool, bos: bool = False) -> list[int]:
        """Return the tokens of a text; `special` recognises control tokens, `bos` adds one if the model wants it."""
        body = {"content": text, "add_special": bos, "parse_special": special}
        tokens: list[int] = self._request("POST", "/tokenize", **body)["tokens"]
        return tokens

    def _request(self, method: str, route: str, **body: Any) -> Any:
        with self._reachable():
            response = self._client.request(method, route, json=body or None)
        _check(response)
        return response.json()

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        """Turn a lost connection into one line that says how the server ended."""
        try:
            yield
        except httpx.TransportError as error:
            raise UserError(f"llama.cpp has ended ({self._exit_reason()}); start chat again") from error

    def _exit_reason(self) -> str:
        """End the server; return its exit status and the first error (or the last line) of its log."""
        self._end()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["no message"]
        errors = [found[1] for found in map(ERROR.match, lines) if found]
        status = self._process.returncode
        return f"{f'signal {-status}' if status < 0 else f'status {status}'}: {[*errors, lines[-1]][0][:300]}"

    def close(self) -> None:
        """End the server."""
        self._client.close()
        self._end()
        self._log.close()

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _check(response: httpx.Response) -> None:
    """Raise the server's own message as a `UserError`."""
    if response.is_error:
        try:
            message = str(json.loads(response.read())["error"]["message"]).splitlines()[0]
        except (ValueError, LookupError, TypeError):
            message = f"status {response.status_code}"
        raise UserError(f"llama.cpp: {message}")


def serve(file: str, context: str) -> None:
    """Run the server on localhost until the input ends. Reads an API key from the input and prints the address."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel = int(context), 1
    params.api_keys = [sys.stdin.readline().strip()]  # without a key, any page in a browser could send requests
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
