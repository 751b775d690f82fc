"""Tasks with an owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine

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
