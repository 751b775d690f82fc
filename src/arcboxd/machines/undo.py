"""Ways back that are walked to their end, whatever happens to whoever set out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TypeVar

_T = TypeVar("_T")


async def together(*works: Coroutine[object, object, None]) -> None:
    """Do several things at once; when one fails the others are cancelled, its error is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except BaseExceptionGroup as group:
        # The first one says what went wrong; a group would be no error of ours to the edges.
        raise group.exceptions[0] from None


async def complete(work: Coroutine[object, object, _T]) -> _T:
    """Bring work to its end though the caller is cancelled, which it hears of afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()


class Undo(AsyncExitStack):
    """An exit stack whose way back is walked to its end, however often the caller is cancelled."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Unwind."""
        return bool(await complete(super().__aexit__(kind, error, trace)))
