"""Start a machine: launch it, wait for its agent, and watch over it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Coroutine
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from arcboxd import aio
from arcboxd.domain.guest import Identity
from arcboxd.domain.machine import Machine, MachineState
from arcboxd.errors import (
    ArcboxError,
    HypervisorError,
    MachineStateError,
    NoRoomError,
    TooLateError,
)
from arcboxd.hypervisor.base import DataDisk, Vm, VmConfig
from arcboxd.machines import console, ssh
from arcboxd.machines.context import Context, Running
from arcboxd.machines.locks import NOTE_END
from arcboxd.machines.undo import Undo
from arcboxd.settings import MIB

_T = TypeVar("_T")
_LAUNCH_TRIES = 3


async def start(ctx: Context, ref: str) -> None:
    """Start a machine, and return once its agent answers.

    Idempotent: a machine that runs is left as it is. If it fails or is cancelled, the process is
    killed and the machine is stopped again, with the reason as its detail.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is neither stopped nor running, or was stopped by force meanwhile.
        HypervisorError: QEMU refused, or ended before the agent answered.
        TooLateError: The agent did not answer in time.
        AssetBuildError: What it boots from could not be built.
        NoRoomError: No port is free for SSH.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    if machine.state is MachineState.RUNNING and ctx.locks.current(machine_id) is None:
        return
    with ctx.locks.hold(machine, "start") as operation:
        if machine.state is not MachineState.STOPPED:
            name = machine.spec.name
            raise MachineStateError(
                f"cannot start machine {name!r}: it is {machine.state}",
                hint=f"see why with: arcbox inspect {name}",
            )
        async with operation.abortable(machine.spec.name):
            await _boot(ctx, machine)


async def _boot(ctx: Context, machine: Machine) -> None:
    async with Undo() as undo:
        undo.push_async_exit(_Failed(ctx, machine.id).record)
        machine = await ctx.registry.move(machine.id, MachineState.STARTING, detail="")
        vm, kernel_version = await _launch(ctx, machine)
        undo.push_async_callback(vm.kill)
        # At once: from here on a daemon that dies leaves a process that the next one can identify.
        machine = await ctx.registry.change(
            machine.id,
            process=vm.process,
            accelerator=ctx.hypervisor.accelerator.name,
            kernel_version=kernel_version,
        )
        await finish(ctx, machine, vm)
        undo.pop_all()


async def finish(ctx: Context, machine: Machine, vm: Vm) -> None:
    """Wait for the agent of a launched machine, and count the machine as running.

    The caller kills the process if this fails.

    Raises:
        HypervisorError: The process ended.
        TooLateError: The agent did not answer in time.
        ArcboxError: The agent's link or the monitor broke.
    """
    paths = ctx.paths.machine(machine.id)
    timeout_s = ctx.scaled(ctx.settings.start_timeout_s)
    async with Undo() as undo:
        agent = await ctx.connector.connect(machine, vm.link_socket, identity(ctx, machine))
        undo.push_async_callback(agent.close)
        name = machine.spec.name
        try:
            async with asyncio.timeout(timeout_s):
                # The agent took its identity: that is its first answer.
                await _unless_exit(vm, agent.wait_ready(timeout_s))
        except (TimeoutError, TooLateError) as error:
            raise TooLateError(
                f"machine {name!r} did not answer within {timeout_s:g} s"
                + console.last_words(paths.console_log),
                hint=f"the whole console is in {paths.console_log}",
            ) from error
        except _ExitedError:
            raise HypervisorError(
                f"machine {name!r} ended before its agent answered"
                + console.last_words(paths.console_log),
                hint=f"see {paths.console_log} and {paths.qemu_log}",
            ) from None
        await vm.allow_reset()
        await ctx.registry.move(
            machine.id,
            MachineState.RUNNING,
            started_unix_ns=ctx.now_ns(),
            detail="",
        )
        undo.pop_all()
    watch(ctx, machine, Running(vm, agent))


def watch(ctx: Context, machine: Machine, running: Running) -> None:
    """Count a machine as this daemon's, and record its end when it comes by itself."""
    ctx.running[machine.id] = running
    running.watcher = aio.spawn(_watch(ctx, machine.id, running), name=f"watch {machine.spec.name}")


async def retire(ctx: Context, machine_id: str, detail: str) -> None:
    """Let go of a machine whose process is gone, and record it as stopped."""
    if (running := ctx.running.pop(machine_id, None)) is not None:
        await running.agent.close()
        await running.vm.detach()
    await ctx.registry.move(machine_id, MachineState.STOPPED, process=None, detail=detail)


