"""The engine that runs a model with transformers. Engines on the same base share its weights and switch adapters."""

import contextlib
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from tometune.chatting.conversation import End, Message, Piece, Settings
from tometune.common.seeding import use_deterministic_kernels
from tometune.data.encoder import Encoder
from tometune.data.template import Template
from tometune.evaluation.generation import greedy
from tometune.models.load import load_adapter

PREFILL = 512
"""Tokens of a long prompt that are read at a time; an answer can be stopped in between."""


class SharedModel:
    """A model in memory with its tokenizer and any number of adapters."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        use_deterministic_kernels()  # a seed gives the same answer again
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.template = Template(tokenizer)
        self.encoder = Encoder(self.template)
        self.lock = threading.Lock()
        # A model that writes a token with which the template begins or ends a turn has finished its answer.
        example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        text = self.template.render([example])[0].text + self.template.prompt(example[:1]).text
        markers = tokenizer.convert_tokens_to_ids(sorted(set(self.template.special.findall(text))))
        self.stops = {*greedy(model, tokenizer, 1).eos_token_id, *markers}

    def add_adapter(self, folder: Path, name: str) -> None:
        """Add an adapter. Raises UserError if it was made for another base or its weights are a pickle."""
        self.model = load_adapter(self.model, folder, name).eval()

    @contextlib.contextmanager
    def using(self, adapter: str | None) -> Iterator[Any]:
        """Reserve the model and give it with this adapter, or with all adapters off."""
        with self.lock:
            if adapter is not None:
                self.model.set_adapter(adapter)
            off = adapter is None and isinstance(self.model, PeftModel)
            with self.model.disable_adapter() if off else contextlib.nullcontext():
                yield self.model


class TransformersEngine:
    """One model with one adapter, or with none.

    The keys and values of the last conversation are kept, so that the next turn only has to read its own tokens. They
    are reused up to their end, or up to where the last prompt began: a retried prompt is then read in the same portions
    as before, and the same seed gives the same answer. (In 16 bits, other portions would round differently.)
    """

    def __init__(self, shared: SharedModel, adapter: str | None, context: int) -> None:
        self.shared = shared
        self.adapter = adapter
        self.context = min(context, getattr(shared.model.config, "max_position_embeddings", None) or context)
        self._cache: Any = None
        self._ids: list[int] = []  # the tokens whose keys and values are in the cache
        self._start = 0  # where the last prompt began

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt; text that looks like a special token stays text, as in training."""
        ((ids, _),) = self.shared.encoder.encode([self.shared.template.prompt(list(messages))])
        return ids

    def count(self, messages: Sequence[Message]) -> int:
        return len(self.encode(messages))

    def stream(self, messages: Sequence[Message], settings: Settings) -> Generator[Piece, None, None]:
        """Yield the answer, one piece per token."""
        ids, tokenizer = self.encode(messages), self.shared.tokenizer
        limit = min(settings.max_new_tokens, self.context - len(ids))
        random = torch.Generator(self.shared.model.device).manual_seed(settings.seed)
        decoder, text, generated = DecodeStream(skip_special_tokens=True), "", list[int]()
        with self.shared.using(self.adapter) as model:
            done = self._reuse(ids)
            while len(ids) - done > PREFILL:
                self._read(model, ids[done : done + PREFILL])
                done += PREFILL
                yield Piece("", 0)
            logits = self._read(model, ids[done:])
            while True:
                token = _sample(logits, settings, random)
                generated.append(token)
                if token in self.shared.stops or len(generated) == limit:
                    end = End.turn if token in self.shared.stops else End.length
                    # A tokenizer may not know a stop token as special. The bytes of an incomplete character, which the
                    # decoder holds back, are part of the answer too.
                    answer = tokenizer.decode(generated[: -1 if end is End.turn else None], skip_special_tokens=True)
                    yield Piece(answer[len(text) :], len(generated), end)
                    return
                new = decoder.step(tokenizer.backend_tokenizer, token) or ""
                text += new
                yield Piece(new, len(generated))
                logits = self._read(model, [token])

    def _read(self, model: Any, ids: list[int]) -> torch.Tensor:
        """Add tokens to the cache; return the logits of the next token ([1, vocabulary])."""
        known, self._ids = self._ids, []  # after an error, e.g. out of memory, the cache cannot be used again
        tokens = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            made = model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._ids = known + ids
        return made.logits[:, -1].float()  # type: ignore[no-any-return]

    def _reuse(self, ids: list[int]) -> int:
        """Prepare the cache for a prompt and return how many of its tokens are in it; at least one is left to read."""
        starts = [start for start in (len(self._ids), self._start) if self._ids[:start] == ids[:start] != ids]
        start = max(starts, default=0)
        # Layers of other types, e.g. with a sliding window, cannot be shortened.
        if not start or not all(type(layer) is DynamicLayer for layer in self._cache.layers):
            self._cache, start = DynamicCache(config=self.shared.model.config), 0
        elif start < len(self._ids):
            self._cache.crop(start - len(self._ids))
        self._ids, self._start = ids[:start], start
        return start


def _sample(logits: torch.Tensor, settings: Settings, random: torch.Generator) -> int:
    """Return the next token: the most likely one at temperature 0, else drawn from the tokens within top-p."""
    if settings.temperature == 0:
        return int(logits.argmax())
    scores = TemperatureLogitsWarper(float(settings.temperature))(None, logits)
    scores = TopPLogitsWarper(settings.top_p)(None, scores)
    return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=random))
