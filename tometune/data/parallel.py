"""Work on every core, in order: what comes out does not depend on how many there are."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import current_process
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

ALONE = 8
"""Items done in this process first: small work is over before another process has started."""

WAITING = 3
"""Items a process that wait or are done and not yet taken; bounds the memory."""


class WorkerDiedError(RuntimeError):
    """A process that worked for this one is gone."""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` for each item, in their order, worked out in as many processes as there are cores.

    Processes, since the work is Python's; loky's, since they start afresh and import only what the function needs.

    Args:
        function: of a module, so that another process finds it; it and the items are pickled.
        items: read in this process, a few at a time.

    Raises:
        WorkerDiedError: a process was killed.
        Exception: what the function raises, at its item's turn.
    """
    rest = iter(items)
    for item in islice(rest, ALONE):
        yield function(item)
    ahead = list(islice(rest, 1))
    processes = 1 if current_process().daemon else cores()  # a daemon may not have children
    if not ahead or processes == 1:
        yield from map(function, ahead)
        yield from map(function, rest)
        return
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # loky replaces a process whose memory grew, which is nothing that a user could do something about.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
    pool = ProcessPoolExecutor(processes)
    try:
        waiting = deque([pool.submit(function, ahead.pop())])
        for item in rest:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= WAITING * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except TerminatedWorkerError as error:
        raise WorkerDiedError(
            f"one of {processes} processes was ended from outside, most often for want of memory; the same command "
            "tries again (with fewer cores, e.g. taskset -c 0 …, it takes less)"
        ) from error
    finally:
        pool.shutdown(kill_workers=True)
