"""The engine over llama.cpp: a GGUF file as its users run it, through llama-cpp-python (the extra `gguf`)."""

from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from tometune.chatting.engine import End, Message, Piece, Settings, Stopped
from tometune.config.errors import UserError

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
        from llama_cpp import Llama

        try:
            self._model: Any = Llama(str(file), n_ctx=context, n_gpu_layers=-1, verbose=False)
        except ValueError as error:
            raise UserError(f"{file}: llama.cpp cannot read it ({error}); export it again") from error
        self.context = int(self._model.n_ctx())
        self._format = self._formatter(file)

    def _formatter(self, file: Path) -> Any:
        """Return what turns messages into a prompt.

        Raises:
            UserError: the file has no chat template.
        """
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self._model.metadata.get("tokenizer.chat_template")
        if template is None:
            raise UserError(f"{file}: has no chat template; export an instruct or chat model")
        bos, eos = self._model.token_bos(), self._model.token_eos()
        spelt = [self._model.detokenize([token], special=True).decode("utf-8", "replace") for token in (bos, eos)]
        return Jinja2ChatFormatter(template, eos_token=spelt[1], bos_token=spelt[0], stop_token_ids=[eos])

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt, the template's own special tokens among them and one BOS at most."""
        text = self._format(messages=list(messages)).prompt
        ids: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=True)
        return ids

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a prompt."""
        return len(self.encode(messages))

    def stream(self, messages: Sequence[Message], settings: Settings, stopped: Stopped) -> Iterator[Piece]:
        """Yield the answer, one piece a token; llama.cpp keeps the keys of the last conversation by itself."""
        ids = self.encode(messages)
        most = min(settings.max_new_tokens, self.context - len(ids))
        self._model.set_seed(settings.seed)
        sampler = {"temp": settings.temperature, "top_p": settings.top_p, "top_k": 0, "min_p": 0.0}
        neutral = {"repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
        made: list[int] = []
        given = 0
        for token in self._model.generate(ids, **sampler, **neutral):
            made_tokens = len(made) + 1
            if self._model._model.token_is_eog(token) if hasattr(self._model._model, "token_is_eog") else False:
                yield Piece(self._text(made, given, whole=True), made_tokens, End.turn)
                return
            made.append(token)
            text = self._text(made, given, whole=False)
            given += len(text.encode())
            yield Piece(text, made_tokens)
            if stopped():
                yield Piece(self._text(made, given, whole=True), made_tokens, End.stopped)
                return
            if made_tokens >= most:
                break
        yield Piece(self._text(made, given, whole=True), len(made), End.length)

    def _text(self, made: list[int], given: int, whole: bool) -> str:
        """Return the text after `given` bytes; without `whole`, none that ends in the middle of a character."""
        new: bytes = self._model.detokenize(made, special=False)[given:]
        try:
            return new.decode()
        except UnicodeDecodeError:
            return new.decode("utf-8", "replace") if whole else ""
