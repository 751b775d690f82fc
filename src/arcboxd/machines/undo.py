"""Ways back that are walked to their end, whatever happens to whoever set out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from types import TracebackType

from arcboxd.aio import complete


async def together(*works: Coroutine[object, object, None]) -> None:
    """Do several things at once; when one fails the others are cancelled, its error is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except BaseExceptionGroup as group:
        # The first one says what went wrong; a group would be no error of ours to the edges.
        raise group.exceptions[0] from None


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
