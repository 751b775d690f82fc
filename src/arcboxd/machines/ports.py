"""Forwards to machines: the user's own, and those of what their containers publish."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from arcboxd import aio
from arcboxd.domain.machine import GUEST_ADDRESS, Machine
from arcboxd.domain.ports import (
    GuestEvent,
    KubernetesWanted,
    Port,
    PortsPublished,
    PortState,
    PortsWithdrawn,
    RuntimeWanted,
    Synced,
    UserForward,
)
from arcboxd.errors import (
    ArcboxError,
    InvalidArgumentError,
    NoRoomError,
    PortExistsError,
    PortNotFoundError,
    StoreError,
)
from arcboxd.link.stream import Stream
from arcboxd.machines import kubernetes_port, kubernetes_services, ssh
from arcboxd.machines.context import Context, Running
from arcboxd.ports import plan, record, sockets
from arcboxd.ports.forwards import MAX_FORWARDS, USER, Forwards

_log = logging.getLogger(__name__)

_NEW_NS = 5_000_000_000
"""The first command of a machine that was started so lately may still have to come."""
_OTHERS_S = 10.0
"""How long the first watch of such a machine waits for the starts of others."""
_READY_S = 2.0
_RETRY_FIRST_S = 0.1
_RETRY_MOST_S = 15.0
_SETTLE_S = 5.0
_PORT_TRIES = 64


async def add(ctx: Context, ref: str, asked: UserForward) -> Port:
    """Forward a port of the host to a machine, for as long as the machine exists.

    Idempotent. A machine that runs has it open when this returns, or the answer says why not; then
    it opens when it can. One that does not run has it from its next start on.

    Args:
        ctx: What the machine lives in.
        ref: The machine.
        asked: What is wanted; an empty host address stands for the one in the settings, and the
            host's port 0 for any that is free.

    Raises:
        InvalidArgumentError: It can never be forwarded.
        MachineNotFoundError: There is no such machine.
        PortExistsError: The machine has that port of the host for something else.
        NoRoomError: The machine has too many forwards, or no port is free.
        StoreError: It cannot be recorded.
    """
    wanted = _completed(ctx, asked)
    machine = ctx.registry.find(ref)
    forwards = ctx.ports.of(machine.id, machine.spec.name)
    async with forwards.lock:
        own = await _load(ctx, machine, forwards)
        if wanted.host_port == 0:
            wanted = replace(wanted, host_port=await _free_port(ctx, wanted, own))
        if wanted not in own:
            _check_free(machine, wanted, own)
            if forwards.count >= MAX_FORWARDS:
                raise NoRoomError(f"machine {machine.spec.name!r} has {MAX_FORWARDS} forwards")
            await aio.complete(_keep(ctx, machine, forwards, (*own, wanted)))
    await forwards.settled(_SETTLE_S)
    for port in forwards.ports():
        if port.source == USER and _forward(port) == wanted:
            return _explained(ctx, machine, port)
    raise PortNotFoundError(f"the forward of {plan.asked(wanted)} was removed meanwhile")


async def remove(
    ctx: Context, ref: str, *, protocol: str, host_address: str, host_port: int
) -> None:
    """Forget the user's own forwards of a port of the host; closed when this returns.

    Args:
        ctx: What the machine lives in.
        ref: The machine.
        protocol: tcp or udp; empty is tcp.
        host_address: Only those that listen there; empty: all.
        host_port: The port.

    Raises:
        InvalidArgumentError: It is no port, or no address.
        MachineNotFoundError: There is no such machine.
        PortNotFoundError: The user has forwarded no such port.
        StoreError: It cannot be recorded.
    """
    protocol = plan.check_protocol(protocol)
    address = plan.parse_address(host_address)
    machine = ctx.registry.find(ref)
    forwards = ctx.ports.of(machine.id, machine.spec.name)
    async with forwards.lock:
        own = await _load(ctx, machine, forwards)
        kept = tuple(
            each
            for each in own
            if (each.protocol, each.host_port) != (protocol, host_port)
            or address not in {"", each.host_address}
        )
        if len(kept) == len(own):
            raise PortNotFoundError(
                f"port {host_port}/{protocol} is no forward of your own to machine "
                f"{machine.spec.name!r}",
                hint=f"see them with: arcbox port ls {machine.spec.name}",
            )
        await aio.complete(_keep(ctx, machine, forwards, kept))
    await forwards.settled(_SETTLE_S)


async def ports(ctx: Context, ref: str = "") -> list[Port]:
    """Show every forward of a machine, or of all machines, SSH's first.

    Raises:
        InvalidArgumentError: The reference cannot name one machine.
        MachineNotFoundError: It names none.
    """
    found = []
    for machine in (ctx.registry.find(ref),) if ref else ctx.registry.all():
        forwards = ctx.ports.of(machine.id, machine.spec.name)
        async with forwards.lock:
            await _load_or_log(ctx, machine, forwards)
        if machine.ssh_port:
            state = PortState.OPEN if machine.id in ctx.running else PortState.WAITING
            name, port = machine.spec.name, machine.ssh_port
            found.append(Port(name, "tcp", ssh.HOST, port, "", ssh.GUEST_PORT, "ssh", state))
        found += forwards.ports()
    machines = {machine.spec.name: machine for machine in ctx.registry.all()}
    return [_explained(ctx, machines[p.machine], p) for p in found if p.machine in machines]


def attach(ctx: Context, machine: Machine, running: Running) -> None:
    """Begin to open a running machine's forwards, and to follow what its guest says of others."""
    running.follower = aio.spawn(
        _serve(ctx, machine, running), name=f"forwards to {machine.spec.name}"
    )


