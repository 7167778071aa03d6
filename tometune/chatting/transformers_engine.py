"""The engine over transformers: the run's own weights, with the adapter, another one, or none."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel

from tometune.chatting.decoder import Decoder
from tometune.chatting.drawing import draw
from tometune.chatting.engine import End, Message, Piece, Settings, Stopped
from tometune.chatting.memory import Memory
from tometune.data.encoder import Encoder
from tometune.data.template import Template
from tometune.evaluation.generation import greedy

PORTION = 512
"""Tokens of a prompt that are read at once; in between it is looked whether the answer is still wanted."""


class Weights:
    """A model in memory, whose adapters are switched; shared by the engines that use it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.template = Template(tokenizer)
        self.encoder = Encoder(self.template)
        self.stops = stops(model, tokenizer, self.template)
        self._active: str | None = None
        self._known = False

    def use(self, adapter: str | None) -> None:
        """Answer with this adapter from now on; None is the base model."""
        if not isinstance(self.model, PeftModel) or (self._known and self._active == adapter):
            return
        if adapter is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(adapter)
        self._active, self._known = adapter, True


class TransformersEngine:
    """One model with one adapter or none."""

    def __init__(self, weights: Weights, adapter: str | None, context: int) -> None:
        """Take the weights as they are.

        Args:
            weights: shared with other engines.
            adapter: its name in the model; None is the base.
            context: most tokens; the model's own limit holds where it is lower.
        """
        self.weights = weights
        self.adapter = adapter
        own = getattr(weights.model.config, "max_position_embeddings", None)
        self.context = min(context, own or context)
        self._memory = Memory(weights.model)

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a prompt."""
        return len(self.encode(messages))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt; what looks like a special token in a text stays text, as in training."""
        ((ids, _),) = self.weights.encoder.encode([self.weights.template.prompt(list(messages))])
        return ids

    def stream(self, messages: Sequence[Message], settings: Settings, stopped: Stopped) -> Iterator[Piece]:
        """Yield the answer, one piece a token."""
        ids = self.encode(messages)
        generator = torch.Generator().manual_seed(settings.seed)
        decoder = Decoder(self.weights.tokenizer)
        cache, start = self._memory.reuse(ids)
        logits = None
        for place in range(start, len(ids), PORTION):
            if stopped():
                yield Piece("", 0, End.stopped)
                return
            logits = self._read(ids[place : place + PORTION], cache)
        most = min(settings.max_new_tokens, self.context - len(ids))
        for tokens in range(1, most + 1):
            token = draw(logits, settings, generator)
            if token in self.weights.stops:
                yield Piece(decoder.rest(), tokens, End.turn)
                return
            yield Piece(decoder.add(token), tokens)
            if stopped():
                yield Piece(decoder.rest(), tokens, End.stopped)
                return
            if tokens < most:
                logits = self._read([token], cache)
        yield Piece(decoder.rest(), most, End.length)

    def _read(self, ids: list[int], cache: Any) -> torch.Tensor:
        """Return the logits after these tokens, [vocabulary]; the cache grows by them."""
        self.weights.use(self.adapter)
        model = self.weights.model
        given = torch.tensor([ids], device=model.device)
        try:
            with torch.inference_mode():
                made = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        except BaseException:  # e.g. out of memory: some layers have the tokens, others have not
            self._memory.forget()
            raise
        self._memory.add(ids)
        logits: torch.Tensor = made.logits
        return logits[0, -1]


def stops(model: Any, tokenizer: Any, template: Template) -> frozenset[int]:
    """Return the tokens that end an answer: those the model ends its turns with, and all that begin or end a turn.

    A model that writes the beginning of the next turn itself has said what it had to say.
    """
    example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    spelt = set(template.special.findall(template.render([example])[0].text + template.prompt(example[:1]).text))
    ends = greedy(model, tokenizer, 1).eos_token_id
    return frozenset(ends) | {tokenizer.convert_tokens_to_ids(token) for token in spelt}
