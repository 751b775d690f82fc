"""Keeps services running: starts, watches, restarts and stops them.

They outlive the agent: their output goes to files, and their records in /run let the next agent
take over what runs, its child or not. Stopped is the main process only: what it
has started, such as containers' shims, lives on in the same control group.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from arcbox_agent import child, service_log
from arcbox_agent.service_record import (
    Record,
    Records,
    Service,
    find_by_command,
    read_start_time,
)
from arcbox_agent.service_unit import FIRST_DELAY_S, Unit, make_command

if TYPE_CHECKING:
    from arcbox_agent.cgroup import Cgroup, Cgroups

_MAX_DELAY_S = 10.0
_GOOD_LIFE_S = 30.0  # after it, earlier failures are forgotten
_ROTATE_S = 20.0
_KILL_S = 5.0

_log = logging.getLogger(__name__)


class Supervisor:
    """All services of this machine."""

    def __init__(self, cgroups: Cgroups, folder: str) -> None:
        """Keep records in this folder. Nothing is started or taken over yet."""
        self._cgroups = cgroups
        self._records = Records(folder)
        self._units: dict[str, Unit] = {}
        self._frozen = False
        self._rotation: asyncio.TimerHandle | None = None

    def adopt(self) -> None:
        """Take over what an agent before this one started, and start again what died meanwhile."""
        for record in self._records.load():
            service = record.service
            if service.name in self._units:
                continue
            unit = Unit(service)
            self._units[service.name] = unit
            unit.wanted = record.wanted
            pid = record.pid if record.is_running else self._find_unrecorded(service)
            if pid and self._watch(unit, pid):
                _log.info("took over %s, process %d", service.name, pid)
                if not unit.wanted:
                    unit.signal(signal.SIGTERM)
            elif unit.wanted:
                unit.failure = "ended while the agent did not run"
                self._launch(unit)
        self._begin_rotation()

    def find(self, name: str) -> Unit | None:
        """Find a service that was started or taken over."""
        return self._units.get(name)

    def start(self, service: Service) -> Unit:
        """See that a service runs, from now on until `stop`; at once, if it waits for its restart.

        Idempotent. A service that runs already goes on as it is: to change it, stop it first.
        """
        unit = self._units.get(service.name)
        if unit is None:
            unit = self._units[service.name] = Unit(service)
        unit.wanted = True  # also one that is just being stopped: it starts again then
        if not unit.pid:
            unit.cancel_restart()
            unit.service = service
            unit.delay_s = FIRST_DELAY_S
            self._launch(unit)
            self._begin_rotation()
        return unit

    async def stop(self, name: str, *, grace_s: float = 10.0) -> None:
        """Stop a service for good: SIGTERM, and SIGKILL after the grace, to its main process alone.

        Idempotent. If it is cancelled, the service may still run, but will not be started again.
        """
        unit = self._units.get(name)
        if unit is None:
            return
        unit.wanted = False
        unit.cancel_restart()
        if unit.pid:
            self._save(unit)
            unit.signal(signal.SIGTERM)
            if not await _within(unit.ended, grace_s):
                _log.warning("%s did not end within %g s", name, grace_s)
                unit.signal(signal.SIGKILL)
                await _within(unit.ended, _KILL_S)
        if not unit.wanted and not unit.pid and self._units.get(name) is unit:
            del self._units[name]
            self._records.forget(name)
            if (group := self._cgroups.of_service(name)) is not None and not group.remove():
                _log.info("%s has left processes behind", name)

    def freeze(self) -> None:
        """Start nothing any more: the machine goes down."""
        self._frozen = True
        for unit in self._units.values():
            unit.cancel_restart()

    def close(self) -> None:
        """Let go of everything; the services go on."""
        self.freeze()
        for unit in self._units.values():
            self._release(unit)
        self._units.clear()
        if self._rotation is not None:
            self._rotation.cancel()
            self._rotation = None

    # Processes

    def _find_unrecorded(self, service: Service) -> int:
        """Find the process of an agent that died before it could record it."""
        group = self._cgroups.of_service(service.name)
        if group is None:
            return 0
        group.release_handle()
        return find_by_command(group.pids(), service.argv)

    def _launch(self, unit: Unit) -> None:
        unit.timer = None
        if self._frozen:
            return
        group = self._cgroups.of_service(unit.service.name)
        try:
            # First without a pid: an agent that dies now is followed by one that searches.
            self._records.save(Record(unit.service, 0, 0, wanted=True))
            pid = self._run(unit, group)
        except OSError as error:
            unit.failure = f"could not be started: {error}"
            self._retry(unit)
            return
        finally:
            if group is not None:
                group.release_handle()
        self._watch(unit, pid)
        _log.info("started %s, process %d", unit.service.name, pid)

    def _run(self, unit: Unit, group: Cgroup | None) -> int:
        service_log.rotate(unit.service.log)
        unit.command = make_command(unit.service)
        output = service_log.open_log(unit.service.log)
        try:
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            try:
                stdio = (null, output, output)
                pid, unit.failure_fd = child.start_with(unit.command, group, stdio)
            finally:
                os.close(null)
        finally:
            os.close(output)
        return pid

    def _watch(self, unit: Unit, pid: int) -> bool:
        """Watch a process until it ends; False when it has ended already and is no child."""
        start_time = read_start_time(pid)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        unit.pid, unit.pidfd = pid, pidfd
        unit.began = time.monotonic()
        unit.ended.clear()
        asyncio.get_running_loop().add_reader(pidfd, self._on_end, unit)
        self._save(unit, start_time)
        return True

    def _save(self, unit: Unit, start_time: int | None = None) -> None:
        if start_time is None:
            start_time = read_start_time(unit.pid)
        try:
            self._records.save(Record(unit.service, unit.pid, start_time, wanted=unit.wanted))
        except OSError as error:
            _log.warning("cannot record that %s runs: %s", unit.service.name, error)

    def _on_end(self, unit: Unit) -> None:
        unit.failure = unit.reap()
        self._release(unit)
        if time.monotonic() - unit.began >= _GOOD_LIFE_S:
            unit.delay_s = FIRST_DELAY_S
        if unit.wanted and not self._frozen:
            self._retry(unit)
        else:
            _log.info("%s %s", unit.service.name, unit.failure)

    def _release(self, unit: Unit) -> None:
        if unit.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(unit.pidfd)
            os.close(unit.pidfd)
            unit.pidfd = -1
        if unit.failure_fd >= 0:
            os.close(unit.failure_fd)
            unit.failure_fd = -1
        unit.pid = 0
        unit.ended.set()

    def _retry(self, unit: Unit) -> None:
        unit.deaths += 1
        _log.warning("%s %s; again in %g s", unit.service.name, unit.failure, unit.delay_s)
        loop = asyncio.get_running_loop()
        unit.timer = loop.call_later(unit.delay_s, self._launch, unit)
        unit.delay_s = min(unit.delay_s * 2, _MAX_DELAY_S)

    # Logs

    def _begin_rotation(self) -> None:
        if self._units and self._rotation is None:
            loop = asyncio.get_running_loop()
            self._rotation = loop.call_later(_ROTATE_S, self._rotate)

    def _rotate(self) -> None:
        self._rotation = None
        for unit in self._units.values():
            service_log.rotate(unit.service.log)
        self._begin_rotation()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; False when the time is over."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
