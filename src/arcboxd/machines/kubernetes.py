"""The Kubernetes cluster of a machine, as the host sees it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial

from arcboxd import aio
from arcboxd.domain.kubernetes import Kubeconfig, KubernetesStatus, KubernetesStopped
from arcboxd.domain.machine import Machine
from arcboxd.errors import ArcboxError, MachineBusyError, PreconditionError, UnsupportedError
from arcboxd.kubernetes.kubeconfig import context_name, rebuild
from arcboxd.machines import kubernetes_disk, kubernetes_port, kubernetes_services, runtime
from arcboxd.machines.again import at_each_session
from arcboxd.machines.context import Context, Running
from arcboxd.machines.runtime import resolve

_log = logging.getLogger(__name__)

_START_S = 60.0
"""The agent answers after 20, and the start goes on."""
_STOP_S = 60.0
_DELETE_S = 120.0
"""Both under kvm."""


async def start(ctx: Context, ref: str) -> KubernetesStatus:
    """Start the cluster of a machine, and the machine. Idempotent; a new one if there was none.

    With the machine it starts again from now on, until it is stopped.

    Args:
        ctx: What the machine lives in.
        ref: The machine; empty for the default one.

    Returns:
        How the cluster is at the answer; it may become ready later.

    Raises:
        MachineNotFoundError: There is no such machine.
        PreconditionError: It cannot have a cluster as things are.
        AgentUnreachableError: Its agent does not answer.
        NoRoomError: No port of the host is free.
        UnsupportedError: Its agent is of a version without Kubernetes.
        ArcboxError: The machine could not be started, or the disk not be had: `kubernetes_disk`.
    """
    machine = resolve(ctx, ref) if ref else await runtime.ensure_default(ctx)
    return await ctx.clusters.join(machine.id, partial(_start, ctx, machine.id))


async def _start(ctx: Context, machine_id: str) -> KubernetesStatus:
    machine, running = await runtime.have_running(ctx, machine_id, "start Kubernetes in")
    try:
        await supply(ctx, machine_id)
        found = await running.agent.start_kubernetes(ctx.scaled(_START_S, machine))
    except UnsupportedError:
        await kubernetes_port.release(ctx, machine)
        raise
    await asyncio.to_thread(ctx.paths.machine(machine_id).kubernetes_marker.touch)
    kubernetes_services.begin(ctx, machine, running)
    port = kubernetes_port.find(ctx, machine_id)
    return replace(found, endpoint=_endpoint(port))


async def supply(ctx: Context, machine_id: str) -> None:
    """Give a running machine what its agent needs for a cluster. Idempotent.

    Both disks, fetched or built if they are missing, a port of the host, and the word which it is.

    Raises:
        ArcboxError: Something of it cannot be had.
    """
    await ctx.plugs.join(f"kubernetes of {machine_id}", partial(_supply, ctx, machine_id))


async def _supply(ctx: Context, machine_id: str) -> None:
    machine, _ = await ctx.running_machine(machine_id, "plug Kubernetes into")
    plugging = asyncio.ensure_future(runtime.plug_disk(ctx, machine_id))
    try:
        disk = await kubernetes_disk.disk(ctx, machine.spec.arch, ctx.reporter(machine))
        await plugging
    finally:
        await aio.cancel(plugging)
    # It may have taken minutes.
    machine, running = await ctx.running_machine(machine_id, "plug Kubernetes into")
    await running.vm.plug_kubernetes(disk)
    port = await kubernetes_port.reserve(ctx, machine)
    context = context_name(machine.spec.name, ctx.settings.default_machine)
    await running.agent.set_kubernetes_address(_endpoint(port), context)


def follow(ctx: Context, machine_id: str, running: Running) -> None:
    """Have the cluster of a machine that runs up again whenever its guest begins anew."""
    marker = ctx.paths.machine(machine_id).kubernetes_marker
    at_each_session(
        ctx,
        running,
        f"cluster of {machine_id}",
        wanted=marker.exists,
        work=lambda: _restore(ctx, machine_id),
    )


async def _restore(ctx: Context, machine_id: str) -> None:
    machine = await runtime.settled(ctx, machine_id)
    if machine is None:
        return
    try:
        await start(ctx, machine_id)
    except MachineBusyError:
        return
    except ArcboxError as error:
        _log.warning("the cluster of %s was not started: %s", machine.spec.name, error)


async def stop(ctx: Context, ref: str) -> KubernetesStopped:
    """Stop the cluster of a machine that runs, and keep its data. Idempotent.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
        UnsupportedError: Its agent is of a version without Kubernetes.
    """
    machine, running = await _running(ctx, ref, "stop Kubernetes in")
    ctx.paths.machine(machine.id).kubernetes_marker.unlink(missing_ok=True)
    await kubernetes_services.end(ctx, machine.id)
    return await running.agent.stop_kubernetes(ctx.scaled(_STOP_S, machine))


async def delete(ctx: Context, ref: str) -> str:
    """Remove the cluster of a machine that runs, with its data and its port. Idempotent.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
        StoreError: The port cannot be forgotten.
        UnsupportedError: Its agent is of a version without Kubernetes.
    """
    machine, running = await _running(ctx, ref, "delete Kubernetes in")
    ctx.paths.machine(machine.id).kubernetes_marker.unlink(missing_ok=True)
    await kubernetes_services.end(ctx, machine.id)
    detail = await running.agent.delete_kubernetes(ctx.scaled(_DELETE_S, machine))
    await kubernetes_port.release(ctx, machine)
    return detail


async def status(ctx: Context, ref: str) -> KubernetesStatus:
    """Tell how the cluster of a machine is; changes nothing.

    Raises:
        MachineNotFoundError: There is no such machine.
        AgentUnreachableError: Its agent does not answer.
        UnsupportedError: Its agent is of a version without Kubernetes.
    """
    machine = resolve(ctx, ref)
    await ctx.locks.settled(machine.id)
    port = kubernetes_port.find(ctx, machine.id)
    endpoint = _endpoint(port) if port else ""
    if (running := ctx.running.get(machine.id)) is None:
        state = ctx.registry.get(machine.id).state
        detail = f"machine {machine.spec.name!r} is {state}"
        return KubernetesStatus(running=False, api_ready=False, endpoint=endpoint, detail=detail)
    return replace(await running.agent.kubernetes_status(), endpoint=endpoint)


async def kubeconfig(ctx: Context, ref: str) -> Kubeconfig:
    """Give what reaches the cluster of a machine from the host, made anew of the guest's.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        PreconditionError: It has no cluster that was started.
        AgentUnreachableError: Its agent does not answer.
        CorruptError: What the guest says is not what a kubeconfig of a cluster of ours is.
        UnsupportedError: Its agent is of a version without Kubernetes.
    """
    machine, running = await _running(ctx, ref, "give the kubeconfig of")
    text = await running.agent.kubeconfig()
    port = kubernetes_port.find(ctx, machine.id)
    if not port:
        name = machine.spec.name
        raise PreconditionError(
            f"machine {name!r} has no Kubernetes cluster",
            hint=f"make one with: arcbox k8s start {name}",
        )
    context = context_name(machine.spec.name, ctx.settings.default_machine)
    made = rebuild(text, context=context, server=_endpoint(port))
    return Kubeconfig(made.decode(), context, _endpoint(port))


async def _running(ctx: Context, ref: str, verb: str) -> tuple[Machine, Running]:
    return await ctx.running_machine(resolve(ctx, ref).id, verb)


def _endpoint(port: int) -> str:
    return f"https://127.0.0.1:{port}"
