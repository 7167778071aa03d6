"""Which engine answers: what the config asks for, and what the machine and the model allow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tometune.common.errors import UserError
from tometune.config.eval import EngineKind
from tometune.evaluation.engines.base import Engine, UnsupportedError
from tometune.evaluation.engines.cuda_graph import CudaGraph
from tometune.evaluation.engines.plain import Plain
from tometune.evaluation.engines.requirements import check_engine, lacking

log = logging.getLogger(__name__)


@contextmanager
def engine_for(
    wanted: EngineKind,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    longest_row: int,
    compiles: bool = False,
) -> Iterator[Engine]:
    """Give the engine for a model for a while, and log which it is and why.

    Args:
        wanted: `eval.engine`.
        model: a causal language model, with or without an adapter; its weights are not touched.
        tokenizer: its tokenizer.
        longest_row: tokens of a prompt and its answer, at most.
        compiles: whether `cuda_graph` compiles parts of the model.

    Raises:
        UserError: the engine that is asked for cannot run this model here.
    """
    check_engine(wanted)
    engine: Engine
    if wanted is EngineKind.vllm:
        from tometune.evaluation.engines.vllm_engine import Vllm

        engine = Vllm(model, tokenizer, longest_row)
    elif wanted is EngineKind.transformers:
        engine = Plain(model)
    else:
        engine = _fastest(wanted, model, longest_row, compiles)
    try:
        yield engine
    finally:
        engine.release()


def _fastest(wanted: EngineKind, model: PreTrainedModel, longest_row: int, compiles: bool) -> Engine:
    """Return `cuda_graph` if it runs this model here; else, unless it was asked for, `transformers`."""
    reason = lacking()
    if not reason:
        engine = CudaGraph(model, longest_row, compiles=compiles)
        training = model.training
        model.eval()
        try:
            engine.probe()
        except UnsupportedError as error:
            reason = f"this model cannot go there: {error}"
        else:
            why = "for there is a GPU and the model attends in 16 bits"
            log.info("eval.engine=%s: cuda_graph%s, %s", wanted, ", compiled" if compiles else "", why)
            return engine
        finally:
            model.train(training)
    if wanted is EngineKind.cuda_graph:
        raise UserError(f"eval.engine=cuda_graph: {reason}; set eval.engine=auto or transformers")
    log.info("eval.engine=auto: transformers, for %s", reason)
    return Plain(model)
