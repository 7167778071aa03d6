"""How many prompts fit into the memory of a GPU at the same time, computed from the shape of the model."""

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

MOST_ROWS = 256
"""Larger batches are hardly faster: the matrix products are large enough."""

CPU_ROWS = 16
"""Batch size without a GPU."""

SHARE = 0.9
"""Usable share of the free memory; the rest is for fragments and libraries' workspaces."""

BUFFERS = 8
"""Tensors as wide as the widest layer that a forward pass holds at once; measured peaks are lower."""


def rows_that_fit(
    model: PreTrainedModel, prompt_tokens: int, new_tokens: int, padded: bool, prefill_tokens: int
) -> int:
    """Return a batch size: a power of two, at most MOST_ROWS.

    The free memory differs a little between runs; rounding to a power of two gives the same batch size each time.

    Args:
        model: in eval mode, on the device where it generates.
        prompt_tokens: maximum tokens of a prompt.
        new_tokens: maximum tokens of an answer.
        padded: whether all rows are padded to the longest and read in one forward pass.
        prefill_tokens: otherwise, the prompt tokens per forward pass.
    """
    if model.device.type != "cuda":
        return CPU_ROWS
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(model.device)
    text_config = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    widest = max((module.out_features for module in linear), default=text_config.vocab_size)
    activations = BUFFERS * widest * model.dtype.itemsize  # bytes per token
    row = _cache_bytes(model) * (prompt_tokens + new_tokens)
    row += 12 * text_config.vocab_size  # logits in 16 bits and twice in 32
    row += activations * prompt_tokens if padded else 0
    shared = 0 if padded else activations * max(prefill_tokens, prompt_tokens)
    fit = max(1, int((SHARE * free - shared) // row))
    rows = min(MOST_ROWS, 1 << (fit.bit_length() - 1))
    log.info("%d prompts per batch: %.1f GB are free, and a row takes up to %.3f GB", rows, free / 1e9, row / 1e9)
    return rows


def _cache_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of keys and values per token, measured on one token."""
    with torch.no_grad():
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        cache = model(input_ids=token, use_cache=True).past_key_values
    found: int = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return found
