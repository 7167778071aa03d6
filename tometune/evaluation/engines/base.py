"""The interface of the engines that generate answers, which of them is used, and the one that runs every model.

Engines are checked before anything is loaded, so this module imports torch late.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from tometune.common.errors import UserError
from tometune.config.eval import EngineKind

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

log = logging.getLogger(__name__)

CAPABILITY = (8, 0)
"""Compute capability that the attention kernel of `cuda_graph` needs."""

KERNEL = "_flash_attention_forward"
"""Private torch operator that `cuda_graph` calls; another torch version may not have it."""


class UnsupportedError(Exception):
    """The engine cannot run this model on this device; the text is the reason, as a clause."""


class Engine(Protocol):
    """Answers prompts in batches."""

    name: str
    """As in `eval.engine`: transformers or cuda_graph."""

    def kind(self, rows: int) -> str:
        """Return the name recorded with the scores; it includes whether a batch of `rows` uses compiled parts."""

    def answer(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noise: Sequence[LogitsProcessor]
    ) -> list[list[int]]:
        """Return the new tokens of each prompt; tokens after the end of turn have no meaning.

        Args:
            prompts: token ids, at least one per prompt.
            config: `max_new_tokens`, `eos_token_id` (a list) and `pad_token_id` are used.
            noise: empty for greedy answers, else one processor that receives the scores of each step.

        Raises:
            torch.OutOfMemoryError: the batch is too large; the engine can be used again after `release`.
        """

    def release(self) -> None:
        """Free the memory that is kept between batches."""


class Plain:
    """The engine `transformers`: left-pads a batch and calls `model.generate`."""

    name = "transformers"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def kind(self, rows: int) -> str:  # noqa: ARG002 -- the same for all batches
        """See `Engine`."""
        return self.name

    def answer(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noise: Sequence[LogitsProcessor]
    ) -> list[list[int]]:
        """See `Engine`."""
        import torch

        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), config.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=config,
            logits_processor=list(noise),
        )
        new: list[list[int]] = output[:, width:].tolist()
        return new

    def release(self) -> None:
        """Nothing is kept."""


def check_engine(wanted: EngineKind, must_compile: bool = False) -> None:
    """Check that this machine can run an engine that was asked for explicitly.

    Raises:
        UserError: `eval.engine=cuda_graph` or `eval.compile=true` is not possible here.
    """
    if (wanted is EngineKind.cuda_graph or must_compile) and (reason := missing_for_cuda_graph()):
        if wanted is EngineKind.cuda_graph:
            raise UserError(f"eval.engine=cuda_graph: {reason}; set eval.engine=auto or transformers")
        raise UserError(f"eval.compile=true: {reason}; set eval.compile=auto")


def missing_for_cuda_graph() -> str | None:
    """Return what this machine lacks for the engine `cuda_graph`, as a clause, or None."""
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "no NVIDIA GPU found"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return f"the GPU's compute capability is {found[0]}.{found[1]}, and the attention kernel needs 8.0"
    if not hasattr(torch.ops.aten, KERNEL):
        return f"torch {torch.__version__} does not have the attention kernel aten::{KERNEL}"
    return None


@contextmanager
def engine_for(
    wanted: EngineKind, model: PreTrainedModel, longest_row: int, compiles: bool = False
) -> Iterator[Engine]:
    """Yield the engine for a model and release it afterwards; the log says which one it is and why.

    Args:
        wanted: `eval.engine`.
        model: a causal language model in eval mode, with or without an adapter.
        longest_row: maximum number of tokens of a prompt and its answer.
        compiles: whether `cuda_graph` compiles parts of the model.

    Raises:
        UserError: the engine that was asked for explicitly cannot run this model here.
    """
    check_engine(wanted)
    engine: Engine = Plain(model)
    if wanted is not EngineKind.transformers:
        reason = missing_for_cuda_graph()
        if not reason:
            from tometune.evaluation.engines.cuda_graph import CudaGraph

            graph = CudaGraph(model, longest_row, compiles=compiles)
            try:
                graph.probe()
                engine = graph
                log.info("eval.engine=%s: using cuda_graph%s", wanted, ", compiled" if compiles else "")
            except UnsupportedError as error:
                reason = f"it cannot run this model: {error}"
        if reason and wanted is EngineKind.cuda_graph:
            raise UserError(f"eval.engine=cuda_graph: {reason}; set eval.engine=auto or transformers")
        if reason:
            log.info("eval.engine=auto: using transformers (%s)", reason)
    try:
        yield engine
    finally:
        engine.release()
