"""What every export is held against: the adapter on its base, or the whole model that was trained.

Both are asked fixed prompts, and have answered the run's own examples. In what follows "the adapter" stands for either.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tometune.common.errors import UserError
from tometune.exporting.prompts import CONVERSATIONS, Conversation
from tometune.exporting.torch_engine import answer, log_probabilities, text_of
from tometune.runs.finished import Finished

NEW_TOKENS = 24
"""Longest answer to a fixed prompt; its tokens are what logits are compared on."""


@dataclass(frozen=True)
class Fixed:
    """A fixed conversation, as the adapter's own tokenizer renders it, and the adapter's greedy answer."""

    messages: Conversation
    ids: list[int]
    """Tokens of the prompt, up to where the answer begins."""

    answer: list[int]
    """Tokens of the answer, the end of turn included; at least one."""

    text: str
    """The answer as text, without special tokens."""

    log_probabilities: np.ndarray
    """float32, [answer tokens, vocabulary]: of each next token, after the prompt and what came before of the answer."""

    base: np.ndarray | None = None
    """The same of the base without the adapter."""


@dataclass(frozen=True)
class Example:
    """An example of the run's own evaluation."""

    task: str
    ids: list[int]
    """Tokens of the prompt."""

    max_new_tokens: int
    references: list[str]
    prediction: str
    """The answer that was scored when the run was made."""


@dataclass(frozen=True)
class Reference:
    """The adapter's behaviour."""

    fixed: list[Fixed]
    examples: list[Example]
    moved: float
    """Mean KL(adapter || base without it) on the fixed answers, in nats: how far training moved the model."""

    model: str
    """What stood for the adapter: `as trained`, or `16-bit base` where this machine cannot hold the 4-bit one."""

    dtype: str

    from_4_bits: float | None = None
    """Mean KL(adapter as trained || adapter on the 16-bit base), in nats; None where both are the same."""

    tuned: str = "the adapter"
    """What it is, in words (`Finished.tuned`)."""

    before: str = "the base without the adapter"
    """What there was before training, in words (`Finished.before`)."""


def make_reference(
    finished: Finished,
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    held: str,
    examples: int,
    trained: Reference | None = None,
) -> Reference:
    """Ask the adapter.

    Args:
        finished: the run.
        tokenizer: of the run, its template's date pinned.
        model: the base with the run's adapter on it, a `PeftModel`; or the whole model, whose base is asked by itself
            (`beside_base`).
        held: what the base is, see `Reference.model`.
        examples: how many of the run's own.
        trained: the adapter as trained, where `model` is on another base than that.
    """
    rendered = [(messages, ids) for messages in CONVERSATIONS if (ids := render(tokenizer, messages)) is not None]
    prompts = [ids for _, ids in rendered]
    answers = answer(model, tokenizer, prompts, NEW_TOKENS, batch_size=len(prompts), keep_end=True)
    fixed = [
        Fixed(messages, ids, new, text_of(tokenizer, new), log_probabilities(model, ids, new))
        for (messages, ids), new in zip(rendered, answers, strict=True)
    ]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    apart = None
    if trained is not None:
        here = [log_probabilities(model, prompt.ids, prompt.answer) for prompt in trained.fixed]
        pairs = zip(trained.fixed, here, strict=True)
        apart = float(np.concatenate([divergence(prompt.log_probabilities, found) for prompt, found in pairs]).mean())
    own = read_examples(finished, tokenizer, examples)
    reference = Reference(fixed, own, math.nan, held, dtype, apart, finished.tuned, finished.before)
    if finished.whole is not None:
        return reference
    with model.disable_adapter():
        return beside_base(reference, model)


def beside_base(reference: Reference, base: Any) -> Reference:
    """Return a reference that also knows what the base, asked now, makes of the same answers."""
    found = [log_probabilities(base, prompt.ids, prompt.answer) for prompt in reference.fixed]
    pairs = list(zip(reference.fixed, found, strict=True))
    moves = [divergence(prompt.log_probabilities, without) for prompt, without in pairs]
    fixed = [replace(prompt, base=without) for prompt, without in pairs]
    return replace(reference, fixed=fixed, moved=float(np.concatenate(moves).mean()))


def render(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> list[int] | None:
    """Return the tokens of a prompt; None where the template refuses it (some know no system message)."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return KL(first || second) by row, in nats; both are log-probabilities, [rows, vocabulary]."""
    return np.asarray((np.exp(first) * (first - second)).sum(axis=-1, dtype=np.float64))


def read_examples(finished: Finished, tokenizer: PreTrainedTokenizerBase, most: int) -> list[Example]:
    """Return up to `most` examples that the run was scored on, as many of each task as there are, in turn.

    Raises:
        UserError: the files are missing or broken.
    """
    by_task = [
        _read_task(finished.folder / "eval" / "tuned" / f"{name}.jsonl", name, task.max_new_tokens, tokenizer)
        for name, task in finished.config.eval.tasks.items()
    ]
    in_turn: Sequence[Example] = [found for found in chain.from_iterable(zip_longest(*by_task)) if found is not None]
    return list(in_turn[:most])


def _read_task(path: Path, task: str, new: int, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Read the examples of one task."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return [
            Example(
                task,
                tokenizer(row["prompt"], add_special_tokens=False)["input_ids"],
                new,
                row["references"],
                row["prediction"],
            )
            for row in rows
        ]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; score the run again with python -m tometune.evaluate run=…") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a file of scores; delete it and run the run's command again") from None
