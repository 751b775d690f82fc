"""Ways back that are walked to their end, whatever happens to whoever set out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
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

    def push_failure(self, tell: Callable[[BaseException | None], Awaitable[None]]) -> None:
        """Await this with what went wrong, on the way back."""

        async def leave(
            _kind: type[BaseException] | None,
            error: BaseException | None,
            _trace: TracebackType | None,
        ) -> None:
            await tell(error)

        self.push_async_exit(leave)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Unwind."""
        return bool(await complete(super().__aexit__(kind, error, trace)))
