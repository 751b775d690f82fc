"""The Kubernetes cluster of a machine, as the host sees it."""

from __future__ import annotations

from dataclasses import replace

from arcboxd.domain.kubernetes import Kubeconfig, KubernetesStatus, KubernetesStopped
from arcboxd.domain.machine import Machine
from arcboxd.errors import PreconditionError
from arcboxd.kubernetes.kubeconfig import context_name, rebuild
from arcboxd.machines import kubernetes_port
from arcboxd.machines.context import Context, Running
from arcboxd.machines.runtime import resolve

_START_S = 60.0
_STOP_S = 120.0
_DELETE_S = 180.0
"""All under kvm: what the agent has for it; a start goes on after its answer."""


async def start(ctx: Context, ref: str) -> KubernetesStatus:
    """Start the cluster of a machine that runs. Idempotent; a new cluster if there was none.

    Args:
        ctx: What the machine lives in.
        ref: The machine; empty for the default one.

    Returns:
        How the cluster is at the answer; it may become ready later.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
        NoRoomError: No port of the host is free.
        UnsupportedError: Its agent is of a version without Kubernetes.
    """
    machine, running = await _running(ctx, ref, "start Kubernetes in")
    found = await running.agent.start_kubernetes(ctx.scaled(_START_S))
    port = await kubernetes_port.reserve(ctx, machine)
    return replace(found, endpoint=_endpoint(port))


async def stop(ctx: Context, ref: str) -> KubernetesStopped:
    """Stop the cluster of a machine that runs, and keep its data. Idempotent.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
        UnsupportedError: Its agent is of a version without Kubernetes.
    """
    _, running = await _running(ctx, ref, "stop Kubernetes in")
    return await running.agent.stop_kubernetes(ctx.scaled(_STOP_S))


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
    detail = await running.agent.delete_kubernetes(ctx.scaled(_DELETE_S))
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
