from __future__ import annotations

import asyncio

import pytest

from arcboxd.machines.shared import Shared


async def test_work_is_done_once_for_all_who_ask() -> None:
    shared: Shared[int] = Shared()
    begun, go = [0], asyncio.Event()

    async def work() -> int:
        begun[0] += 1
        await go.wait()
        return begun[0]

    waiting = [asyncio.ensure_future(shared.join("a", work)) for _ in range(20)]
    other = asyncio.ensure_future(shared.join("b", work))
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    assert waiting[0].cancelled()
    go.set()
    assert await asyncio.gather(*waiting[1:]) == [2] * 19
    assert await other == 2
    assert await shared.join("a", work) == 3, "what is over is done anew"


async def test_an_error_is_told_to_all_and_forgotten() -> None:
    shared: Shared[int] = Shared()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(
        *(shared.join("a", fail) for _ in range(3)), return_exceptions=True
    )
    assert [str(r) for r in results] == ["no"] * 3

    async def succeed() -> int:
        return 7

    assert await shared.join("a", succeed) == 7


async def test_nobody_waits_for_ever_when_it_is_closed() -> None:
    shared: Shared[None] = Shared()
    waiting = asyncio.ensure_future(shared.join("a", lambda: asyncio.sleep(3600)))
    await asyncio.sleep(0)
    await shared.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
