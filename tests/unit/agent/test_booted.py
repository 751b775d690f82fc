"""WaitBooted: what is waited for, and what is said when it takes too long."""

from __future__ import annotations

import asyncio

import pytest

from arcbox_agent import booted
from arcbox_agent.cgroup import Cgroups
from arcboxd.errors import ArcboxError, TooLateError, UnsupportedError

NONE = Cgroups("")


class FakeInit:
    """Boots when told to."""

    def __init__(self) -> None:
        self.booted = asyncio.Event()
        self.breaks = False

    async def wait_booted(self) -> None:
        await self.booted.wait()

    async def pending(self) -> list[str]:
        if self.breaks:
            raise ArcboxError("`systemctl list-jobs` failed")
        return ["ssh.service (start, running)"]

    async def failed(self) -> list[str]:
        return ["cups.service"]


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> FakeInit:
    made = FakeInit()

    async def find(_cgroups: Cgroups) -> FakeInit:
        return made

    monkeypatch.setattr(booted, "find_init", find)
    return made


async def test_what_failed_is_named_once_it_has_booted(init: FakeInit) -> None:
    waiting = asyncio.ensure_future(booted.wait_booted(NONE, 5))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    init.booted.set()
    assert await waiting == ["cups.service"]


async def test_what_it_is_at_is_named_when_the_time_is_over(init: FakeInit) -> None:
    with pytest.raises(
        TooLateError, match=r"starting the system: ssh\.service \(start, running\)\."
    ):
        await booted.wait_booted(NONE, 0.01)
    init.breaks = True
    with pytest.raises(TooLateError, match=r"starting the system\.$"):
        await booted.wait_booted(NONE, 0.01)


async def test_of_another_init_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(_cgroups: Cgroups) -> FakeInit:
        raise UnsupportedError("Templates need systemd or OpenRC.")

    monkeypatch.setattr(booted, "find_init", find)
    assert await booted.wait_booted(NONE, 5) == []


async def test_an_init_that_does_not_show_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(_cgroups: Cgroups) -> FakeInit:
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(booted, "find_init", find)
    with pytest.raises(TooLateError):
        await booted.wait_booted(NONE, 0.01)
