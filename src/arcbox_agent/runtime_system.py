"""Prepares the guest for containers, and looks for a Docker engine of its own.

`RuntimeSystem` does it; `NoRuntimeSystem` leaves the system alone, for an agent that is run on a
host to be tried out.
"""

# pathlib is not imported and imports come late: start-up takes long under emulation. Neither init's
# state nor a disk that appears has an event that is cheaper than a look.
# ruff: noqa: ASYNC110, ASYNC240, PLC0415, PTH103, PTH110, PTH112, PTH121, PTH208, PTH211

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from arcbox_agent import files
from arcbox_agent.child import DEFAULT_PATH
from arcbox_agent.users import read_groups
from arcboxd.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.cgroup import Cgroups

_POLL_S = 0.1
_BOOT_S = 180.0
_START_S = 120.0
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_SYSTEMD, _OPENRC = "/run/systemd/system", "/run/openrc"
_UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_BASIC_TARGET_REACHED = ("starting", "running", "degraded", "maintenance", "stopping")
_FIRST_GID, _LAST_GID = 100, 999

_log = logging.getLogger(__name__)


class RuntimeSystem:
    """The machine that the agent runs in."""

    def __init__(self, cgroups: Cgroups) -> None:
        """Run programs in these groups."""
        self._cgroups = cgroups
        self._booted = False

    def mount_bundle(self, serial: str, target: str) -> bool:
        """Mount a disk with programs; False when the machine has no such disk.

        Raises:
            OSError: The kernel refused.
        """
        device = find_disk("/sys/block", serial)
        if not device:
            return False
        from arcbox_agent.syscalls import mount

        os.makedirs(target, 0o755, exist_ok=True)
        # With set-user-id programs nobody would be helped: all of it is for root.
        mount(device, target, "erofs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
        return True

    async def wait_for_root(self) -> None:
        """Wait until process 1 has the distribution's root: then the modules are there."""
        await _wait_until(_has_real_root)

    def prepare(self, modprobe: str) -> None:
        """Make kernel and mounts as container engines need them. What fails is logged."""
        from arcbox_agent import kernel_modules

        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("set how modules are loaded", lambda: kernel_modules.provide_autoloader(modprobe)),
            ("mount the control groups", _mount_cgroups),
            ("share the mounts", _share_mounts),
            # So that a port can be published at an address of the host's, which listens there.
            (
                "allow addresses of the host's",
                lambda: kernel_modules.set_sysctl("/proc/sys/net/ipv4/ip_nonlocal_bind", "1"),
            ),
        )
        for what, step in steps:
            try:
                step()
            except OSError as error:
                _log.warning("could not %s: %s", what, error)

    async def load_modules(self, modprobe: str) -> None:
        """Load what containers and their networks need of the kernel. What fails is logged."""
        from arcbox_agent.kernel_modules import load_modules

        await load_modules(modprobe, self._cgroups)

    def forward_packets(self) -> None:
        """Let packets pass from pods to others, and through the rules on bridges."""
        from arcbox_agent import kernel_modules

        for path in ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables"):
            try:
                kernel_modules.set_sysctl(f"/proc/sys/net/{path}", "1")
            except OSError as error:
                _log.warning("could not set net/%s: %s", path, error)

    async def wait_booted(self) -> None:
        """Wait until init has set the system up, so that a firewall's rules come before Docker's.

        Not for all services. After three minutes it goes on all the same.
        """
        from arcbox_agent.inits import OpenRc, find_init

        if self._booted:
            return
        try:
            async with asyncio.timeout(_BOOT_S):
                init = await find_init(self._cgroups)
                if isinstance(init, OpenRc):
                    await init.wait_booted()
                else:
                    await self._wait_for_basic_target()
        except UnsupportedError:
            _log.info("this init does not say when the system is set up")
        except (OSError, TimeoutError) as error:
            _log.warning("Docker starts though the system may be booting still: %s", error)
        self._booted = True

    async def _wait_for_basic_target(self) -> None:
        """Wait for basic.target: see `is-system-running` in systemctl(1)."""
        while True:
            _, state = await self.run("systemctl", "is-system-running")
            if state.strip() in _BASIC_TARGET_REACHED:
                return
            await asyncio.sleep(_POLL_S * 2)

    async def start_own_docker(self) -> str | None:
        """Let init start the distribution's Docker engine.

        Returns:
            None when there is none; why it did not start; or nothing when it did.
        """
        if not has_program("dockerd"):
            return None
        await self.wait_booted()  # until then it does not show which init this is
        if os.path.isdir(_SYSTEMD):
            units = [f"{folder}/docker.service" for folder in _UNIT_FOLDERS]
            command = ("systemctl", "start", "docker.service")
            if not any(os.path.exists(unit) for unit in units):
                return None
        elif os.path.isdir(_OPENRC) and os.path.exists("/etc/init.d/docker"):
            command = ("rc-service", "docker", "start")
        else:
            return None
        from arcbox_agent.programs import run

        try:
            async with asyncio.timeout(_START_S):
                code, text = await run(*command, cgroups=self._cgroups)
        except TimeoutError:
            return f"`{' '.join(command)}` took longer than {_START_S:g} s"
        return "" if code == 0 else f"`{' '.join(command)}` failed: {text.strip()[:500]}"

    async def run(self, *argv: str) -> tuple[int, str]:
        """Run a program to its end; return its exit code and output."""
        from arcbox_agent.programs import run

        return await run(*argv, cgroups=self._cgroups)


