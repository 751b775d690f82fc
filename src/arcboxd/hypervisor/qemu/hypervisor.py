"""Launches QEMU processes, and finds those that an earlier daemon launched."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path

from arcboxd.aio import complete
from arcboxd.domain.machine import ProcessIdentity
from arcboxd.errors import HypervisorError
from arcboxd.hypervisor.base import Accelerator, PageRanges, SavedState, VmConfig
from arcboxd.hypervisor.qemu import hot_pages, stale_code
from arcboxd.hypervisor.qemu.accelerator import for_arch
from arcboxd.hypervisor.qemu.argv import build_argv
from arcboxd.hypervisor.qemu.fingerprint import Program, fingerprint, newest_board
from arcboxd.hypervisor.qemu.migration import load_state
from arcboxd.hypervisor.qemu.monitor import Monitor
from arcboxd.hypervisor.qemu.platforms import platform_of
from arcboxd.hypervisor.qemu.vm import QemuVm
from arcboxd.process import ProcessHandle, spawn_detached, tool

_log = logging.getLogger(__name__)

_LOG_TAIL_BYTES = 2000
_LOAD_TIMEOUT_S = 120.0
_BACKGROUND_NICE = 15
_ENDING_S = 1.0


class QemuHypervisor:
    """Implements `arcboxd.hypervisor.base.Hypervisor`."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Use one accelerator for every machine of the host's architecture."""
        self._accelerator = accelerator
        self._boards: dict[Program, str] = {}

    @property
    def accelerator(self) -> Accelerator:
        """Tell how code of the host's architecture is run."""
        return self._accelerator

    def accelerator_for(self, arch: str) -> Accelerator:
        """Tell how code of an architecture is run."""
        return for_arch(self._accelerator, arch)

    def check(self, arch: str) -> None:
        """See that there is a QEMU for an architecture.

        Raises:
            MissingToolError: It is not installed.
            UnsupportedError: None is known.
        """
        _program(arch)

    async def fingerprint(self, config: VmConfig) -> str:
        """Digest all that a saved state depends on, this build of QEMU and the processor included.

        Raises:
            HypervisorError: QEMU does not say which boards it has.
            MissingToolError: QEMU is not installed.
        """
        qemu = _program(config.arch)
        config = replace(config, machine_type=await self._board(config, qemu))
        return fingerprint(config, self.accelerator_for(config.arch), qemu, Path("/proc/cpuinfo"))

    async def launch(self, config: VmConfig, state: SavedState | None = None) -> QemuVm:
        """Start QEMU, detached, and connect to its monitor.

        Raises:
            HypervisorError: It ended at once or never answered; nothing of it is left.
            MissingToolError: QEMU is not installed.
            NoRoomError: A forward's port is taken.
        """
        paths = config.paths
        qemu = _program(config.arch)
        config = replace(config, machine_type=await self._board(config, qemu))
        async with AsyncExitStack() as undo:
            with ExitStack() as sockets:
                # We bind and QEMU inherits: a connection made now waits in the backlog until QEMU
                # takes it, with no polling, and no path of ours is parsed by QEMU.
                qmp = sockets.enter_context(_listen(paths.qmp_socket))
                link = sockets.enter_context(_listen(paths.link_socket))
                undo.callback(paths.qmp_socket.unlink, missing_ok=True)
                undo.callback(paths.link_socket.unlink, missing_ok=True)
                shares = _open_shares(paths.shares, sockets)
                accelerator = self.accelerator_for(config.arch)
                argv = build_argv(
                    config,
                    accelerator,
                    qmp_fd=qmp.fileno(),
                    link_fd=link.fileno(),
                    shares_fd=shares,
                    incoming=state is not None,
                )
                argv[0] = qemu.path
                fds = (qmp.fileno(), link.fileno(), shares)
                # A clone under emulation has little of its own beside translated code: no room for
                # code up to the next 2 MiB, and no arena for each thread.
                spare = state is not None and accelerator.name == "tcg"
                process = spawn_detached(
                    argv,
                    log=paths.qemu_log,
                    env={**os.environ, "MALLOC_ARENA_MAX": "1"} if spare else None,
                    keep_fds=fds,
                    huge_pages=not spare,
                )
                if config.background:
                    # Of the one thread that it has so far, from which all others inherit it.
                    os.setpriority(os.PRIO_PROCESS, process.identity.pid, _BACKGROUND_NICE)
            monitor = Monitor(config.name, paths.qmp_socket)
            ram = _private_ram(config)
            vm = QemuVm(process, monitor, paths, ram)
            undo.push_async_callback(vm.kill)
            await self._first_answer(config, process, monitor)
            if state is not None:
                if ram is not None and state.hot_pages:
                    await _copy_hot_pages(process.identity.pid, ram, state.hot_pages)
                await load_state(
                    monitor,
                    state.path,
                    shared_ram_stays=state.memory_in_file,
                    timeout_s=_LOAD_TIMEOUT_S,
                )
            for forward in config.forwards:
                await vm.add_forward(forward)
            self._watch(config, vm, monitor)
            undo.pop_all()
            return vm

    async def adopt(self, config: VmConfig, process: ProcessIdentity) -> QemuVm | None:
        """Take over a QEMU that runs; None when that very process is gone for certain.

        Raises:
            HypervisorError: The process is there, but its monitor does not answer.
        """
        handle = ProcessHandle.hold(process)
        if handle is None:
            return None
        monitor = Monitor(config.name, config.paths.qmp_socket)
        try:
            await monitor.connect()
        except HypervisorError:
            handle.release()
            raise
        vm = QemuVm(handle, monitor, config.paths)
        self._watch(config, vm, monitor)
        return vm

    def _watch(self, config: VmConfig, vm: QemuVm, monitor: Monitor) -> None:
        emulated = self.accelerator_for(config.arch).name == "tcg"
        if emulated and stale_code.may_hold(config.arch, config.cpus, monitor.version()):
            vm.watch(config.name)

    async def _board(self, config: VmConfig, qemu: Program) -> str:
        if config.machine_type:
            return config.machine_type
        if (board := self._boards.get(qemu)) is None:
            board = self._boards[qemu] = await newest_board(qemu, platform_of(config.arch).board)
        return board

    async def _first_answer(
        self, config: VmConfig, process: ProcessHandle, monitor: Monitor
    ) -> None:
        connect = asyncio.ensure_future(monitor.connect())
        exit_ = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({connect, exit_}, return_when=asyncio.FIRST_COMPLETED)
            if connect.done() and connect.exception() is not None:
                # A process that ends closes its sockets first, and has said why.
                await asyncio.wait({exit_}, timeout=_ENDING_S)
            if exit_.done():
                raise HypervisorError(
                    f"QEMU of machine {config.name!r} ended at once: {_tail(config.paths.qemu_log)}"
                )
            connect.result()
        finally:
            for task in (connect, exit_):
                task.cancel()
            await asyncio.gather(connect, exit_, return_exceptions=True)


def _private_ram(config: VmConfig) -> tuple[Path, int] | None:
    memory = config.memory_file
    return None if memory is None or memory.shared else (memory.path, config.memory_bytes)


async def _copy_hot_pages(pid: int, ram: tuple[Path, int], pages: PageRanges) -> None:
    """Do so while nothing runs: to its end, and without it the machine is only slower."""
    try:
        await complete(asyncio.to_thread(hot_pages.copy, pid, *ram, pages))
    except (OSError, LookupError) as error:
        _log.debug("a clone's pages are copied as it writes to them: %s", error)


def _program(arch: str) -> Program:
    of = platform_of(arch)
    return Program.at(tool(of.program, package=of.package))


def _open_shares(folder: Path, stack: ExitStack) -> int:
    """Make the directory of shares anew, and open it: QEMU knows it wherever it is moved."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace").strip()
    return " / ".join(text.splitlines()[-3:]) or "it said nothing"
