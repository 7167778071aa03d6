"""Lines from a server that may be silent for minutes, while somebody can lose patience."""

import asyncio
from collections.abc import AsyncGenerator, Iterator

LOOK = 0.1
"""Seconds between two looks at whether an answer is still wanted, while there is nothing new of it."""


def patiently(lines: AsyncGenerator[str, None], runner: asyncio.Runner) -> Iterator[str]:
    """Yield lines as they come, and an empty one whenever there was none for a while."""

    async def news(task: "asyncio.Task[str] | None") -> "asyncio.Task[str]":
        """Wait a while for a line, the one that was waited for before if there is one."""
        task = task or asyncio.ensure_future(anext(lines))
        await asyncio.wait({task}, timeout=LOOK)
        return task

    async def ended(task: "asyncio.Task[str] | None") -> None:
        """Wait no longer, and close the connection."""
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await lines.aclose()

    task = None
    try:
        while True:
            task = runner.run(news(task))
            if not task.done():
                yield ""
                continue
            try:
                line = task.result()
            except StopAsyncIteration:
                return
            task = None
            yield line
    finally:
        runner.run(ended(task))