class NoRuntimeSystem(RuntimeSystem):
    """Changes nothing, and has neither disk nor engine."""

    def mount_bundle(self, serial: str, target: str) -> bool:  # noqa: ARG002  nothing is mounted
        """Find no disk."""
        return False

    async def wait_for_root(self) -> None:
        """Go on."""

    def prepare(self, modprobe: str) -> None:
        """Leave the system as it is."""

    async def load_modules(self, modprobe: str) -> None:
        """Load nothing."""

    def forward_packets(self) -> None:
        """Leave the kernel as it is."""

    async def wait_booted(self) -> None:
        """Go on."""

    async def start_own_docker(self) -> str | None:
        """Find none."""
        return None


def find_disk(folder: str, serial: str) -> str:
    """Find the block device of a serial number in /sys/block; empty when there is none."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return ""
    for name in names:
        # A disk that is just being plugged in or out may have no such file, or refuse to be read.
        try:
            if name.startswith("vd") and files.read(f"{folder}/{name}/serial").strip() == serial:
                return f"/dev/{name}"
        except OSError:
            continue
    return ""


def has_program(name: str) -> bool:
    """Say whether the distribution has a program."""
    return any(os.access(f"{folder}/{name}", os.X_OK) for folder in DEFAULT_PATH.split(":"))


def prepare_files(root: str, user: str) -> None:
    """Make the directory of the socket, and the group whose members may use it.

    Args:
        root: Below which the system's files lie.
        user: Who shall be a member; empty or root: nobody.

    Raises:
        OSError: A file cannot be written.
    """
    runs = f"{root}/var/run"
    if not os.path.lexists(runs):
        os.makedirs(f"{root}/var", 0o755, exist_ok=True)
        os.symlink("../run", runs)
    elif os.path.realpath(runs) != os.path.realpath(f"{root}/run"):
        _log.info("/var/run is not /run in this system; Docker's socket is in the former")
    ensure_group(root, "docker", user)


def ensure_group(root: str, name: str, member: str) -> None:
    """See that a group of the system's exists and that a user is in it. Idempotent.

    Raises:
        OSError: A file cannot be written.
    """
    path = f"{root}/etc/group"
    groups = read_groups(root)
    lines = files.read(path).splitlines()
    if all(group.name != name for group in groups):
        taken = {group.gid for group in groups}
        gid = next(n for n in range(_LAST_GID, _FIRST_GID, -1) if n not in taken)
        lines.append(f"{name}:x:{gid}:")
        shadow = f"{root}/etc/gshadow"
        if os.path.exists(shadow):
            files.write(shadow, "\n".join([*files.read(shadow).splitlines(), f"{name}:!::"]) + "\n")
    if member and member != "root":
        lines = [_with_member(line, name, member) for line in lines]
    files.write(path, "\n".join(lines) + "\n")


def _with_member(line: str, group: str, member: str) -> str:
    fields = line.split(":")
    if len(fields) == 4 and fields[0] == group:  # noqa: PLR2004  group(5)
        members = [each for each in fields[3].split(",") if each]
        if member not in members:
            fields[3] = ",".join([*members, member])
    return ":".join(fields)


async def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(_POLL_S)


def _has_real_root() -> bool:
    try:
        return os.path.samefile("/proc/1/root/", "/")
    except OSError:
        return False


def _mount_cgroups() -> None:
    """Mount the hierarchy where neither init nor a service does it."""
    if not os.path.ismount("/sys/fs/cgroup"):
        from arcbox_agent.syscalls import mount

        mount("cgroup2", "/sys/fs/cgroup", "cgroup2")


def _share_mounts() -> None:
    """Let what is mounted later show in containers, as systemd does at boot."""
    if not is_shared(files.read("/proc/self/mountinfo")):
        from arcbox_agent.syscalls import mount

        ms_rec, ms_shared = 16384, 1 << 20
        mount("none", "/", "", ms_rec | ms_shared)


def is_shared(mountinfo: str) -> bool:
    """Say whether the root mount is shared, by /proc/self/mountinfo. See proc(5)."""
    shared = False
    for line in mountinfo.splitlines():
        fields = line.split(" - ")[0].split()
        if len(fields) > 5 and fields[4] == "/":  # noqa: PLR2004  what is before the optional ones
            shared = any(field.startswith("shared:") for field in fields[6:])
    return shared
