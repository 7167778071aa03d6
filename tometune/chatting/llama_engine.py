"""The engine that runs a GGUF file with llama.cpp's own server (extra `gguf`)."""

from collections.abc import Generator, Sequence
from contextlib import closing
from importlib import util
from pathlib import Path

from tometune.chatting.conversation import End, Message, Piece, Settings
from tometune.common.errors import UserError
from tometune.models.llama_cpp import LlamaServer

NEUTRAL = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0}
"""Values that switch off the server's other samplers, which are on by default."""


class LlamaEngine:
    """A GGUF file with the chat template and the end-of-turn tokens that it carries.

    Raises:
        UserError: llama.cpp is not installed or cannot read the file.
    """

    def __init__(self, file: Path, context: int) -> None:
        if util.find_spec("xllamacpp") is None:
            raise UserError(f"{file}: needs llama.cpp; run: bash scripts/setup.sh gguf, or pip install xllamacpp")
        self.server = LlamaServer(file, context)
        self.context = int(self.server.request("GET", "/props")["default_generation_settings"]["n_ctx"])

    def count(self, messages: Sequence[Message]) -> int:
        return len(self.server.tokens(messages))

    def stream(self, messages: Sequence[Message], settings: Settings) -> Generator[Piece, None, None]:
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed, **NEUTRAL}
        limit = min(settings.max_new_tokens, self.context - self.count(messages))
        # The server also reports while it reads a long prompt, not only after it.
        body = {"prompt": self.server.prompt(messages), "n_predict": limit, "return_progress": True, **sampling}
        with closing(self.server.stream(body)) as events:
            for event in events:
                stop = event.get("stop_type") if event["stop"] else None
                end = stop and (End.length if stop == "limit" else End.turn)
                yield Piece(event["content"], event["tokens_predicted"], end)
                if end:
                    return
        raise UserError("llama.cpp broke off in the middle of an answer; start chat again")
