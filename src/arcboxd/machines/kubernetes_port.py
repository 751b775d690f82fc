"""The port of the host at which a machine's cluster is reached: chosen once, and kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

from arcboxd import durable
from arcboxd.domain.machine import Machine
from arcboxd.errors import NoRoomError
from arcboxd.machines.context import Context
from arcboxd.ports import sockets
from arcboxd.ports.plan import LOOPBACK, Wanted

FIRST_PORT = 16443
GUEST_PORT = 6443
OWNER = "kubernetes"
"""Whose the forward is, beside containers' ids; what a guest says of it is not heard.

A service's forwards are those of ``kubernetes/NAMESPACE/NAME``.
"""
SOURCE = "kubernetes"

_PORTS = 1000


def owns(owner: str | None) -> bool:
    """Tell whether forwards are the host's doing, for a cluster, and not of a guest's events."""
    return owner is not None and owner.partition("/")[0] == OWNER


def find(ctx: Context, machine_id: str) -> int:
    """Give a machine's port; 0 when it has none."""
    return _read(ctx.paths.machine(machine_id).kubernetes_port)


async def reserve(ctx: Context, machine: Machine) -> int:
    """Give a machine's port, choosing the first that is free if it has none, and open it.

    Raises:
        NoRoomError: There is none.
        StoreError: It cannot be recorded.
    """
    async with ctx.kubernetes_ports:
        port = find(ctx, machine.id)
        if not port:
            port = _free_port(ctx)
            path = ctx.paths.machine(machine.id).kubernetes_port
            with durable.storing("record the cluster's port"):
                await asyncio.to_thread(durable.write, path, f"{port}\n".encode())
    publish(ctx, machine)
    return port


async def release(ctx: Context, machine: Machine) -> None:
    """Close a machine's port and forget it. Idempotent.

    Raises:
        StoreError: It cannot be forgotten.
    """
    ctx.ports.of(machine.id, machine.spec.name).withdraw(OWNER)
    with durable.storing("forget the cluster's port"):
        ctx.paths.machine(machine.id).kubernetes_port.unlink(missing_ok=True)


def publish(ctx: Context, machine: Machine) -> None:
    """Have a machine's port open whenever it runs, if it has one. Idempotent."""
    if port := find(ctx, machine.id):
        wanted = Wanted("tcp", LOOPBACK, port, "", GUEST_PORT)
        ctx.ports.of(machine.id, machine.spec.name).publish(OWNER, SOURCE, (wanted,))


def _free_port(ctx: Context) -> int:
    machines = ctx.registry.all()
    kept = {machine.ssh_port for machine in machines} | ctx.ports.user_ports()
    kept |= {find(ctx, machine.id) for machine in machines}
    for port in range(FIRST_PORT, FIRST_PORT + _PORTS):
        if port not in kept:
            try:
                sockets.probe(Wanted("tcp", LOOPBACK, port, "", GUEST_PORT))
            except NoRoomError:
                continue
            return port
    raise NoRoomError(f"no port from {FIRST_PORT} to {FIRST_PORT + _PORTS - 1} is free")


def _read(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return 0
    port = int(text) if text.isascii() and text.isdecimal() and len(text) <= len("65535") else 0
    return port if port < 1 << 16 else 0
