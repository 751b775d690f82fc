"""Halt a running machine for a moment, so that something of it can be copied at one instant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arcboxd.machines.context import Running
from arcboxd.machines.undo import Undo


@asynccontextmanager
async def paused(running: Running) -> AsyncIterator[None]:
    """Halt a machine's processors for as long as the block takes, however it ends.

    The disks are settled. The sessions with the agent stay, and its clock is set afterwards.

    Raises:
        HypervisorError: The monitor does not answer.
    """
    async with Undo() as undo:
        undo.push_async_callback(_go_on, running)
        await running.vm.pause()
        yield


async def _go_on(running: Running) -> None:
    await running.vm.resume()
    await running.agent.sync_clock()
