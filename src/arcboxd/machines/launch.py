"""What a machine's process is made of, and the wait for its agent's first answer."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from arcboxd.domain.guest import Identity
from arcboxd.domain.machine import Machine
from arcboxd.errors import HypervisorError, TooLateError
from arcboxd.hypervisor.base import DataDisk, Vm, VmConfig
from arcboxd.machines import console, kernels, ssh
from arcboxd.machines.context import Context
from arcboxd.machines.interfaces import GuestAgent
from arcboxd.machines.undo import Undo
from arcboxd.paths import MachinePaths
from arcboxd.settings import MIB, host_cpus

_T = TypeVar("_T")


async def vm_config(ctx: Context, machine: Machine, paths: MachinePaths | None = None) -> VmConfig:
    """Give all that a machine's process is made of.

    Args:
        ctx: What the machine lives in.
        machine: The machine.
        paths: Its files; None for those that a recorded machine has.

    Raises:
        AssetBuildError: What it boots from could not be built.
        MissingToolError: A program is missing on the host.
    """
    spec = machine.spec
    volumes = ctx.paths.volumes / machine.id
    paths = paths or ctx.paths.machine(machine.id)
    runtime = paths.runtime_marker.exists()
    assets = await ctx.assets.ensure(spec.arch, ctx.reporter(machine))
    if spec.kernel:
        own = Path(spec.kernel)
        told = await asyncio.to_thread(kernels.release, own)
        assets = replace(assets, kernel=own, kernel_version=told)
    return VmConfig(
        machine_id=machine.id,
        name=spec.name,
        uuid=str(uuid.UUID(machine.machine_id)),
        arch=spec.arch,
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes // MIB * MIB,
        mac=machine.mac,
        paths=paths,
        assets=assets,
        cmdline=spec.cmdline,
        data_disks=tuple(DataDisk(p.stem, p) for p in sorted(volumes.glob("*.qcow2"))),
        runtime_disk=ctx.assets.find_runtime(spec.arch) if runtime else None,
    )


def identity(ctx: Context, machine: Machine) -> Identity:
    """Give what makes a guest this machine."""
    paths = ctx.paths.machine(machine.id)
    return Identity(
        machine_id=machine.machine_id,
        hostname=machine.spec.name,
        mac=machine.mac,
        user_name=machine.user,
        user_uid=os.getuid(),
        authorized_keys=ssh.authorized_keys(machine, paths),
        ssh_host_keys=ssh.host_keys(paths),
        disk_bytes=machine.spec.disk_bytes,
        # Each machine that starts keeps one of the host's processors busy without that.
        warm_up=machine.spec.cpus > 1 and 2 * ctx.locks.count("start") <= host_cpus(),
    )


async def first_answer(
    ctx: Context,
    machine: Machine,
    paths: MachinePaths,
    vm: Vm,
    who: Identity | None,
    *,
    timeout_s: float,
    paused: bool = False,
    frozen: int = 0,
) -> GuestAgent:
    """Connect to the agent of a launched machine, and wait until it has taken its identity.

    A paused machine goes on once there is a connection, so that it finds the greeting there. If it
    was frozen in a session, that one's `mark` is given.

    Raises:
        HypervisorError: The process ended.
        TooLateError: The agent did not answer in ``timeout_s`` seconds.
        ArcboxError: The agent's link broke.
    """
    name = machine.spec.name
    async with Undo() as undo:
        agent = await ctx.connector.connect(machine, paths, who, frozen=frozen)
        undo.push_async_callback(agent.close)
        if paused:
            await vm.resume()
        try:
            async with asyncio.timeout(timeout_s):
                await unless_exit(vm, agent.wait_ready(timeout_s))
        except (TimeoutError, TooLateError) as error:
            raise TooLateError(
                f"machine {name!r} did not answer within {timeout_s:g} s"
                + console.last_words(paths.console_log),
                hint=f"the whole console is in {paths.console_log}",
            ) from error
        except ExitedError:
            raise HypervisorError(
                f"machine {name!r} ended before its agent answered"
                + console.last_words(paths.console_log),
                hint=f"see {paths.console_log} and {paths.qemu_log}",
            ) from None
        undo.pop_all()
    return agent


class ExitedError(Exception):
    """The process ended first."""


async def unless_exit(vm: Vm, work: Coroutine[object, object, _T]) -> _T:
    """Do work, unless the process ends before it is done.

    Raises:
        ExitedError: It did.
    """
    working = asyncio.ensure_future(work)
    exited = asyncio.ensure_future(vm.wait_exit())
    try:
        await asyncio.wait({working, exited}, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            raise ExitedError
        return working.result()
    finally:
        for task in (working, exited):
            task.cancel()
        await asyncio.gather(working, exited, return_exceptions=True)
