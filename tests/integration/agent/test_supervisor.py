"""The supervisor with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from arcbox_agent import service_log
from arcbox_agent.cgroup import Cgroups
from arcbox_agent.service_record import Service, find_by_command, read_start_time
from arcbox_agent.service_unit import FIRST_DELAY_S
from arcbox_agent.supervisor import Supervisor


class Bench:
    """Makes supervisors one after the other, and ends what they leave."""

    def __init__(self, folder: Path, cgroup: str) -> None:
        self.folder = folder
        self.cgroup = cgroup
        self.made: list[Supervisor] = []
        self.new_agent()

    def new_agent(self) -> Supervisor:
        """Begin anew, as after the agent's end: nothing is stopped."""
        for each in self.made:
            each.close()
        self.made.append(Supervisor(Cgroups(self.cgroup), str(self.folder / "services")))
        return self.made[-1]

    def service(self, script: str, name: str = "s", prelude: str = "") -> Service:
        log = str(self.folder / "log" / f"{name}.log")
        env = {"PATH": os.environ["PATH"]}
        return Service(name, ["/bin/sh", "-c", script, name], env, log, prelude)

    def log(self, name: str = "s") -> str:
        return service_log.tail(str(self.folder / "log" / f"{name}.log"), 100)

    def record(self, name: str = "s") -> dict[str, object]:
        found: dict[str, object] = json.loads(
            (self.folder / "services" / f"{name}.json").read_text()
        )
        return found


@pytest.fixture(params=["cgroup", "none"])
async def bench(
    request: pytest.FixtureRequest, cgroup2: str, tmp_path: Path
) -> AsyncIterator[Bench]:
    if request.param == "cgroup" and not cgroup2:
        pytest.skip("no control groups here")
    bench = Bench(tmp_path, cgroup2 if request.param == "cgroup" else "")
    yield bench
    supervisor = bench.new_agent()
    supervisor.adopt()
    for path in (tmp_path / "services").glob("*.json"):
        await supervisor.stop(path.stem, grace_s=0)
    supervisor.close()
    if bench.cgroup:
        for group in Path(bench.cgroup, "arcbox").glob("service-*"):
            for pid in (group / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            await until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
            group.rmdir()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - files and processes have no event
            await asyncio.sleep(0.01)


async def test_a_service_runs_with_its_environment_and_log(bench: Bench) -> None:
    service = bench.service('echo "$0 $X $(ulimit -n)"; echo bad >&2; exec sleep 100')
    service.prelude = "ulimit -n 77; X=never"
    service.env["X"] = "yes"
    unit = bench.made[-1].start(service)
    await until(lambda: "bad" in bench.log())
    assert bench.log().splitlines()[-1] == "bad"
    assert "s never 77" in bench.log()
    assert os.getsid(unit.pid) == unit.pid
    if bench.cgroup:
        assert Path(f"/proc/{unit.pid}/cgroup").read_text().rstrip().endswith("/service-s")


async def test_start_is_idempotent(bench: Bench) -> None:
    supervisor = bench.made[-1]
    unit = supervisor.start(bench.service("exec sleep 100"))
    pid = unit.pid
    assert supervisor.start(bench.service("exec sleep 99")) is unit
    assert unit.pid == pid


async def test_what_dies_comes_back_later_each_time(bench: Bench) -> None:
    unit = bench.made[-1].start(bench.service("date +%s.%N; exit 3"))
    await until(lambda: unit.deaths == 3)
    assert unit.failure == "ended with status 3"
    assert unit.delay_s == FIRST_DELAY_S * 8
    first, second, third = (float(line) for line in bench.log().splitlines())
    assert second - first >= FIRST_DELAY_S
    assert third - second >= FIRST_DELAY_S * 2
    # Whoever asks for it need not wait for the restart.
    bench.made[-1].start(bench.service("exec sleep 100"))
    assert unit.pid


async def test_a_long_life_ends_the_delays(bench: Bench) -> None:
    unit = bench.made[-1].start(bench.service("exec sleep 100"))
    unit.delay_s = 5.0
    unit.began = time.monotonic() - 31
    os.kill(unit.pid, signal.SIGKILL)
    await until(lambda: unit.deaths)
    assert unit.failure == "was ended by signal 9 (Killed)"
    assert unit.delay_s == FIRST_DELAY_S * 2


async def test_a_program_that_is_missing_is_named(bench: Bench) -> None:
    service = bench.service("")
    service.argv = ["/no/such/program"]
    unit = bench.made[-1].start(service)
    await until(lambda: unit.deaths)
    assert unit.failure.startswith("could not be started: cannot run /no/such/program")


async def test_stop_is_final_and_only_for_the_main_process(bench: Bench) -> None:
    supervisor = bench.made[-1]
    unit = supervisor.start(bench.service("setsid sleep 100 & echo $!; exec sleep 100"))
    await until(bench.log)
    left = int(bench.log())
    try:
        pid = unit.pid
        await supervisor.stop("s")
        assert read_start_time(pid) == 0
        assert read_start_time(left) > 0
        assert supervisor.find("s") is None
        assert not list((bench.folder / "services").iterdir())
        await supervisor.stop("s")
    finally:
        os.kill(left, signal.SIGKILL)


async def test_the_stubborn_are_killed_after_the_grace(bench: Bench) -> None:
    supervisor = bench.made[-1]
    unit = supervisor.start(bench.service("trap '' TERM; echo; while :; do sleep 0.1; done"))
    await until((bench.folder / "log" / "s.log").read_text)
    await supervisor.stop("s", grace_s=0.2)
    assert unit.failure == "was ended by signal 9 (Killed)"


async def test_a_new_agent_takes_over_what_runs(bench: Bench) -> None:
    old = bench.made[-1].start(bench.service("exec sleep 100"))
    pid = old.pid
    supervisor = bench.new_agent()
    supervisor.adopt()
    unit = supervisor.find("s")
    assert unit is not None
    assert unit.pid == pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: unit.pid not in (0, pid))
    assert bench.record()["pid"] == unit.pid


