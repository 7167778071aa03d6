"""The engine over llama.cpp: a GGUF file as its users run it, through llama-cpp-python (the extra `gguf`)."""

import re
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from tometune.chatting.engine import End, Message, Piece, Settings, Stopped
from tometune.config.errors import UserError
from tometune.data.template import PRIVATE

INSTALL = 'pip install "tometune[gguf]"'


class LlamaEngine:
    """A GGUF file, with the chat template and the end of turn that it carries."""

    def __init__(self, file: Path, context: int) -> None:
        """Read the file.

        Raises:
            UserError: llama-cpp-python is not installed, or cannot read it, or it has no chat template.
        """
        if util.find_spec("llama_cpp") is None:
            raise UserError(f"{file}: talking to a GGUF file needs llama-cpp-python; run: {INSTALL}")
        import llama_cpp

        try:
            self._llama = llama_cpp.Llama(str(file), n_ctx=context, n_gpu_layers=-1, verbose=False)
        except ValueError as error:
            raise UserError(f"{file}: llama.cpp cannot read it ({error}); export it again") from error
        self.context = int(self._llama.n_ctx())
        vocabulary = self._llama._model.vocab
        tokens = range(self._llama.n_vocab())
        controls = [token for token in tokens if llama_cpp.llama_vocab_is_control(vocabulary, token)]
        self._spelt = {self._spell(token): token for token in controls}
        ends = (token for token in tokens if llama_cpp.llama_vocab_is_eog(vocabulary, token))
        self._stops = frozenset([*controls, *ends])
        self._special = re.compile("|".join(map(re.escape, sorted(filter(None, self._spelt), key=len, reverse=True))))
        self._template = self._formatter(file)

    def _spell(self, token: int) -> str:
        """Return a token as text."""
        return str(self._llama.detokenize([token], special=True).decode("utf-8", "replace"))

    def _formatter(self, file: Path) -> Any:
        """Return what turns messages into a prompt.

        Raises:
            UserError: the file has no chat template.
        """
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self._llama.metadata.get("tokenizer.chat_template")
        if template is None:
            raise UserError(f"{file}: has no chat template; export an instruct or chat model")
        begin, end = (self._spell(token) for token in (self._llama.token_bos(), self._llama.token_eos()))
        return Jinja2ChatFormatter(template, eos_token=end, bos_token=begin)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt, the template's own control tokens among them.

        What looks like one in a text stays text, as in training: while the template is applied, a character without a
        meaning stands for it.
        """
        stand_ins = {token: chr(PRIVATE.start + number) for number, token in enumerate(self._spelt)}
        plain = [
            {**each, "content": self._special.sub(lambda found: stand_ins[found.group()], each["content"])}
            for each in messages
        ]
        prompt: str = self._template(messages=plain).prompt
        meant = {character: token for token, character in stand_ins.items()}
        ids: list[int] = []
        for part in re.split(f"([{chr(PRIVATE.start)}-{chr(PRIVATE.stop)}])", prompt):
            ids += self._llama.tokenize(meant.get(part, part).encode(), add_bos=False, special=part not in meant)
        return ids

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a prompt."""
        return len(self.encode(messages))

    def stream(self, messages: Sequence[Message], settings: Settings, stopped: Stopped) -> Iterator[Piece]:
        """Yield the answer, one piece a token; llama.cpp keeps the keys of the last conversation by itself."""
        ids = self.encode(messages)
        most = min(settings.max_new_tokens, self.context - len(ids))
        self._llama.set_seed(settings.seed)
        sampler = {"temp": settings.temperature, "top_p": settings.top_p, "top_k": 0, "min_p": 0.0}
        made, waiting = 0, b""
        for token in self._llama.generate(ids, **sampler, repeat_penalty=1.0):
            made += 1
            if token in self._stops:
                yield Piece(waiting.decode("utf-8", "replace"), made, End.turn)
                return
            text, waiting = _whole(waiting + self._llama.detokenize([token]))
            yield Piece(text, made)
            if stopped():
                yield Piece(waiting.decode("utf-8", "replace"), made, End.stopped)
                return
            if made >= most:
                break
        yield Piece(waiting.decode("utf-8", "replace"), made, End.length)


def _whole(text: bytes) -> tuple[str, bytes]:
    """Split what ends in the middle of a character before that character."""
    try:
        return text.decode(), b""
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return text[: error.start].decode("utf-8", "replace"), text[error.start :]
        return text.decode("utf-8", "replace"), b""
