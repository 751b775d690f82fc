"""WaitBooted: waits until init has started all that it starts at boot."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from arcbox_agent.inits import find_init
from arcboxd.errors import ArcboxError, TooLateError, UnsupportedError

if TYPE_CHECKING:
    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.inits import Init

_MAX_WAIT_S = 3600.0
_NAMING_S = 10.0
_MAX_NAMED = 8

_log = logging.getLogger(__name__)


async def wait_booted(cgroups: Cgroups, timeout_s: float) -> list[str]:
    """Wait; return the services that were to start and did not.

    Of an init that is not known, as of none, it is only known that it has begun.

    Raises:
        TooLateError: The time is over; an hour is the most there is.
    """
    init: Init | None = None
    try:
        async with asyncio.timeout(min(timeout_s, _MAX_WAIT_S)):
            try:
                init = await find_init(cgroups)
            except UnsupportedError:
                return []
            await init.wait_booted()
            return await init.failed()
    except TimeoutError as error:
        doing = await _pending(init) if init else []
        what = f": {', '.join(doing[:_MAX_NAMED])}" if doing else ""
        raise TooLateError(f"Init is still starting the system{what}.") from error


async def _pending(init: Init) -> list[str]:
    try:
        async with asyncio.timeout(_NAMING_S):
            return await init.pending()
    except (ArcboxError, OSError, TimeoutError) as error:
        _log.debug("what init is starting is unknown: %s", error)
        return []
