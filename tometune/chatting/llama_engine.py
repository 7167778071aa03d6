"""The engine over llama.cpp: a GGUF file as its users run it, in llama.cpp's own server (the extra `gguf`)."""

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import httpx

from tometune.chatting.engine import End, Message, Piece, Settings, Stopped
from tometune.config.errors import UserError
from tometune.data.template import PRIVATE

INSTALL = 'pip install "tometune[gguf]"'
EXAMPLE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
LONGEST = 3600.0
"""Seconds to wait for the server: a large model on a slow machine is no error."""

NEUTRAL = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0}
"""What the server would otherwise do to an answer by itself."""


class LlamaEngine:
    """A GGUF file, with the chat template and the end of turn that it carries.

    The server is a process of its own, since llama.cpp ends the process at what it cannot bear; it goes with this one.
    """

    def __init__(self, file: Path, context: int) -> None:
        """Start the server.

        Raises:
            UserError: llama.cpp is not installed, or cannot read the file.
        """
        if util.find_spec("xllamacpp") is None:
            raise UserError(f"{file}: talking to a GGUF file needs llama.cpp; run: {INSTALL}")
        key = secrets.token_urlsafe(16)
        command = [sys.executable, "-m", "tometune.chatting.llama_server", str(file), str(context)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._server = subprocess.Popen(command, text=True, **pipes)  # noqa: S603 -- our own module
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{key}\n")
        self._server.stdin.flush()
        address = self._server.stdout.readline().strip()
        if not address:
            raise UserError(f"{file}: llama.cpp cannot read it; export it again")
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=address, headers=headers, timeout=LONGEST, trust_env=False)
        self.context = int(self._client.get("/props").json()["default_generation_settings"]["n_ctx"])
        self._controls = self._delimiters()

    def close(self) -> None:
        """End the server."""
        self._client.close()
        self._server.kill()
        self._server.communicate()

    def _post(self, route: str, **body: Any) -> Any:
        """Ask the server."""
        answer = self._client.post(route, json=body)
        if answer.is_error:
            raise UserError(f"llama.cpp: {answer.json().get('error', {}).get('message', answer.text)}")
        return answer.json()

    def _tokens(self, text: str, special: bool, first: bool = False) -> list[int]:
        """Return the tokens of a text; `special` reads control tokens, `first` puts a BOS where the model wants it."""
        found: list[int] = self._post("/tokenize", content=text, add_special=first, parse_special=special)["tokens"]
        return found

    def _delimiters(self) -> frozenset[int]:
        """Return the control tokens with which the template begins and ends a turn."""
        prompt = self._post("/apply-template", messages=[*EXAMPLE, EXAMPLE[0]])["prompt"]
        spelt = {token: self._post("/detokenize", tokens=[token])["content"] for token in {*self._tokens(prompt, True)}}
        return frozenset(
            token
            for token, text in spelt.items()
            if text and self._tokens(text, True) == [token] != self._tokens(text, False)
        )

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt, the template's own control tokens among them.

        What looks like one in a text stays text, as in training: while the template is applied, a character without a
        meaning stands for that text.
        """
        plain, texts = [], {}
        for number, each in enumerate(messages):
            text = each["content"]
            if self._tokens(text, True) != self._tokens(text, False):
                texts[chr(PRIVATE.start + number)] = text
                text = chr(PRIVATE.start + number)
            plain.append({**each, "content": text})
        prompt: str = self._post("/apply-template", messages=plain)["prompt"]
        if not texts:
            return self._tokens(prompt, special=True, first=True)
        ids: list[int] = []
        for number, part in enumerate(re.split(f"([{''.join(texts)}])", prompt)):
            ids += self._tokens(texts.get(part, part), special=part not in texts, first=number == 0)
        return ids

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a prompt."""
        return len(self.encode(messages))

    def stream(self, messages: Sequence[Message], settings: Settings, stopped: Stopped) -> Iterator[Piece]:
        """Yield the answer, one piece a token; the server keeps the keys of the last conversation by itself."""
        ids = self.encode(messages)
        drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}
        body = {"prompt": ids, "n_predict": min(settings.max_new_tokens, self.context - len(ids)), **drawn, **NEUTRAL}
        tokens = 0
        with self._client.stream("POST", "/completion", json={**body, "stream": True, "return_tokens": True}) as lines:
            for line in lines.iter_lines():
                if not line.startswith("data: "):
                    continue
                said = json.loads(line.removeprefix("data: "))
                tokens = max(tokens, said.get("tokens_predicted", 0))
                if self._controls.intersection(said.get("tokens", ())):
                    yield Piece("", tokens, End.turn)
                    return
                if said.get("stop"):
                    yield Piece(said["content"], tokens, End.length if said["stop_type"] == "limit" else End.turn)
                    return
                yield Piece(said["content"], tokens)
                if stopped():
                    yield Piece("", tokens, End.stopped)
                    return
        raise UserError("llama.cpp ended in the middle of an answer; start chat again")