async def detach(ctx: Context, machine_id: str, running: Running) -> None:
    """Close the forwards of a machine that runs no more, or not for this daemon. Idempotent."""
    follower, running.follower = running.follower, None
    if follower is not None:
        await aio.cancel(follower)
        await kubernetes_services.leave(ctx, machine_id)
        await ctx.ports.detach(machine_id)


async def _serve(ctx: Context, machine: Machine, running: Running) -> None:
    forwards = ctx.ports.of(machine.id, machine.spec.name)
    async with forwards.lock:
        await _load_or_log(ctx, machine, forwards)

    async def open_stream(target: str) -> Stream:
        # Of the agent that there is then: a suspend that failed has made another.
        return await running.agent.open_stream(target)

    kubernetes_port.publish(ctx, machine)
    forwards.attach(running.vm, open_stream, ssh.forward(machine.ssh_port))
    if ctx.now_ns() - machine.started_unix_ns < _NEW_NS:
        await ctx.others_first(machine, most_s=_OTHERS_S)
    if ctx.paths.machine(machine.id).kubernetes_marker.exists():
        kubernetes_services.begin(ctx, machine, running)
    delay_s = _RETRY_FIRST_S
    while True:
        try:
            await running.agent.wait_ready(_READY_S)
            if await _follow(ctx, machine, running, forwards):
                delay_s = _RETRY_FIRST_S
        except ArcboxError as error:
            _log.debug("the guest of %s is not watched: %s", machine.spec.name, error)
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, _RETRY_MOST_S)


async def _follow(ctx: Context, machine: Machine, running: Running, forwards: Forwards) -> bool:
    """Follow what the guest says until that ends; tell whether it had said all that there is."""
    told: set[str] = set()
    synced = False
    try:
        async with aclosing(running.agent.watch()) as events:
            async for event in events:
                _take(ctx, machine, forwards, event, told)
                synced = synced or isinstance(event, Synced)
                # What the guest says next waits: it cannot say more than can be done.
                await forwards.settled(_SETTLE_S)
    except ArcboxError as error:
        _log.debug("the guest of %s is not watched any more: %s", machine.spec.name, error)
    return synced


