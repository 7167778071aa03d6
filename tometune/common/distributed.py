"""Several processes at one run (`torchrun`): who is the first, waiting for it, and speaking with one voice.

The first process alone writes: data and model caches before the others read them, the record, the log, the scores.
Without torchrun every function here is that of one process, and imports no torch.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from tometune.common.errors import UserError

PATIENCE = timedelta(days=7)
"""How long processes wait for each other: the first may build data for hours, another answer the longest prompts."""

Found = TypeVar("Found")


class RelayedError(UserError):
    """The first process ended for this reason, and has told it."""


def processes() -> int:
    """Return how many processes are at this run; torchrun says it in the environment."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def is_first() -> bool:
    """Tell whether this process is the one that writes."""
    return rank() == 0


def connect() -> None:
    """Join the other processes: gloo between CPUs, NCCL between GPUs, of which each process takes its own."""
    if processes() == 1:
        return
    import torch
    from torch import distributed

    if not is_first():
        logging.getLogger("tometune").setLevel(logging.ERROR)
    if distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)


def agree(value: Found) -> Found:
    """Return the first process's value in every process."""
    if processes() == 1:
        return value
    from torch import distributed

    shared: list[Any] = [value]
    distributed.broadcast_object_list(shared, src=0)
    return shared[0]  # type: ignore[no-any-return]


def gather(values: list[Found]) -> list[Found]:
    """Return the values of all processes, those of the first one first, in every process."""
    if processes() == 1:
        return values
    from torch import distributed

    shared: list[list[Found]] = [[] for _ in range(processes())]
    distributed.all_gather_object(shared, values)
    return [value for part in shared for value in part]


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process do something before the others do the same; what stops it, stops them.

    Raises:
        RelayedError: in the others, where the first was stopped.
    """
    if not is_first():
        reason = agree("")
        if reason:
            raise RelayedError(reason)
        yield
        return
    try:
        yield
    except Exception as error:
        agree(f"{type(error).__name__}: {error}")
        raise
    agree("")


def by_first(action: Callable[[], Found]) -> Found:
    """Do something in the first process only and return what it found in every process.

    Raises:
        RelayedError: in the others, where it raised in the first.
    """
    found: list[Found] = []
    with first_alone():
        if is_first():
            found.append(action())
    return agree(found)[0]
