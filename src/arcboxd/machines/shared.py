"""Work that several ask for at the same time, done once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Does work once for each key at a time. Whoever gives up waiting stops it for nobody."""

    def __init__(self) -> None:
        """Have nothing to do."""
        self._tasks: dict[str, asyncio.Task[_T]] = {}

    async def join(self, key: str, work: Callable[[], Coroutine[object, object, _T]]) -> _T:
        """Begin the work, or wait for what was begun under this key; give its result or error.

        If it is cancelled, the work goes on.
        """
        if (task := self._tasks.get(key)) is None:
            task = asyncio.get_running_loop().create_task(work(), name=key)
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._ended(key))
        return await asyncio.shield(task)

    def _ended(self, key: str) -> None:
        task = self._tasks.pop(key)
        if not task.cancelled():
            task.exception()  # seen, though everybody may have given up

    async def close(self) -> None:
        """Cancel all that is under way, and wait until it has ended."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
