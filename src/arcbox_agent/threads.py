"""Work that blocks, in a thread that ends with it.

Not `asyncio.to_thread`: its threads stay, and a process with threads cannot fork into a control
group.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def in_thread(function: Callable[[], _T], *, name: str) -> asyncio.Future[_T]:
    """Start a function in a thread of its own; the future has its result or its exception.

    Cancelling the future does not end the function.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def finish(result: Callable[[], None]) -> None:
        if not future.done():
            result()

    def work() -> None:
        try:
            value = function()
        except Exception as error:  # noqa: BLE001  the future carries it
            loop.call_soon_threadsafe(finish, lambda error=error: future.set_exception(error))
        else:
            loop.call_soon_threadsafe(finish, lambda: future.set_result(value))

    threading.Thread(target=work, name=name, daemon=True).start()
    return future
