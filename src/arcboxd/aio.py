"""Tasks with an owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import TypeVar

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


def spawn(coroutine: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
    """Run a coroutine beside the caller, who keeps the task and ends it with `cancel`.

    A task that fails says so in the log at once, since its owner may look only at the end.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    task.add_done_callback(_report)
    return task


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("task %s failed", task.get_name(), exc_info=error)


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is gone; its own error was already logged."""
    task.cancel()
    await asyncio.wait([task])
    with contextlib.suppress(asyncio.CancelledError, Exception):
        task.result()


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
