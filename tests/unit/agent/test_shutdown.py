"""The order in which a guest ends."""

from __future__ import annotations

import signal

import pytest

from arcbox_agent.shutdown import DEFAULT_GRACE_S, shut_down


class FakeSystem:
    """A machine with a clock of its own and processes that end when it suits them."""

    def __init__(self, *, init: bool, dies_of: int, after_s: float = 0.0) -> None:
        self.events: list[str] = []
        self.now = 0.0
        self._init = init
        self._dies_of = dies_of
        self._after_s = after_s
        self._signalled_at: float | None = None

    def ask_init(self) -> bool:
        self.events.append("ask")
        return self._init

    def signal_all(self, number: int) -> None:
        self.events.append(f"{signal.Signals(number).name} at {self.now:.0f}")
        if number == self._dies_of:
            self._signalled_at = self.now

    def others_alive(self) -> bool:
        return self._signalled_at is None or self.now < self._signalled_at + self._after_s

    def settle_disks(self) -> None:
        self.events.append("settle")

    def power_off(self) -> None:
        self.events.append("off")

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_without_init_everything_ends_at_once_when_it_can() -> None:
    system = FakeSystem(init=False, dies_of=signal.SIGTERM)
    await shut_down(system, 10)
    assert system.events == ["ask", "SIGTERM at 0", "settle", "off"]
    assert system.now < 1


async def test_without_init_the_stubborn_are_killed_after_the_grace() -> None:
    system = FakeSystem(init=False, dies_of=signal.SIGKILL)
    await shut_down(system, 10)
    assert system.events == ["ask", "SIGTERM at 0", "SIGKILL at 10", "settle", "off"]


async def test_those_who_need_a_while_get_it() -> None:
    system = FakeSystem(init=False, dies_of=signal.SIGTERM, after_s=6)
    await shut_down(system, 10)
    assert "SIGKILL" not in " ".join(system.events)
    assert 6 < system.now < 7


async def test_an_init_that_hangs_is_overruled_after_the_grace() -> None:
    system = FakeSystem(init=True, dies_of=signal.SIGKILL)
    await shut_down(system, 10)
    assert system.events == ["ask", "SIGTERM at 10", "SIGKILL at 13", "settle", "off"]


async def test_even_the_unkillable_do_not_keep_the_machine_on() -> None:
    system = FakeSystem(init=False, dies_of=0)
    await shut_down(system, 1)
    assert system.events[-1] == "off"


@pytest.mark.parametrize("grace", [0])
async def test_no_grace_means_the_usual_one(grace: float) -> None:
    system = FakeSystem(init=False, dies_of=signal.SIGKILL)
    await shut_down(system, grace)
    assert f"SIGKILL at {DEFAULT_GRACE_S:.0f}" in system.events
