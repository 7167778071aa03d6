"""The engine that runs a model with transformers. Engines on the same base share its weights and switch adapters."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from tometune.chatting.engine import End, Message, Piece, Settings
from tometune.common.errors import UserError
from tometune.data.encoder import Encoder
from tometune.data.template import Template
from tometune.evaluation.generation import greedy
from tometune.models.adapter import check_safetensors, load_adapter
from tometune.models.lora_rounding import round_once

PREFILL = 512
"""Tokens of a long prompt that are read at a time; an answer can be stopped in between."""


class SharedModel:
    """A model in memory with its tokenizer and any number of adapters."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.template = Template(tokenizer)
        self.encoder = Encoder(self.template)
        self.lock = threading.Lock()
        # A model that writes a token with which the template begins or ends a turn has finished its answer.
        example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        text = self.template.render([example])[0].text + self.template.prompt(example[:1]).text
        around = tokenizer.convert_tokens_to_ids(sorted(set(self.template.special.findall(text))))
        self.stops = sorted({*greedy(model, tokenizer, 1).eos_token_id, *around})

    def add_adapter(self, folder: Path, name: str) -> None:
        """Add an adapter. Raises UserError if it was made for another base or its weights are a pickle."""
        check_safetensors(folder)
        try:
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(folder, adapter_name=name, is_trainable=False)
                round_once(self.model)  # the new adapter may cover layers that the earlier ones left alone
            else:
                self.model = load_adapter(self.model, folder, name)
        except (RuntimeError, ValueError) as error:
            if "size mismatch" in str(error) or "arget modules" in str(error):
                raise UserError(f"{folder}: the adapter was made for another base model") from error
            raise
        self.model.eval()

    @contextlib.contextmanager
    def using(self, adapter: str | None) -> Iterator[Any]:
        """Reserve the model and give it with this adapter, or with all adapters off."""
        with self.lock, contextlib.ExitStack() as stack:
            if isinstance(self.model, PeftModel):
                if adapter is None:
                    stack.enter_context(self.model.disable_adapter())
                else:
                    self.model.set_adapter(adapter)
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
        """Return the number of tokens of a prompt."""
        return len(self.encode(messages))

    def stream(self, messages: Sequence[Message], settings: Settings) -> Generator[Piece, None, None]:
        """Yield the answer, one piece per token. `generate` runs in a thread of its own."""
        ids, tokenizer = self.encode(messages), self.shared.tokenizer
        config = greedy(self.shared.model, tokenizer, min(settings.max_new_tokens, self.context - len(ids)))
        config.eos_token_id = self.shared.stops
        if settings.temperature > 0:
            temperature = float(settings.temperature)
            config.update(do_sample=True, temperature=temperature, top_p=settings.top_p, top_k=0)
        streamer, stopped = Streamer(), threading.Event()
        worker = threading.Thread(target=self._run, args=(ids, config, settings.seed, streamer, stopped), daemon=True)
        worker.start()
        decoder, text, generated = DecodeStream(skip_special_tokens=True), "", list[int]()
        try:
            for token in streamer.tokens():
                if token is None:
                    yield Piece("", len(generated))
                    continue
                generated.append(token)
                length = len(generated) == config.max_new_tokens
                end = End.turn if token in self.shared.stops else End.length if length else None
                if end is None:
                    new = decoder.step(tokenizer.backend_tokenizer, token) or ""
                else:  # including the bytes of an incomplete character, which the decoder holds back
                    new = tokenizer.decode(generated, skip_special_tokens=True)[len(text) :]
                text += new
                yield Piece(new, len(generated), end)
        finally:
            stopped.set()
            worker.join()

    def close(self) -> None:
        """Nothing is held outside this process."""

    def _run(
        self, ids: list[int], config: GenerationConfig, seed: int, streamer: "Streamer", stopped: threading.Event
    ) -> None:
        """Generate in the background; tokens, errors and the end reach the reader through the streamer."""
        device = self.shared.model.device
        # `generate` takes no generator, so the global random state is seeded, and restored afterwards.
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        try:
            with self.shared.using(self.adapter) as model, forked, torch.no_grad():
                torch.manual_seed(seed)
                done = self._reuse(ids)
                prompt = torch.tensor([ids], device=device)
                while len(ids) - done > PREFILL and not stopped.is_set():
                    part = prompt[:, done : done + PREFILL]
                    model(input_ids=part, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
                    done += PREFILL
                if not stopped.is_set():
                    generated = model.generate(
                        input_ids=prompt,
                        attention_mask=torch.ones_like(prompt),
                        generation_config=config,
                        past_key_values=self._cache,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([lambda *_, **__: stopped.is_set()]),
                    )
                    ids = generated[0].tolist()
                self._ids = ids[: self._cache.get_seq_length()]
            streamer.queue.put(None)
        except BaseException as error:
            self._ids, self._start = [], 0  # e.g. out of memory: the layers of the cache may differ in length
            streamer.queue.put(error)

    def _reuse(self, ids: list[int]) -> int:
        """Prepare the cache for a prompt and return how many of its tokens are in it; at least one is left to read."""
        starts = [start for start in (len(self._ids), self._start) if self._ids[:start] == ids[:start] != ids]
        start = max(starts, default=0)
        # Layers of other types, e.g. with a sliding window, cannot be shortened.
        if not start or not all(type(layer) is DynamicLayer for layer in self._cache.layers):
            self._cache, start = DynamicCache(config=self.shared.model.config), 0
        elif start < len(self._ids):
            self._cache.crop(start - len(self._ids))
        self._start = start
        return start


class Streamer(BaseStreamer):
    """Passes on each token of `generate` at once. `TextIteratorStreamer` holds back all but complete words."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[torch.Tensor | BaseException | None] = queue.SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt ([1, tokens]) and then each token ([1])."""
        if value.dim() == 1:
            self.queue.put(value)

    def end(self) -> None:
        """Called by `generate`; the end is queued only after its last error could have been raised."""

    def tokens(self) -> Iterator[int | None]:
        """Yield the tokens until the end, and None whenever none has come for a moment."""
        while True:
            try:
                found = self.queue.get(timeout=0.1)
            except queue.Empty:
                yield None
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return
            yield int(found)
