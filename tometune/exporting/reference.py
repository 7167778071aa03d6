"""What exports are compared with: the tuned model's answers. And exports that PyTorch loads (PEFT, transformers)."""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tometune.common.errors import UserError
from tometune.config.model import ModelConfig, Precision
from tometune.evaluation.engines import Engine as EvaluationEngine
from tometune.evaluation.generation import greedy
from tometune.exporting.gate import Conversation, Example, Reference, Tokens, divergence
from tometune.exporting.merging import largest_activation
from tometune.models.load import load_adapter, load_model
from tometune.models.machine import check_machine, free_memory
from tometune.models.source import locate, quantized
from tometune.runs.finished import Finished
from tometune.runs.run import DamageError

log = logging.getLogger(__name__)

MOST_IN_FLOAT32 = 4_000_000_000
"""Parameters of the largest model whose logits are compared in float32, without the noise of 16-bit arithmetic."""

BATCH = 64  # prompts that are answered at once on a GPU
SMALL_BATCH = 16  # on a CPU, or if the memory does not suffice
NEW_TOKENS = 24  # longest answer to a fixed conversation; its tokens are those that logits are compared on
ON_BASE = "16-bit base"

TEXTS = (
    "What is the capital of France?",
    "What does this function return?\n\n```python\ndef f(x, y=2):\n    return x ** y  # power\n```",
    "Übersetze ins Englische: „Der schnelle Fuchs – 3,14 × 2 = 6,28 – springt.“ 漢字 🦊",
    "  Keep   these\tspaces,\n\n\nlines, and <b>tags</b> & {{ braces }} {% raw %}.  ",
    "Count: 1 22 333 4444 55555 666666 7777777 88888888 999999999.",
    "Summarise in ten words: Return a list of the names of the entries in the given directory, in arbitrary order.",
)
CONVERSATIONS: list[Conversation] = [
    *([{"role": "user", "content": text}] for text in TEXTS),
    [{"role": "system", "content": "You answer in one sentence."}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "An apple."},
        {"role": "user", "content": "And another one, with its colour?"},
    ],
]
"""Ordinary prompts, and prompts that break templates. Where there is no system message, a template may add its own."""


class References:
    """The tuned model on each base that exports need; every base is loaded once, when it is first needed."""

    def __init__(self, finished: Finished, cache: Path, tokenizer: PreTrainedTokenizerBase, answer: bool) -> None:
        """`answer`: the examples are answered, too; comparing an adapter does not need that."""
        self.finished, self.cache, self.tokenizer, self.answer = finished, cache, tokenizer, answer

    def of(self, kind: str) -> Reference:
        """Return what an export of this format is compared with.

        A base in 4 bits answers differently from the same base in 16 bits, whatever is merged. So exports that hold a
        16-bit base are compared with the adapter on that, and how far that is from the adapter as trained is measured.
        """
        merged_from_4_bits = quantized(self.finished.model) and kind != "adapter"
        return self.on_base if merged_from_4_bits else self.as_trained or self.on_base

    @cached_property
    def as_trained(self) -> Reference | None:
        """The tuned model as trained; None if its base is in 4 bits, which this machine cannot load."""
        try:
            check_machine(self.finished.model)
        except UserError:
            if not quantized(self.finished.model):
                raise
            log.warning("no GPU for the 4-bit base: exports are compared with the adapter on the 16-bit base")
            return None
        model = self.finished.whole or self.finished.model
        return self._record(load_model(locate(exact(model, self.finished), self.cache)), "as trained")

    @cached_property
    def on_base(self) -> Reference:
        """The adapter on the 16-bit base, and its distance from the adapter as trained."""
        trained = self.as_trained
        free_memory()  # the model in 4 bits is not needed any more
        model = load_model(locate(exact(self.finished.base, self.finished), self.cache))
        return self._record(model, ON_BASE, trained)

    def _record(self, model: Any, base: str, trained: Reference | None = None) -> Reference:
        """Record the behaviour of the tuned model, given its base or the whole model."""
        tuned = "the run's model"
        if self.finished.whole is None:
            model, tuned = load_adapter(model, self.finished.adapter), "the adapter"
        log.info("answering the fixed conversations with %s (%s)", tuned, base)
        engine = TorchEngine("torch", model, self.tokenizer)
        rendered = zip(CONVERSATIONS, engine.render(CONVERSATIONS), strict=True)
        accepted = [(messages, ids) for messages, ids in rendered if ids]  # some templates allow no system message
        prompts = [ids for _, ids in accepted]
        answers = engine.tokens(prompts, [NEW_TOKENS] * len(prompts))
        distance = None
        if trained is not None:
            found = engine.log_probabilities(trained.prompts, trained.answers)
            distance = float(divergence(trained.log_probabilities, found).mean())
        with largest_activation(model) as largest:
            log_probabilities = engine.log_probabilities(prompts, answers)
        examples, texts = self._examples(), list[str]()
        if self.answer and (base == ON_BASE or not quantized(self.finished.model)):
            texts = engine.answer([one.ids for one in examples], [one.max_new_tokens for one in examples])
        stops = greedy(model, self.tokenizer, NEW_TOKENS).eos_token_id
        model.generation_config.update(
            eos_token_id=stops[0] if len(stops) == 1 else stops,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
        )
        return Reference(
            conversations=[messages for messages, _ in accepted],
            prompts=prompts,
            answers=answers,
            log_probabilities=log_probabilities,
            examples=examples,
            base=base,
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
            texts=texts,
            activation=largest[0],
            tuned=tuned,
            from_4_bits=distance,
            generation=model.generation_config.to_dict(),
        )

    def _examples(self) -> list[Example]:
        """Read examples that the run was scored on, in turn from each task."""
        by_task = []
        for name, task in self.finished.config.eval.tasks.items():
            path = self.finished.folder / "eval" / "tuned" / f"{name}.jsonl"
            try:
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
                prompts = self.tokenizer([row["prompt"] for row in rows], add_special_tokens=False)["input_ids"]
                pairs = zip(prompts, rows, strict=True)
                new = task.max_new_tokens
                by_task.append([Example(ids, new, row["references"], row["prediction"]) for ids, row in pairs])
            except (OSError, ValueError, KeyError, TypeError):
                raise DamageError(path, "is not a file of scores") from None
        in_turn = [found for found in chain.from_iterable(zip_longest(*by_task)) if found is not None]
        return in_turn[: self.finished.config.export.examples]


