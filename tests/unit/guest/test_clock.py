"""How the host sets a guest's clock, over ways of any length."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcboxd.errors import LinkError
from arcboxd.guest import link as link_module
from arcboxd.guest.link import AgentLink

MS = 1_000_000
HOUR = 3_600_000 * MS


class Clocks:
    """The host's clock, and a guest's behind a way that takes its time; both in nanoseconds."""

    def __init__(self, off_ns: int, ways_ms: list[tuple[int, int]]) -> None:
        self.now_ns = 1_800_000_000_000 * MS
        self.off_ns = off_ns
        self.settings = 0
        self.exchanges = 0
        self.aborted = False
        self._ways = ways_ms

    # As `time`

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    # As the link's peer, and as a stream to the guest's clock

    def start(self, target: str) -> Clocks:
        assert target == "clock"
        return self

    async def write(self, data: bytes) -> None:
        there, _ = self._ways[min(self.exchanges, len(self._ways) - 1)]
        self.now_ns += there * MS
        wanted = int.from_bytes(data, "big", signed=True)
        if wanted > 0 and abs(self.now_ns + self.off_ns - wanted) > 10 * MS:
            self.off_ns = wanted - self.now_ns
            self.settings += 1

    async def read(self, limit: int) -> bytes:
        assert limit == 8
        answer = (self.now_ns + self.off_ns).to_bytes(8, "big", signed=True)
        _, back = self._ways[min(self.exchanges, len(self._ways) - 1)]
        self.now_ns += back * MS
        self.exchanges += 1
        return answer

    def abort(self, reason: str) -> None:
        self.aborted = True


async def sync(clocks: Clocks) -> Clocks:
    link = AgentLink("dev", Path("/l"), Path("/a"), lambda: None, lambda: None)  # type: ignore[arg-type,return-value]
    link._peer = clocks  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_module, "time", clocks)
        await link.sync_clock()
    assert clocks.aborted
    return clocks


async def test_a_clock_that_is_right_is_left_alone() -> None:
    clocks = await sync(Clocks(5 * MS, [(2, 2)]))
    assert (clocks.settings, clocks.off_ns) == (0, 5 * MS)


@pytest.mark.parametrize("off_ns", [HOUR, -HOUR, 100 * MS])
async def test_a_clock_that_is_off_is_set_once(off_ns: int) -> None:
    clocks = await sync(Clocks(off_ns, [(90, 30), (3, 3)]))  # a clone's first exchange is slow
    assert clocks.settings == 1
    assert abs(clocks.off_ns) <= 3 * MS


async def test_a_way_that_is_always_slow_is_allowed_for() -> None:
    clocks = await sync(Clocks(HOUR, [(40, 40)]))
    assert abs(clocks.off_ns) <= 10 * MS


async def test_a_slow_exchange_does_not_spoil_a_quick_one() -> None:
    clocks = await sync(Clocks(HOUR, [(9, 9), (100, 100), (4, 4)]))
    assert abs(clocks.off_ns) <= 10 * MS


@given(
    off_ns=st.integers(-HOUR, HOUR),
    ways=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=8),
)
async def test_the_error_is_never_longer_than_the_longest_way(
    off_ns: int, ways: list[tuple[int, int]]
) -> None:
    clocks = await sync(Clocks(off_ns, ways))
    assert abs(clocks.off_ns) <= max(10, *(sum(way) for way in ways)) * MS
    assert clocks.exchanges <= 6


async def test_an_agent_that_knows_no_clock_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    class Refusing(Clocks):
        async def read(self, limit: int) -> bytes:
            raise LinkError("the agent knows no target 'clock'")

    await sync(Refusing(HOUR, [(1, 1)]))
    assert "knows no target" in caplog.text
