"""Engines that generate answers: the one that runs every model, and the choice of engine and batch size.

The engine is checked before anything is loaded, so this module imports torch late.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tometune.common.errors import UserError
from tometune.config.eval import EngineKind

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

log = logging.getLogger(__name__)

CAPABILITY = (8, 0)  # compute capability that the attention kernel of `cuda_graph` needs
MOST_ROWS = 256  # larger batches are hardly faster: the matrix products are large enough
CPU_ROWS = 16  # batch size without a GPU
SHARE = 0.9  # usable share of the free memory; the rest is for fragments and libraries' workspaces
BUFFERS = 8  # tensors as wide as the widest layer that a forward pass holds at once; measured peaks are lower


class UnsupportedError(Exception):
    """The engine cannot run this model on this device; the text is the reason, as a clause."""


class Engine:
    """Answers prompts in batches. This is the engine `transformers`; `CudaGraph` has the same methods."""

    name = "transformers"  # as in `eval.engine`

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def answer(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noise: Sequence[LogitsProcessor]
    ) -> list[list[int]]:
        """Return the new tokens of each prompt, here of a left-padded batch and the model's own `generate`.

        A prompt has at least one token. Tokens after the end of turn have no meaning. Of the config, `max_new_tokens`,
        `eos_token_id` (a list) and `pad_token_id` are used. The noise is empty for greedy answers, else one processor
        that receives the scores of each step.

        Raises:
            torch.OutOfMemoryError: the batch is too large; the engine can be used again after `release`.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(prompt) for prompt in prompts]
        ids = pad_sequence(rows, True, config.pad_token_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, padding_side="left")
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=config,
            logits_processor=list(noise),
        )
        new: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return new

    def release(self) -> None:
        """Free the memory that is kept between batches."""


def check_engine(wanted: EngineKind) -> None:
    """Check that this machine can run an engine that was asked for explicitly.

    Raises:
        UserError: `eval.engine=cuda_graph` is not possible here.
    """
    if wanted is EngineKind.cuda_graph:
        try:
            _check_cuda_graph()
        except UnsupportedError as reason:
            raise UserError(f"eval.engine=cuda_graph: {reason}; set eval.engine=auto or transformers") from None


def _check_cuda_graph() -> None:
    """Raise an `UnsupportedError` if this machine cannot run the engine `cuda_graph`."""
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        raise UnsupportedError("no NVIDIA GPU found")
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        kernel = "and the attention kernel needs 8.0"
        raise UnsupportedError(f"the GPU's compute capability is {found[0]}.{found[1]}, {kernel}")
    from tometune.evaluation.engines.ragged import KERNEL

    if not hasattr(torch.ops.aten, KERNEL):
        raise UnsupportedError(f"torch {torch.__version__} does not have the attention kernel aten::{KERNEL}")


@contextmanager
def engine_for(wanted: EngineKind, model: PreTrainedModel, longest_row: int) -> Iterator[Engine]:
    """Yield the engine for a model in eval mode and release it afterwards; the log says which one it is and why.

    `longest_row` is the maximum number of tokens of a prompt and its answer.

    Raises:
        UserError: the engine that was asked for explicitly cannot run this model here.
    """
    engine = Engine(model)
    if wanted is not EngineKind.transformers:
        try:
            _check_cuda_graph()
            from tometune.evaluation.engines.cuda_graph import CudaGraph

            graph = CudaGraph(model, longest_row)
            graph.probe()
            engine = graph
            log.info("eval.engine=%s: using cuda_graph", wanted)
        except UnsupportedError as reason:
            if wanted is EngineKind.cuda_graph:
                raise UserError(f"eval.engine=cuda_graph: {reason}; set eval.engine=auto or transformers") from None
            log.info("eval.engine=auto: using transformers (%s)", reason)
    try:
        yield engine
    finally:
        engine.release()


def rows_that_fit(engine: Engine, prompt_tokens: int, new_tokens: int) -> int:
    """Return a batch size for prompts and answers of at most so many tokens: a power of two, at most MOST_ROWS.

    The free memory differs a little between runs; rounding to a power of two gives the same batch size each time.
    """
    import torch
    from torch import nn

    from tometune.evaluation.engines.decoder import PREFILL_TOKENS

    model = engine.model
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
    shared = 0
    if engine.name == "transformers":  # reads all prompts in one forward pass, padded to the longest
        row += activations * prompt_tokens
    else:
        shared = activations * max(PREFILL_TOKENS, prompt_tokens)
    fit = max(1, int((SHARE * free - shared) // row))
    rows = min(MOST_ROWS, 1 << (fit.bit_length() - 1))
    log.info("%d prompts per batch: %.1f GB are free, and a row takes up to %.3f GB", rows, free / 1e9, row / 1e9)
    return rows


def _cache_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of keys and values per token, measured on one token."""
    import torch

    with torch.no_grad():
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        cache = model(input_ids=token, use_cache=True).past_key_values
    found: int = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return found
