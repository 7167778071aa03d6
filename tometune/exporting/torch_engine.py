"""Answers and log-probabilities of a model in PyTorch, with or without an adapter."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tometune.evaluation.batches import Batches
from tometune.evaluation.engines.plain import Plain
from tometune.evaluation.generation import greedy


def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int,
    keep_end: bool = False,
) -> list[list[int]]:
    """Return the greedy answers' tokens, in the order of the prompts.

    Args:
        model: with or without an adapter, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: their tokens.
        max_new_tokens: longest answer.
        batch_size: prompts at once, the longest first.
        keep_end: whether the end of turn stays at the end of an answer.
    """
    config = greedy(model, tokenizer, max_new_tokens)
    stops = set(config.eos_token_id)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    batches = Batches(Plain(model), batch_size, config)
    found: dict[int, list[int]] = {}
    while len(found) < len(order):
        rest = order[len(found) :]
        new = batches.answer([prompts[index] for index in rest[: batches.size]], lambda _: [])
        for index, ids in zip(rest, new, strict=False):
            end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
            found[index] = ids[: end + keep_end]
    return [found[index] for index in range(len(prompts))]


def log_probabilities(model: Any, prompt: list[int], new: list[int]) -> np.ndarray:
    """Return the log-probabilities of each token of an answer's place, float32 [answer tokens, vocabulary]."""
    ids = torch.tensor([[*prompt, *new]], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    found: np.ndarray = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return an answer as it is scored: without special tokens and outer white space."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