def identity(ctx: Context, machine: Machine) -> Identity:
    """Give what makes a guest this machine."""
    paths = ctx.paths.machine(machine.id)
    return Identity(
        machine_id=machine.machine_id,
        hostname=machine.spec.name,
        user_name=machine.user,
        user_uid=os.getuid(),
        authorized_keys=ssh.authorized_keys(machine, paths),
        ssh_host_keys=ssh.host_keys(paths),
        disk_bytes=machine.spec.disk_bytes,
    )


async def vm_config(ctx: Context, machine: Machine) -> VmConfig:
    """Give all that a machine's process is made of.

    Raises:
        AssetBuildError: What it boots from could not be built.
        MissingToolError: A program is missing on the host.
    """
    spec = machine.spec
    volumes = ctx.paths.volumes / machine.id
    return VmConfig(
        machine_id=machine.id,
        name=spec.name,
        uuid=str(uuid.UUID(machine.machine_id)),
        arch=spec.arch,
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes // MIB * MIB,
        mac=machine.mac,
        paths=ctx.paths.machine(machine.id),
        assets=await ctx.assets.ensure(spec.arch, ctx.reporter(machine)),
        cmdline=spec.cmdline,
        data_disks=tuple(DataDisk(p.stem, p) for p in sorted(volumes.glob("*.qcow2"))),
    )


async def _launch(ctx: Context, machine: Machine) -> tuple[Vm, str]:
    taken = frozenset(m.ssh_port for m in ctx.registry.all() if m.id != machine.id and m.ssh_port)
    config = await vm_config(ctx, machine)
    config.paths.console_log.unlink(missing_ok=True)
    wanted = machine.ssh_port
    for tries_left in reversed(range(_LAUNCH_TRIES)):
        port = ssh.choose_port(wanted, taken)
        if port != machine.ssh_port:
            machine = await ctx.registry.change(machine.id, ssh_port=port)
            ssh.write_config(machine, config.paths)
        try:
            vm = await ctx.hypervisor.launch(replace(config, forwards=(ssh.forward(port),)))
            return vm, config.assets.kernel_version
        except NoRoomError:
            # Another program was quicker to take the port that was free a moment ago.
            if not tries_left:
                raise
            wanted, taken = 0, taken | {port}
    raise AssertionError("the last try returns or raises")


class _ExitedError(Exception):
    """The process ended first."""


async def _unless_exit(vm: Vm, work: Coroutine[object, object, _T]) -> _T:
    """Do work, unless the process ends before it is done."""
    working = asyncio.ensure_future(work)
    exited = asyncio.ensure_future(vm.wait_exit())
    try:
        await asyncio.wait({working, exited}, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            raise _ExitedError
        return working.result()
    finally:
        for task in (working, exited):
            task.cancel()
        await asyncio.gather(working, exited, return_exceptions=True)


async def _watch(ctx: Context, machine_id: str, running: Running) -> None:
    await running.vm.wait_exit()
    await ctx.locks.free(machine_id)
    # Nothing is awaited between the lock seen free and held: no operation can come between.
    if ctx.running.get(machine_id) is running:
        with ctx.locks.hold(ctx.registry.get(machine_id), NOTE_END):
            await retire(ctx, machine_id, _ending(ctx, machine_id))


def _ending(ctx: Context, machine_id: str) -> str:
    paths = ctx.paths.machine(machine_id)
    if console.powered_off(paths.console_log):
        return ""
    words = " / ".join(console.tail(paths.qemu_log)[-2:])
    return (
        "its process ended although nobody stopped it here, and the guest did not say that it "
        f"powered off; see {paths.console_log}" + (f"; QEMU said: {words}" if words else "")
    )


class _Failed:
    """Records why a start failed."""

    def __init__(self, ctx: Context, machine_id: str) -> None:
        self._ctx = ctx
        self._machine_id = machine_id

    async def record(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if isinstance(error, ArcboxError):
            detail = error.message
        elif isinstance(error, asyncio.CancelledError):
            detail = "its last start was cancelled"
        else:
            detail = "its last start failed; the daemon's log says why"
        if self._ctx.registry.get(self._machine_id).state is MachineState.STARTING:
            await self._ctx.registry.move(
                self._machine_id, MachineState.STOPPED, process=None, detail=detail
            )
