"""The inits whose systems can be settled: when they have booted, and how they hold services back.

Held are the services that must begin anew in each clone, when its identity is there: the SSH
server, for its keys, and systemd's journal, for the machine id in its files' names and the boot id
in its entries; and what would only keep a clone from its first command. No clone asks init to start
them, since that takes long under emulation.
"""

# pathlib is not imported: start-up takes long under emulation. Init's state has no events.
# ruff: noqa: ASYNC110, ASYNC240, PTH103, PTH110, PTH112, PTH115, PTH121, PTH208

from __future__ import annotations

import asyncio
import logging
import os
import stat
from typing import TYPE_CHECKING, Protocol

from arcbox_agent import files
from arcbox_agent.programs import run
from arcboxd.errors import ArcboxError, UnsupportedError

if TYPE_CHECKING:
    from arcbox_agent.cgroup import Cgroups

_POLL_S = 0.25
_LET_GO_S = 10.0
_FIND_S = 30.0  # for init to show what it is, once it is the distribution's
_BUNDLE = "/run/arcbox/"
_SYSTEMD = "/run/systemd/system"
_OPENRC = "/run/openrc"
_BOOTED = ("running", "degraded")
_JOURNAL = "systemd-journald.service"
_SERVERS = ("ssh.service", "sshd.service")
_TIMERS = "*.timer"
_UDEV = "systemd-udevd.service"
_CANNOT_BE_HELD = {"Transient": "yes", "CanStart": "no", "CanStop": "no"}
_UNIT = "arcbox-clone.service"
_UNIT_TEXT = """\
[Unit]
Description=Hold services until this machine has its identity
DefaultDependencies=no

[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sh -c 'read -r line <{fifo}'
"""
_HELD = {_UNIT, _JOURNAL, *_SERVERS}
_DROP_IN = "arcbox-clone.conf"  # a name that no drop-in in /etc may have: it would win
_DROP_IN_TEXT = f"[Unit]\nAfter={_UNIT}\n"
_EARLY_LEVELS = ("", "sysinit", "boot")

_log = logging.getLogger(__name__)


class Init(Protocol):
    """A booting or booted system."""

    async def wait_booted(self) -> None:
        """Wait until all that is started at boot has started, or failed to."""

    async def pending(self) -> list[str]:
        """Name what it is still starting."""

    async def failed(self) -> list[str]:
        """Name the services that were to start, and did not."""

    async def hold(self, fifo: str) -> list[str]:
        """Stop what must begin anew in each clone, to start once a line is written to `fifo`.

        Returns:
            The services that init does not start by itself then.

        Raises:
            ArcboxError: It did not work.
            OSError: Likewise.
        """


async def find_init(cgroups: Cgroups) -> Init:
    """Find out which init runs, waiting until it shows.

    Raises:
        UnsupportedError: One that cannot hold services.
    """
    loop = asyncio.get_running_loop()
    deadline = None
    while True:
        if os.path.isdir(_SYSTEMD):
            return Systemd(cgroups)
        if os.path.isdir(_OPENRC):
            return OpenRc(cgroups)
        if deadline is None and (program := _first_program()):
            deadline = loop.time() + (0 if program.startswith(_BUNDLE) else _FIND_S)
        if deadline is not None and loop.time() >= deadline:
            raise UnsupportedError("Templates need systemd or OpenRC.")
        await asyncio.sleep(_POLL_S)


def _first_program() -> str:
    """Say what process 1 runs; nothing while it is the initramfs, which has another root."""
    try:
        if os.path.samefile("/proc/1/root/", "/"):
            return os.readlink("/proc/1/exe")
    except OSError:
        _log.debug("process 1 cannot be seen")
    return ""


