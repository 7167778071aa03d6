"""How many prompts fit into the memory of a GPU at once, by arithmetic."""

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

MOST_ROWS = 256
"""More rows at once are hardly faster: the matrix products are large enough."""

CPU_ROWS = 16
"""Rows where there is no GPU."""

SHARE = 0.9
"""Of the free memory; the rest is for fragments and libraries' workspaces."""

BUFFERS = 8
"""Tensors as wide as the widest layer that a forward pass holds at once: measured peaks are below that."""


def rows_that_fit(model: PreTrainedModel, prompt_tokens: int, new_tokens: int, padded: bool, at_once: int) -> int:
    """Return a power of two of rows, at most MOST_ROWS.

    A power of two, since what is free differs a little from one time to the next, and the number must not.

    Args:
        model: on the device where it answers.
        prompt_tokens: longest prompt.
        new_tokens: longest answer.
        padded: whether every row is as long as the longest and all are read at once.
        at_once: otherwise, prompt tokens that are read at once.
    """
    if model.device.type != "cuda":
        return CPU_ROWS
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(model.device)
    activations = _activation_bytes(model)
    vocabulary = 12 * model.config.get_text_config().vocab_size  # scores in 16 bits and twice in 32
    row = _cache_bytes(model) * (prompt_tokens + new_tokens) + vocabulary
    shared = 0 if padded else activations * max(at_once, prompt_tokens)
    row += activations * prompt_tokens if padded else 0
    fit = max(1, int((SHARE * free - shared) // row))
    rows = min(MOST_ROWS, 1 << (fit.bit_length() - 1))
    log.info("%d prompts at once: %.1f GB are free, and a row takes up to %.3f GB", rows, free / 1e9, row / 1e9)
    return rows


def _cache_bytes(model: PreTrainedModel) -> int:
    """Return bytes of keys and values a token, by keeping those of one."""
    training = model.training
    model.eval()
    with torch.no_grad():
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        cache = model(input_ids=token, use_cache=True).past_key_values
    model.train(training)
    found: int = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return found


def _activation_bytes(model: PreTrainedModel) -> int:
    """Return bytes a token that a forward pass holds at its peak."""
    head = model.get_output_embeddings()
    linear = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    widest: int = max((module.out_features for module in linear), default=model.config.get_text_config().vocab_size)
    itemsize: int = model.dtype.itemsize
    return BUFFERS * widest * itemsize
