"""Several processes for one run (`torchrun`): only the first one prints and writes caches, record, log and scores.

Without torchrun these functions do nothing special, and do not import torch.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tometune.common.errors import UserError

if TYPE_CHECKING:
    from torch import nn

PATIENCE = timedelta(days=7)
"""Longest time that processes wait for each other: one may build data for hours, or answer the longest prompts."""

Found = TypeVar("Found")


class RelayedError(UserError):
    """The first process ended for this reason, and has reported it."""


def processes() -> int:
    """Return the number of processes of this run, which torchrun sets in the environment."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return rank() == 0


def connect() -> None:
    """Connect the processes: gloo between CPUs, NCCL between GPUs, with one GPU per process."""
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


def disconnect() -> None:
    """Disconnect the processes at the end. Threads of gloo that still run at the exit abort the process sometimes."""
    if processes() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def agree(value: Found) -> Found:
    """Return the value of the first process, in every process."""
    if processes() == 1:
        return value
    from torch import distributed

    shared: list[Any] = [value]
    distributed.broadcast_object_list(shared, src=0)
    return shared[0]  # type: ignore[no-any-return]


def gather(values: list[Found]) -> list[Found]:
    """Return the values of all processes in the order of their ranks, in every process."""
    if processes() == 1:
        return values
    from torch import distributed

    shared: list[list[Found]] = [[] for _ in range(processes())]
    distributed.all_gather_object(shared, values)
    return [value for part in shared for value in part]


def by_all(action: Callable[[], Found]) -> Found:
    """Call a function in every process, and return its result. If it fails in one process, all raise that error."""
    if processes() == 1:
        return action()
    found, error = list[Found](), None
    try:
        found.append(action())
    except Exception as raised:  # raised below, once the others know
        error = raised
    if first := next((each for each in gather([error]) if each), None):
        raise first from error
    return found[0]


def share_weights(weights: list["nn.Parameter"]) -> None:
    """Give the weights of the first process to all."""
    if processes() > 1:
        from torch import distributed

        for weight in weights:
            distributed.broadcast(weight.data, src=0)


def sum_gradients(weights: list["nn.Parameter"]) -> None:
    """Add the gradients of all processes, in every process, as one tensor. Each weight needs a gradient."""
    import torch
    from torch import distributed

    gradients: list[Any] = [weight.grad for weight in weights]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])


@contextmanager
def first_alone() -> Iterator[None]:
    """Run the body in the first process, then in the others. An error in the first one stops all.

    Raises:
        RelayedError: in the others, if the first failed.
    """
    if not is_first():
        if reason := agree(""):
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
    """Call a function in the first process only, and return its result in every process.

    Raises:
        RelayedError: in the others, if it failed.
    """
    found: list[Found] = []
    with first_alone():
        if is_first():
            found.append(action())
    return agree(found)[0]
