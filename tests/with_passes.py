"""Runs `tometune.train` on a CPU with the passes of a CUDA graph (`PassGraph`), as `python -m tests.with_passes …`.

With PASSES_FAIL=1 the first pass of process 1 fails as if it could not be captured.
"""

import os
from contextlib import nullcontext

from tometune.common.distributed import by_all, rank
from tometune.models.packed_attention import Packed
from tometune.train import main
from tometune.training import sft
from tometune.training.batches import Training
from tometune.training.cuda_graph import GraphError, PassGraph, capacity_for

post_init = Training.__post_init__


def by_lengths(training: Training) -> None:
    post_init(training)
    training.packed = Packed.lengths


def passes_for(training: Training, packs: int) -> PassGraph:
    tokens = packs * training.inputs.trainer.max_length
    graph = PassGraph(training.model, tokens, tokens // packs, capacity_for(training, packs), capture=False)
    run = graph._pass

    def first() -> None:
        graph._pass = run  # type: ignore[method-assign]
        by_all(fail_in_one)
        run()

    def fail_in_one() -> None:
        if rank() == 1 and os.environ.get("PASSES_FAIL"):
            raise GraphError("made up")

    graph._pass = first  # type: ignore[method-assign]
    return graph


if __name__ == "__main__":
    Training.__post_init__ = by_lengths  # type: ignore[method-assign]
    sft.can_use_graph = lambda _: True
    sft.compiled_layers = nullcontext  # type: ignore[assignment]
    sft.graph_for = passes_for
    main()