def exact(model: ModelConfig, finished: Finished) -> ModelConfig:
    """Return the model in float32 if it is small enough."""
    small = int(finished.record["model"]["parameters"]) <= MOST_IN_FLOAT32
    return replace(model, precision=Precision.fp32) if small else model


class TorchEngine:
    """A model in PyTorch: the tuned model, or an export that PEFT or transformers loaded; an `Engine`."""

    def __init__(self, library: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = f"{library} {metadata.version(library)}"
        self.model, self.tokenizer = model.eval(), tokenizer

    def render(self, conversations: Sequence[Conversation]) -> list[Tokens]:
        """See `Engine`; no tokens if the template refuses a conversation."""
        found: list[Tokens] = []
        for messages in conversations:
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                found.append(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            except TemplateError:
                found.append([])
        return found

    def log_probabilities(self, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[np.ndarray]:
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([[*prompt, *answer]], device=self.model.device)
            with torch.no_grad():
                logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            found.append(torch.log_softmax(logits.float(), dim=-1).cpu().numpy())
        return found

    def answer(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[str]:
        stops = greedy(self.model, self.tokenizer, 1).eos_token_id
        answers = [[token for token in ids if token not in stops] for ids in self.tokens(prompts, lengths)]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]  # stripped, as answers are scored

    def tokens(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        """Return greedy answers of at most so many tokens, with their end of turn."""
        if self.model.device.type == "cuda" and len(prompts) > SMALL_BATCH:
            with suppress(torch.OutOfMemoryError):
                return self._tokens(prompts, lengths, BATCH)
            free_memory()
        return self._tokens(prompts, lengths, SMALL_BATCH)

    def _tokens(self, prompts: Sequence[Tokens], lengths: Sequence[int], rows: int) -> list[Tokens]:
        engine, found = EvaluationEngine(self.model), list[Tokens]()
        for start in range(0, len(prompts), rows):
            most = lengths[start : start + rows]
            config = greedy(self.model, self.tokenizer, max(most))
            for ids, length in zip(engine.answer(prompts[start : start + rows], config, []), most, strict=True):
                end = next((place for place, token in enumerate(ids) if token in config.eos_token_id), len(ids))
                found.append(ids[: min(end + 1, length)])
        return found