class Systemd:
    """systemd. Its jobs do the holding: a restarted unit's stop is not ordered, its start is.

    So units that are restarted, after a unit that waits for the FIFO, stop at once and start with
    that unit's end. The journal keeps its clients' streams, since it is restarted and not stopped
    and started (systemd-journald.service(8)), and its sockets keep what is sent meanwhile.

    Source: systemd src/core/job.c (`job_compare`, `job_finish_and_invalidate`).
    """

    def __init__(self, cgroups: Cgroups, folder: str = _SYSTEMD) -> None:
        """Put units into this folder, which is gone with the next boot."""
        self._cgroups = cgroups
        self._folder = folder

    async def wait_booted(self) -> None:
        """Wait for `running`, or for `degraded`, if a unit failed, and for what a clone begins."""
        while True:
            # It answers at once while process 1 cannot be asked yet.
            _, state = await run("systemctl", "is-system-running", "--wait", cgroups=self._cgroups)
            if state.strip() in _BOOTED:
                break
            await asyncio.sleep(_POLL_S)
        while not _HELD.isdisjoint(unit for unit, _, _ in await self._jobs()):
            await asyncio.sleep(_POLL_S)

    async def pending(self) -> list[str]:
        """Name the jobs."""
        return [f"{unit} ({kind}, {state})" for unit, kind, state in await self._jobs()]

    async def failed(self) -> list[str]:
        """Name the units in that state."""
        options = ("--failed", "--no-legend", "--plain", "--full")
        return parse_failed(await self._systemctl("list-units", *options))

    async def hold(self, fifo: str) -> list[str]:
        """Hold the journal, timers and an SSH server that runs.

        Timers are set anew when the clock is, which each clone's is. What a socket starts begins
        with its first client: an SSH server, and udev, which else wakes to end idle workers.
        """
        units = await self._active(_JOURNAL, *_SERVERS, _TIMERS)
        _make_fifo(fifo)
        files.write(f"{self._folder}/{_UNIT}", _UNIT_TEXT.format(fifo=fifo))
        for unit in units:
            os.makedirs(f"{self._folder}/{unit}.d", 0o755, exist_ok=True)
            files.write(f"{self._folder}/{unit}.d/{_DROP_IN}", _DROP_IN_TEXT)
        await self._systemctl("daemon-reload")
        try:
            await self._systemctl("start", "--no-block", _UNIT)
            await self._wait_for_jobs({_UNIT: "running"})
            # Else what only requires the journal, such as its flush to disk, is restarted too.
            options = ("--no-block", "--job-mode=ignore-requirements")
            await self._systemctl("restart", *options, *units)
            await self._wait_for_jobs(dict.fromkeys(units, "waiting") | {_UNIT: "running"})
            if await self._active(_UDEV):
                await self._systemctl("stop", _UDEV)
        except BaseException:
            async with asyncio.timeout(_LET_GO_S):
                await self._systemctl("stop", _UNIT)
            raise
        return []

    async def _wait_for_jobs(self, wanted: dict[str, str]) -> None:
        """Wait until these start jobs are in these states, which for the held ones is for good."""
        while True:
            found = {unit: state for unit, kind, state in await self._jobs() if kind == "start"}
            if wanted.items() <= found.items():
                return
            await asyncio.sleep(_POLL_S)

    async def _jobs(self) -> list[tuple[str, str, str]]:
        text = await self._systemctl("list-jobs", "--no-legend", "--plain", "--full")
        return parse_jobs(text)

    async def _active(self, *units: str) -> list[str]:
        text = await self._systemctl(
            "show", f"--property=Id,ActiveState,{','.join(_CANNOT_BE_HELD)}", *units
        )
        return parse_active(text)

    async def _systemctl(self, *arguments: str) -> str:
        code, text = await run("systemctl", *arguments, cgroups=self._cgroups)
        if code != 0:
            raise ArcboxError(f"`systemctl {arguments[0]}` failed: {text.strip()[:300]}.")
        return text


def parse_jobs(text: str) -> list[tuple[str, str, str]]:
    """Parse `systemctl list-jobs` into unit, kind and state of each."""
    lines = [line.split() for line in text.splitlines()]
    return [(line[1], line[2], line[3]) for line in lines if len(line) == 4 and line[0].isdigit()]  # noqa: PLR2004  the columns


def parse_failed(text: str) -> list[str]:
    """Parse `systemctl list-units` into the units' names."""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def parse_active(text: str) -> list[str]:
    """Parse `systemctl show` into the names of units that run, each once.

    Without those that cannot be held: a transient unit is gone with its stop.
    """
    found = []
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        refuses = any(values.get(name) == no for name, no in _CANNOT_BE_HELD.items())
        if values.get("ActiveState") == "active" and not refuses and values["Id"] not in found:
            found.append(values["Id"])
    return found


class OpenRc:
    """OpenRC: the agent starts the SSH server of a clone itself, and there is no journal."""

    def __init__(self, cgroups: Cgroups, folder: str = _OPENRC) -> None:
        """Look at the state that it keeps in this folder."""
        self._cgroups = cgroups
        self._folder = folder

    async def wait_booted(self) -> None:
        """Wait until a runlevel beyond `boot` is reached.

        Source: openrc src/rc/rc.c (`RC_STARTING`), src/librc/librc.h (`softlevel`).
        """
        while self._is_starting():
            await asyncio.sleep(_POLL_S)

    def _is_starting(self) -> bool:
        level = files.read(f"{self._folder}/softlevel").strip()
        return level in _EARLY_LEVELS or os.path.exists(f"{self._folder}/rc.starting")

    async def pending(self) -> list[str]:
        """Name the services that are being started."""
        return self._services("starting")

    async def failed(self) -> list[str]:
        """Name the services whose start failed."""
        return self._services("failed")

    def _services(self, state: str) -> list[str]:
        try:
            return sorted(os.listdir(f"{self._folder}/{state}"))
        except OSError:
            return []

    async def hold(self, fifo: str) -> list[str]:  # noqa: ARG002  nothing waits for it here
        """Stop an SSH server that runs."""
        code, _ = await run("rc-service", "sshd", "status", cgroups=self._cgroups)
        if code != 0:
            return []
        code, text = await run("rc-service", "sshd", "stop", cgroups=self._cgroups)
        if code != 0:
            raise ArcboxError(f"`rc-service sshd stop` failed: {text.strip()[:300]}.")
        return ["sshd"]


def _make_fifo(path: str) -> None:
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            raise
