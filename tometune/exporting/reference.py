"""The tuned model's answers that exports are compared with, and the exports that PyTorch loads (PEFT, transformers)."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.config.model import ModelConfig, Precision
from tometune.evaluation.engines.base import Plain
from tometune.evaluation.generation import greedy
from tometune.exporting.gate import CONVERSATIONS, NEW_TOKENS, Example, Prompt, Reference, divergence
from tometune.exporting.merge import load_base
from tometune.models.adapter import load_adapter
from tometune.models.load import load_model
from tometune.models.machine import check_machine, free_memory
from tometune.models.source import locate, quantized
from tometune.runs.finished import REPEAT, Finished

log = logging.getLogger(__name__)

MOST_IN_FLOAT32 = 4_000_000_000
"""Parameters of the largest model whose logits are compared in float32, without the noise of 16-bit arithmetic."""

BATCH = 16
"""Prompts that are answered at once."""


class References:
    """The tuned model on each base that exports need; every base is loaded once, when it is first needed.

    Attributes:
        generation: the base's generation config, ending turns where the chat template does; set by the first reference.
        compute: dtype and device of the reference.
    """

    def __init__(self, finished: Finished, cache: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.finished, self.cache, self.tokenizer = finished, cache, tokenizer
        self.generation = GenerationConfig()
        self.compute: tuple[torch.dtype, torch.device] = (torch.float32, torch.device("cpu"))

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
        return self._reference("as trained")

    @cached_property
    def on_base(self) -> Reference:
        """The adapter on the 16-bit base, and its distance from the adapter as trained."""
        return self._reference("16-bit base", self.as_trained)

    def _reference(self, label: str, trained: Reference | None = None) -> Reference:
        """Load the tuned model and record its behaviour."""
        finished, whole = self.finished, self.finished.whole
        tuned = "the adapter" if whole is None else "the run's model"
        if label == "as trained":
            model = load_model(locate(self.exact(whole or finished.model), self.cache))
        else:
            model = load_base(replace(finished, base=self.exact(finished.base)), self.cache)
        if whole is None:
            model = load_adapter(model, finished.adapter)
        log.info("answering the fixed conversations with %s (%s)", tuned, label)
        self.compute = (next(model.parameters()).dtype, model.device)
        self.generation = GenerationConfig.from_dict(model.generation_config.to_dict())
        stops = greedy(model, self.tokenizer, NEW_TOKENS).eos_token_id
        self.generation.eos_token_id = stops[0] if len(stops) == 1 else stops
        self.generation.pad_token_id = self.tokenizer.pad_token_id
        self.generation.bos_token_id = self.tokenizer.bos_token_id
        try:
            distance = None
            if trained is not None:
                pairs = [(p.log_probabilities, log_probabilities(model, p.ids, p.answer)) for p in trained.prompts]
                distance = float(np.concatenate([divergence(*pair) for pair in pairs]).mean())
            dtype = str(self.compute[0]).removeprefix("torch.")
            return Reference(self._prompts(model), self._examples(), label, dtype, distance, tuned)
        finally:
            del model
            free_memory()

    def _prompts(self, model: Any) -> list[Prompt]:
        """Answer the fixed conversations that the chat template accepts (some allow no system message)."""
        rendered = [(messages, ids) for messages in CONVERSATIONS if (ids := render(self.tokenizer, messages))]
        answers = answer(model, self.tokenizer, [ids for _, ids in rendered], NEW_TOKENS, keep_end=True)
        return [
            Prompt(messages, ids, new, log_probabilities(model, ids, new))
            for (messages, ids), new in zip(rendered, answers, strict=True)
        ]

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
                raise UserError(f"{path}: not a file of scores; delete it and {REPEAT}") from None
        in_turn = [found for found in chain.from_iterable(zip_longest(*by_task)) if found is not None]
        return in_turn[: self.finished.config.export.examples]

    def exact(self, model: ModelConfig) -> ModelConfig:
        """Return the model in float32 if it is small enough."""
        small = int(self.finished.record["model"]["parameters"]) <= MOST_IN_FLOAT32
        return replace(model, precision=Precision.fp32) if small else model

    def config_of(self, model: ModelConfig) -> Any:
        """Return the config of a model without loading its weights."""
        source = locate(model, self.cache)
        with hub_errors("export.base" if model is self.finished.base else "model.id", model.id):
            return AutoConfig.from_pretrained(source.location, revision=source.revision)


class TorchEngine:
    """An export that PEFT or transformers loads from the folder that was just written; an `Engine`."""

    def __init__(self, library: str, model: Any, tokenizer: PreTrainedTokenizerBase, run_dtype: torch.dtype) -> None:
        """`run_dtype` is the arithmetic in which the run's examples were answered."""
        self.name = f"{library} {metadata.version(library)}"
        self.model, self.tokenizer, self.run_dtype = model.eval(), tokenizer, run_dtype

    def render(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [render(self.tokenizer, prompt.messages) or [] for prompt in prompts]

    def log_probabilities(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        return [log_probabilities(self.model, prompt.ids, prompt.answer) for prompt in prompts]

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """See `Engine`; the model computes in the run's own arithmetic from here on."""
        for name, parameter in self.model.named_parameters():
            if parameter.dtype is torch.float32 and "lora_" not in name:
                parameter.data = parameter.data.to(self.run_dtype)
        texts: dict[int, str] = {}
        for length in sorted({example.max_new_tokens for example in examples}):
            indices = [index for index, example in enumerate(examples) if example.max_new_tokens == length]
            answers = answer(self.model, self.tokenizer, [examples[index].ids for index in indices], length)
            decoded = self.tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts |= zip(indices, (text.strip() for text in decoded), strict=True)  # stripped, as answers are scored
        return [texts[index] for index in range(len(examples))]


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int] | None:
    """Return the tokens of a conversation up to the answer; None if the template refuses it."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], length: int, keep_end: bool = False
) -> list[list[int]]:
    """Return the tokens of greedy answers of at most `length` tokens, with their end of turn if `keep_end`."""
    config, engine = greedy(model, tokenizer, length), Plain(model)
    found: dict[int, list[int]] = {}
    longest_first = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    for start in range(0, len(prompts), BATCH):
        indices = longest_first[start : start + BATCH]
        answers = engine.answer([prompts[index] for index in indices], config, [])
        for index, ids in zip(indices, answers, strict=True):
            end = next((place for place, token in enumerate(ids) if token in config.eos_token_id), len(ids))
            found[index] = ids[: end + keep_end]
    return [found[index] for index in range(len(prompts))]


def log_probabilities(model: Any, prompt: list[int], new: list[int]) -> np.ndarray:
    """Return float32 [answer tokens, vocabulary] for an answer to a prompt."""
    ids = torch.tensor([[*prompt, *new]], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    found: np.ndarray = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return found
