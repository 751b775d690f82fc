"""One running QEMU, as the use cases see it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from pathlib import Path

from arcboxd import aio
from arcboxd.domain.machine import ProcessIdentity
from arcboxd.hypervisor.base import Forward, Hardware, PageRanges, SavedState, ShareSlot
from arcboxd.hypervisor.qemu import forwards, hot_pages, nodes, plug, stale_code
from arcboxd.hypervisor.qemu.argv import KUBERNETES_NODE, ROOT_NODE, RUNTIME_NODE
from arcboxd.hypervisor.qemu.migration import give_up, save_state
from arcboxd.hypervisor.qemu.monitor import Monitor
from arcboxd.paths import MachinePaths
from arcboxd.process import ProcessHandle, cpu_seconds

_log = logging.getLogger(__name__)

_FILES = ("template_disk", "disk", "console_log", "qemu_log", "shares", "link_socket", "qmp_socket")


class QemuVm:
    """Implements `arcboxd.hypervisor.base.Vm`."""

    def __init__(
        self,
        process: ProcessHandle,
        monitor: Monitor,
        paths: MachinePaths,
        ram: tuple[Path, int] | None = None,
    ) -> None:
        """Take over the handle and the connection.

        Args:
            process: The process.
            monitor: Its monitor.
            paths: The machine's files.
            ram: The file that its RAM is a private mapping of, and its size in bytes.
        """
        self._process = process
        self._monitor = monitor
        self._paths = paths
        self._ram = ram
        self._going = asyncio.Lock()
        """Held while it is decided whether the virtual processors run."""
        self._watch: asyncio.Task[None] | None = None

    def watch(self, name: str) -> None:
        """Free its virtual processors from now on whenever stale code holds them."""
        pid = self._process.identity.pid
        self._watch = aio.spawn(
            stale_code.watch(name, self._monitor, lambda: cpu_seconds(pid), self._free),
            name=f"processors of {name}",
        )

    @property
    def process(self) -> ProcessIdentity:
        """Identify the process."""
        return self._process.identity

    async def wait_exit(self) -> None:
        """Return once the process is gone."""
        await self._process.wait()

    async def allow_reset(self) -> None:
        """Let a guest's reboot restart it from now on. Source: QMP ``set-action``."""
        await self._monitor.execute("set-action", {"reboot": "reset"})

    async def powerdown(self) -> None:
        """Press the ACPI power button. Source: QMP ``system_powerdown``."""
        await self._monitor.execute("system_powerdown")

    async def pause(self) -> None:
        """Stop the virtual processors. Source: QMP ``stop``."""
        async with self._going:
            await self._monitor.execute("stop")

    async def resume(self) -> None:
        """Let the virtual processors go on.

        After a save, ``cont`` takes the disks back, which QEMU had given up for another to take.
        Source: QMP ``cont``; qemu/monitor/qmp-cmds.c, qmp_cont.
        """
        async with self._going:
            await give_up(self._monitor)
            await self._monitor.execute("cont")

    async def hardware(self) -> Hardware:
        """Tell what it was launched with."""
        return await nodes.hardware(self._monitor)

    async def save(self, path: Path, *, memory_in_file: bool, timeout_s: float) -> SavedState:
        """Write the state of the paused machine to a file."""
        board = await nodes.machine_type(self._monitor)
        await save_state(self._monitor, path, shared_ram_stays=memory_in_file, timeout_s=timeout_s)
        return SavedState(path, memory_in_file, board)

    async def snapshot_disks(self, tag: str) -> None:
        """Take a snapshot of all its disks."""
        await nodes.snapshot_disks(self._monitor, tag)

    async def drop_disk_snapshots(self, tag: str) -> None:
        """Remove a snapshot from its disks."""
        await nodes.drop_disk_snapshots(self._monitor, tag)

    async def own_pages(self) -> PageRanges:
        """Tell which pages of a RAM that is mapped copy-on-write it has written to."""
        if self._ram is None:
            return ()
        try:
            return await asyncio.to_thread(hot_pages.learn, self.process.pid, *self._ram)
        except (OSError, LookupError) as error:
            _log.info("it is not known which pages a clone has written to: %s", error)
            return ()

    async def resize_disk(self, size_bytes: int) -> None:
        """Grow the root disk. Source: QMP ``block_resize``."""
        await self._monitor.execute("block_resize", {"node-name": ROOT_NODE, "size": size_bytes})

    async def plug_runtime(self, disk: Path) -> None:
        """Plug the container runtime's disk in."""
        await plug.plug_bundle(self._monitor, RUNTIME_NODE, disk)

    async def plug_kubernetes(self, disk: Path) -> None:
        """Plug the disk with Kubernetes in."""
        await plug.plug_bundle(self._monitor, KUBERNETES_NODE, disk)

    async def plug_share(self, slot: ShareSlot, directory: Path) -> None:
        """Plug a directory of the host in."""
        await plug.plug_share(self._monitor, slot, self._paths.shares, directory)

    async def unplug_share(self, slot: ShareSlot, timeout_s: float) -> None:
        """Take a share out."""
        await plug.unplug_share(self._monitor, slot, self._paths.shares, timeout_s)

    async def shares(self) -> tuple[ShareSlot, ...]:
        """Tell which slots are taken."""
        return await plug.shares(self._monitor)

    def rehome(self, paths: MachinePaths) -> None:
        """Move its files; QEMU has them open, and does not look for them by name.

        The monitor's socket comes last: until it is there, the process is found where it was.
        """
        was, self._paths = self._paths, paths
        shutil.rmtree(paths.shares, ignore_errors=True)
        for name in _FILES:
            getattr(was, name).rename(getattr(paths, name))
        self._monitor.moved(paths.qmp_socket)

    async def kill(self) -> None:
        """SIGKILL, wait until the process is gone, and take its sockets away."""
        self._process.signal(signal.SIGKILL)
        await self._process.wait()
        # Not before: its monitor may be what does not answer.
        await self._watch_no_more()
        await self._monitor.close()
        paths = self._paths
        for path in (paths.qmp_socket, paths.link_socket, paths.stub_socket):
            path.unlink(missing_ok=True)

    async def forwards(self) -> tuple[Forward, ...]:
        """Tell the forwards that are in force."""
        return await forwards.list_forwards(self._monitor)

    async def add_forward(self, forward: Forward) -> None:
        """Open a forward."""
        await forwards.add_forward(self._monitor, forward)

    async def remove_forward(self, forward: Forward) -> None:
        """Close a forward."""
        await forwards.remove_forward(self._monitor, forward)

    async def detach(self) -> None:
        """Drop the connections, and leave it running."""
        await self._watch_no_more()
        await self._monitor.close()
        self._process.release()

    async def _free(self) -> int:
        async with self._going:
            return await stale_code.free(self._monitor, self._paths.stub_socket)

    async def _watch_no_more(self) -> None:
        if self._watch is not None:
            await aio.cancel(self._watch)