def _take(
    ctx: Context, machine: Machine, forwards: Forwards, event: GuestEvent, told: set[str]
) -> None:
    if kubernetes_port.owns(getattr(event, "container_id", None)):
        return  # these forwards are the host's, not a container's
    match event:
        case PortsPublished(container_id, source, bindings):
            wanted = plan.published(bindings, ctx.settings.published_address)
            forwards.publish(container_id, source, wanted)
            if wanted and len(told) < MAX_FORWARDS:
                told.add(container_id)
        case PortsWithdrawn(container_id):
            forwards.withdraw(container_id)
            told.discard(container_id)
        case Synced():
            forwards.synced(frozenset(told).union(filter(kubernetes_port.owns, forwards.owners())))
        case RuntimeWanted():
            _supply(ctx, machine, "runtime", ctx.runtime_wanted)
        case KubernetesWanted():
            _supply(ctx, machine, "Kubernetes", ctx.kubernetes_wanted)


def _supply(
    ctx: Context, machine: Machine, what: str, supply: Callable[[str], Awaitable[None]] | None
) -> None:
    if supply is None:
        _log.warning("the guest of %s wants its %s, which is not there", machine.spec.name, what)
        return

    async def work() -> None:
        try:
            await supply(machine.id)
        except ArcboxError as error:
            _log.warning("the %s of %s was not plugged in: %s", what, machine.spec.name, error)

    name = f"{what} disk of {machine.spec.name}"
    if not ctx.works_on(name):
        ctx.in_background(work(), name)


def _completed(ctx: Context, asked: UserForward) -> UserForward:
    guest_address = plan.parse_address(asked.guest_address)
    if asked.host_port:
        plan.check_port(asked.host_port, "host")
    if plan.is_any(guest_address):
        raise InvalidArgumentError(
            f"{asked.guest_address[:60]!r} is no address that can be reached",
            hint="leave it out for the machine's own address",
        )
    return UserForward(
        protocol=plan.check_protocol(asked.protocol),
        host_address=plan.parse_address(asked.host_address) or ctx.settings.published_address,
        host_port=asked.host_port,
        guest_address="" if guest_address == GUEST_ADDRESS else guest_address,
        guest_port=plan.check_port(asked.guest_port, "guest"),
    )


def _check_free(machine: Machine, wanted: UserForward, own: tuple[UserForward, ...]) -> None:
    for each in own:
        if (each.protocol, each.host_port) == (wanted.protocol, wanted.host_port) and (
            plan.overlap(each.host_address, wanted.host_address)
        ):
            name = machine.spec.name
            raise PortExistsError(
                f"{plan.asked(each)} is forwarded to {each.guest_address or 'the'} port "
                f"{each.guest_port} of machine {name!r} already",
                hint=f"remove it with: arcbox port rm {name} {each.host_port}/{each.protocol}",
            )


async def _free_port(ctx: Context, wanted: UserForward, own: tuple[UserForward, ...]) -> int:
    kept = {machine.ssh_port for machine in ctx.registry.all()}
    kept |= {each.host_port for each in own} | ctx.ports.user_ports()
    for _ in range(_PORT_TRIES):
        port = sockets.free_port(plan.asked(wanted))
        if port not in kept:
            return port
    raise NoRoomError(f"no free port was found on {wanted.host_address}")


async def _keep(
    ctx: Context, machine: Machine, forwards: Forwards, own: tuple[UserForward, ...]
) -> None:
    await asyncio.to_thread(record.write, ctx.paths.machine(machine.id).ports, own)
    forwards.set_user(own)


async def _load(ctx: Context, machine: Machine, forwards: Forwards) -> tuple[UserForward, ...]:
    if forwards.user is None:
        own = await asyncio.to_thread(record.read, ctx.paths.machine(machine.id).ports)
        forwards.set_user(own)
        return own
    return forwards.user


async def _load_or_log(ctx: Context, machine: Machine, forwards: Forwards) -> None:
    try:
        await _load(ctx, machine, forwards)
    except StoreError as error:
        _log.error("%s", error.message)


def _forward(port: Port) -> UserForward:
    return UserForward(
        port.protocol, port.host_address, port.host_port, port.guest_address, port.guest_port
    )


def _explained(ctx: Context, machine: Machine, port: Port) -> Port:
    if port.state is PortState.WAITING and machine.id not in ctx.running:
        return replace(port, detail=f"the machine is {machine.state}")
    return port
