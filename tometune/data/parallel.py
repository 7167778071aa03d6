"""Work in several processes; the order of the results does not depend on their number."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import chain, islice
from multiprocessing import current_process
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

ALONE = 8  # up to so many items are processed here, faster than another process starts
WAITING = 3  # items per process that wait for a process or for the caller; bounds the memory


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, using as many processes as there are cores.

    The function must be at module level, so that other processes find it; items are read here, a few ahead. An error
    of the function is raised when its item's turn comes.

    Raises:
        RuntimeError: a process was killed.
    """
    rest = iter(items)
    head = list(islice(rest, ALONE + 1))
    processes = 1 if current_process().daemon else cores()  # daemons must not have children
    if len(head) <= ALONE or processes == 1:
        yield from map(function, chain(head, rest))
        return
    # loky's processes start fresh and import only what the function needs.
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # loky replaces a process whose memory grew; users can do nothing about that.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
    pool = ProcessPoolExecutor(processes)
    try:
        waiting: deque[Future[Result]] = deque()
        for item in chain(head, rest):
            waiting.append(pool.submit(function, item))
            if len(waiting) >= WAITING * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except TerminatedWorkerError as error:
        killed = f"one of {processes} worker processes was killed, most likely because memory ran out"
        raise RuntimeError(f"{killed}; run the same command again, perhaps on fewer cores (taskset -c 0 …)") from error
    finally:
        pool.shutdown(kill_workers=True)