async def test_a_new_agent_starts_what_has_died_meanwhile(bench: Bench) -> None:
    pid = bench.made[-1].start(bench.service("exec sleep 100")).pid
    supervisor = bench.new_agent()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead
    supervisor.adopt()
    unit = supervisor.find("s")
    assert unit is not None
    assert unit.pid not in (0, pid)


async def test_another_process_with_the_same_pid_is_not_taken_for_it(bench: Bench) -> None:
    pid = bench.made[-1].start(bench.service("exec sleep 100")).pid
    supervisor = bench.new_agent()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead
    path = bench.folder / "services" / "s.json"
    path.write_text(json.dumps(bench.record() | {"pid": os.getpid()}))
    supervisor.adopt()
    unit = supervisor.find("s")
    assert unit is not None
    assert unit.pid not in (0, os.getpid())


async def test_an_agent_that_died_before_it_could_record_the_pid(bench: Bench) -> None:
    if not bench.cgroup:
        pytest.skip("it is found by its control group")
    pid = bench.made[-1].start(bench.service("sleep 100; true")).pid
    await until(lambda: find_by_command([pid], ["/bin/sh", "-c", "sleep 100; true", "s"]))
    supervisor = bench.new_agent()
    path = bench.folder / "services" / "s.json"
    path.write_text(json.dumps(bench.record() | {"pid": 0, "start_time": 0}))
    supervisor.adopt()
    unit = supervisor.find("s")
    assert unit is not None
    assert unit.pid == pid


async def test_what_was_being_stopped_is_stopped_by_the_next_agent(bench: Bench) -> None:
    supervisor = bench.made[-1]
    unit = supervisor.start(bench.service("trap '' TERM; echo; while :; do sleep 0.1; done"))
    await until((bench.folder / "log" / "s.log").read_text)
    stopping = asyncio.ensure_future(supervisor.stop("s", grace_s=60))
    await until(lambda: bench.record()["wanted"] is False)
    stopping.cancel()
    with suppress(asyncio.CancelledError):
        await stopping
    pid = unit.pid
    supervisor = bench.new_agent()
    supervisor.adopt()
    os.kill(pid, signal.SIGKILL)
    found = supervisor.find("s")
    assert found is not None
    await until(lambda: not found.pid)
    await asyncio.sleep(FIRST_DELAY_S * 2)
    assert not found.pid


async def test_a_frozen_supervisor_starts_nothing(bench: Bench) -> None:
    supervisor = bench.made[-1]
    unit = supervisor.start(bench.service("exec sleep 100"))
    supervisor.freeze()
    os.kill(unit.pid, signal.SIGKILL)
    await until(lambda: not unit.pid)
    await asyncio.sleep(FIRST_DELAY_S * 2)
    assert not unit.pid


async def test_a_record_that_makes_no_sense_is_passed_over(bench: Bench) -> None:
    bench.made[-1].start(bench.service("exec sleep 100"))
    supervisor = bench.new_agent()
    (bench.folder / "services" / "a.json").write_text("{")
    (bench.folder / "services" / "b.json").write_text("[]")
    supervisor.adopt()
    assert supervisor.find("s") is not None
    assert supervisor.find("a") is None
    for name in "ab":
        (bench.folder / "services" / f"{name}.json").unlink()


def test_a_log_that_grew_too_long_begins_anew_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.log"
    fd = service_log.open_log(str(path))
    try:
        os.write(fd, b"first\n" + b"x" * service_log.MAX_BYTES + b"\nlast\n")
        assert service_log.rotate(str(path))
        os.write(fd, b"after\n")
        assert path.read_bytes() == b"after\n"
        kept = path.with_suffix(".log.1").read_bytes()
        assert kept.endswith(b"\nlast\n")
        assert len(kept) == service_log.MAX_BYTES
        assert not service_log.rotate(str(path))
    finally:
        os.close(fd)


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert service_log.tail(str(path), 3) == ""
    path.write_text("".join(f"line {n}\n" for n in range(5000)))
    assert service_log.tail(str(path), 2) == "line 4998\nline 4999"
    path.write_text("one\ntwo")
    assert service_log.tail(str(path), 9) == "one\ntwo"


def test_a_process_is_known_by_its_start() -> None:
    assert read_start_time(os.getpid()) > 0
    assert read_start_time(1 << 22) == 0
    command = Path(f"/proc/{os.getpid()}/cmdline").read_bytes().split(b"\0")[:-1]
    assert find_by_command([1 << 22, os.getpid()], [command[-1].decode()]) == os.getpid()
    assert find_by_command([os.getpid()], [sys.executable, "no"]) == 0
