"""The engine over llama.cpp: a GGUF file as its users run it, in llama.cpp's own server (the extra `gguf`)."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any

import httpx

from tometune.chatting.engine import End, Message, Piece, Settings, Stopped
from tometune.chatting.install import install
from tometune.chatting.llama_process import LlamaProcess
from tometune.chatting.patience import patiently
from tometune.common.errors import UserError
from tometune.data.template import PRIVATE

EXAMPLE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
LONGEST = 3600.0
"""Seconds to wait for the server: a large model on a slow machine is no error."""

REMEMBERED = 4096
"""Texts of which it is known whether a control token is spelt in them."""

NEUTRAL = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0}
"""What the server would otherwise do to an answer by itself."""


class LlamaEngine:
    """A GGUF file, with the chat template and the end of turn that it carries.

    The server is a process of its own that goes with this one; see `LlamaProcess`.
    """

    def __init__(self, file: Path, context: int) -> None:
        """Start the server.

        Raises:
            UserError: llama.cpp is not installed, or cannot read the file.
        """
        if util.find_spec("xllamacpp") is None:
            raise UserError(f"{file}: talking to a GGUF file needs llama.cpp; run: {install('gguf', 'xllamacpp')}")
        self._server = LlamaProcess(file, context)
        headers = {"Authorization": f"Bearer {self._server.key}"}
        self._client = httpx.Client(base_url=self._server.address, headers=headers, timeout=LONGEST, trust_env=False)
        self.context = int(self._ask("GET", "/props")["default_generation_settings"]["n_ctx"])
        self._controls = self._delimiters()
        self._plain: dict[str, bool] = {}  # texts, and whether no control token is spelt in them
        self._last: tuple[Any, list[int]] = (None, [])

    def close(self) -> None:
        """End the server."""
        self._client.close()
        self._server.close()

    def _ask(self, method: str, route: str, **body: Any) -> Any:
        """Ask the server."""
        with self._alive():
            answer = self._client.request(method, route, json=body or None)
        if answer.is_error:
            raise UserError(f"llama.cpp: {_message(answer)}")
        return answer.json()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Say in one line why the server cannot be reached any more."""
        try:
            yield
        except httpx.TransportError as error:
            raise UserError(f"llama.cpp has ended ({self._server.why()}); start chat again") from error

    def _tokens(self, text: str | list[str], special: bool, first: bool = False) -> list[int]:
        """Return the tokens of texts; `special` reads control tokens, `first` puts a BOS where the model wants it."""
        found: list[int] = self._ask("POST", "/tokenize", content=text, add_special=first, parse_special=special)[
            "tokens"
        ]
        return found

    def _delimiters(self) -> frozenset[int]:
        """Return the control tokens with which the template begins and ends a turn."""
        prompt = self._ask("POST", "/apply-template", messages=[*EXAMPLE, EXAMPLE[0]])["prompt"]
        spelt = {
            token: self._ask("POST", "/detokenize", tokens=[token])["content"]
            for token in {*self._tokens(prompt, True)}
        }
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
        asked = [(each["role"], each["content"]) for each in messages]
        if self._last[0] != asked:  # counted a moment ago, and now to be answered
            self._last = (asked, self._encoded(messages))
        return self._last[1]

    def _encoded(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt; four requests where no control token is spelt in it."""
        self._look([each["content"] for each in messages])
        plain, texts = [], {}
        for number, each in enumerate(messages):
            text = each["content"]
            if not self._plain[text]:
                texts[chr(PRIVATE.start + number)] = text
                text = chr(PRIVATE.start + number)
            plain.append({**each, "content": text})
        prompt: str = self._ask("POST", "/apply-template", messages=plain)["prompt"]
        if not texts:
            return self._tokens(prompt, special=True, first=True)
        ids: list[int] = []
        for number, part in enumerate(re.split(f"([{''.join(texts)}])", prompt)):
            ids += self._tokens(texts.get(part, part), special=part not in texts, first=number == 0)
        return ids

    def _look(self, texts: Sequence[str]) -> None:
        """Learn which texts spell no control token: all that are new at once, and each by itself if one does."""
        if len(self._plain) > REMEMBERED:
            self._plain.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._plain]
        if new and self._same(new):
            self._plain |= dict.fromkeys(new, True)
        else:
            self._plain |= {text: self._same([text]) for text in new}

    def _same(self, texts: list[str]) -> bool:
        """Tell whether texts have the same tokens, control tokens read or not; the server takes each by itself."""
        return self._tokens(texts, True) == self._tokens(texts, False)

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a prompt."""
        return len(self.encode(messages))

    def stream(self, messages: Sequence[Message], settings: Settings, stopped: Stopped) -> Iterator[Piece]:
        """Yield the answer, one piece a token; the server keeps the keys of the last conversation by itself."""
        ids = self.encode(messages)
        drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}
        body = {"prompt": ids, "n_predict": min(settings.max_new_tokens, self.context - len(ids)), **drawn, **NEUTRAL}
        tokens = 0
        for line in self._lines({**body, "stream": True, "return_tokens": True}):
            if line.startswith("data: "):
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
        raise UserError("llama.cpp broke off in the middle of an answer; start chat again")

    def _lines(self, body: dict[str, Any]) -> Iterator[str]:
        """Yield the lines of a streamed answer, and an empty one now and then while the server reads the prompt.

        Whoever goes away closes the connection, at which the server stops.
        """

        async def asked() -> AsyncGenerator[str, None]:
            """Ask, without waiting for good: the server says nothing before it has read the whole prompt."""
            address, headers = self._server.address, self._client.headers
            async with (
                httpx.AsyncClient(base_url=address, headers=headers, timeout=LONGEST, trust_env=False) as client,
                client.stream("POST", "/completion", json=body) as answer,
            ):
                if answer.is_error:
                    await answer.aread()
                    raise UserError(f"llama.cpp: {_message(answer)}")
                async for line in answer.aiter_lines():
                    yield line

        with self._alive(), asyncio.Runner() as runner:
            yield from patiently(asked(), runner)


def _message(answer: httpx.Response) -> str:
    """Return what the server says is wrong, in one line."""
    try:
        return str(answer.json()["error"]["message"]).splitlines()[0]
    except (ValueError, LookupError, TypeError):
        return f"answered {answer.status_code}"
