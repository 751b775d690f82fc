"""The kernel's state that the agent changes: clock, hostname, entropy, network, filesystems.

`Kernel` does it; `NoKernel` pretends to, for an agent that is run on a host to be tried out.
"""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH123

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.settle import System
    from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


class Kernel:
    """The running kernel. Every method raises OSError when it refuses."""

    def set_clock(self, unix_nanos: int) -> None:
        """Set the wall clock."""
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_nanos)

    def set_hostname(self, name: str) -> None:
        """Set the hostname, unless it is that already."""
        import socket

        if socket.gethostname() != name:
            socket.sethostname(name)

    def add_entropy(self, data: bytes) -> None:
        """Mix bytes into the random generator, credit them, and make it reseed at once.

        A clone shares its generator's state with its template until this is done.

        Source: random(4); include/uapi/linux/random.h.
        """
        import struct

        fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        try:
            pool = struct.pack("=ii", len(data) * 8, len(data)) + data
            fcntl.ioctl(fd, _RNDADDENTROPY, pool)
            fcntl.ioctl(fd, _RNDRESEEDCRNG)
        finally:
            os.close(fd)

    def go_first(self, *, wanted: bool, pid: int = 0) -> None:
        """Run before all other processes whenever there is something to do, or as they do.

        Not so what is forked from now on. Source: sched(7), SCHED_FIFO, SCHED_RESET_ON_FORK.

        Args:
            wanted: Whether to do so from now on.
            pid: Which process; 0 for the agent.
        """
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK if wanted else os.SCHED_OTHER
        os.sched_setscheduler(pid, policy, os.sched_param(int(wanted)))

    def bind(self, source: str, target: str) -> None:
        """Let a file show in another's place."""
        from arcbox_agent.syscalls import bind

        bind(source, target)

    async def configure_network(
        self, address: str, gateway: str, mac: str, *, only_mac: bool = False
    ) -> None:
        """Give the first network card its addresses and the machine its way out."""
        from arcbox_agent.network import configure

        await configure(address, gateway, mac, only_mac=only_mac)

    def has_disk(self, name: str) -> bool:
        """Tell whether there is a disk that fstab(5) would call so."""
        from arcbox_agent.fstab import has_disk

        return has_disk(name)

    def grow_root(self) -> None:
        """Grow the root filesystem to its device. Blocks: for a thread."""
        from arcbox_agent.disk import grow_root

        grow_root()

    async def mount_share(self, request: guest_pb2.MountRequest, cgroups: Cgroups) -> None:
        """Mount a directory of the host. Raises the errors of `shares.mount`."""
        from arcbox_agent.shares import mount

        await mount(request, cgroups)

    async def unmount_share(self, request: guest_pb2.UnmountRequest) -> None:
        """Unmount it. Raises the errors of `shares.unmount`."""
        from arcbox_agent.shares import unmount

        await unmount(request)

    async def shut_down(self, grace_s: float, *, restart: bool = False) -> None:
        """End all processes in order and power off, or begin anew."""
        from arcbox_agent.shutdown import LinuxSystem, shut_down

        await shut_down(LinuxSystem(restart=restart), grace_s)

    def system(self, cgroups: Cgroups) -> System:
        """Give what Settle brings to rest."""
        from arcbox_agent.settle import System

        return System(cgroups)

    def reload_sshd(self) -> None:
        """Make a running SSH server read its keys again."""
        import signal

        try:
            with open("/run/sshd.pid", encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/comm", encoding="ascii") as file:
                if file.read().strip() == "sshd":
                    os.kill(pid, signal.SIGHUP)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            pass


class NoKernel(Kernel):
    """Changes nothing."""

    def set_clock(self, unix_nanos: int) -> None:
        """Leave the clock."""

    def set_hostname(self, name: str) -> None:
        """Leave the hostname."""

    def add_entropy(self, data: bytes) -> None:
        """Leave the generator."""

    def go_first(self, *, wanted: bool, pid: int = 0) -> None:
        """Stay in line."""

    def bind(self, source: str, target: str) -> None:
        """Leave the files as they show."""

    async def configure_network(
        self, address: str, gateway: str, mac: str, *, only_mac: bool = False
    ) -> None:
        """Leave the network."""

    def has_disk(self, _name: str) -> bool:
        """Say that there is one."""
        return True

    def grow_root(self) -> None:
        """Leave the disk."""

    async def mount_share(self, request: guest_pb2.MountRequest, cgroups: Cgroups) -> None:
        """Leave the tree."""

    async def unmount_share(self, request: guest_pb2.UnmountRequest) -> None:
        """Leave the tree."""

    async def shut_down(self, grace_s: float, *, restart: bool = False) -> None:
        """Go on."""

    def system(self, cgroups: Cgroups) -> System:
        """Give one that nothing is done to."""
        from arcbox_agent.settle import NoSystem

        return NoSystem(cgroups)

    def reload_sshd(self) -> None:
        """Leave the server."""
