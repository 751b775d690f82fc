"""SSH to a machine: its keys, made on the host, and the command that uses them."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from arcboxd.aio import complete
from arcboxd.domain.guest import SshHostKey
from arcboxd.domain.machine import Machine
from arcboxd.durable import storing
from arcboxd.errors import NoRoomError, PreconditionError
from arcboxd.hypervisor.base import Forward
from arcboxd.machines.context import Context
from arcboxd.paths import MachinePaths

HOST = "127.0.0.1"
GUEST_PORT = 22
_SSHD_TIMEOUT_S = 60.0
_PORT_TRIES = 64


@dataclass(frozen=True, slots=True)
class SshInfo:
    """How to reach a machine by SSH."""

    host: str
    port: int
    user: str
    identity_file: Path
    command: str
    """Ready to paste into a shell."""


async def ssh_info(ctx: Context, ref: str) -> SshInfo:
    """Tell how to reach a running machine, once its SSH server listens.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
        PreconditionError: No SSH server listens in the guest.
    """
    machine, running = await ctx.running_machine(ref, "reach")
    timeout_s = ctx.scaled(_SSHD_TIMEOUT_S, machine)
    if not await running.agent.wait_for_port(GUEST_PORT, timeout_s):
        name = machine.spec.name
        raise PreconditionError(
            f"machine {name!r} has no SSH server: nothing listened on its port {GUEST_PORT} "
            f"within {timeout_s:g} s",
            hint="look at it with: "
            + shlex.join(["arcbox", "exec", name, "--", "systemctl", "status", "ssh"]),
        )
    paths = ctx.paths.machine(machine.id)
    return SshInfo(HOST, machine.ssh_port, machine.user, paths.ssh_key, command(machine, paths))


def command(machine: Machine, paths: MachinePaths) -> str:
    """Give the shell command that logs in to a machine, whatever its paths are made of."""
    options = [
        f"HostKeyAlias={host_key_alias(machine)}",
        f"UserKnownHostsFile={_config_path(paths.ssh_known_hosts)}",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
    ]
    argv = ["ssh", "-i", str(paths.ssh_key), "-p", str(machine.ssh_port)]
    if "%" in str(paths.ssh_key):
        # ssh looks for the file of `-i` before, and opens it after, it expands percent signs.
        argv[1:3] = ["-o", f"IdentityFile={_config_path(paths.ssh_key)}"]
    for option in options:
        argv += ["-o", option]
    return shlex.join([*argv, f"{machine.user}@{HOST}"])


def host_key_alias(machine: Machine) -> str:
    """Name the machine in ``known_hosts``, where its port, which may change, plays no part."""
    return f"arcbox-{machine.id}"


async def make_keys(machine: Machine, paths: MachinePaths) -> None:
    """Make the user's key pair and the guest's host key, in the machine's directory.

    Raises:
        NoRoomError: The disk is full.
        StoreError: They cannot be written.
    """
    comment = f"arcbox-{machine.spec.name}"
    with storing("write the machine's keys"):
        # To its end: what a cancelled one left to a thread would be written after the cleaning up.
        await complete(asyncio.to_thread(_make_keys, machine, paths, comment))


def _make_keys(machine: Machine, paths: MachinePaths, comment: str) -> None:
    _make_key(paths.ssh_key, comment)
    _make_key(paths.ssh_host_key, comment)
    kind, key = _public(paths.ssh_host_key).split()[:2]
    paths.ssh_known_hosts.write_text(f"{host_key_alias(machine)} {kind} {key}\n")
    write_config(machine, paths)


async def make_host_key(paths: MachinePaths, comment: str) -> None:
    """Make the guest's host key; the same errors as `make_keys`."""
    with storing("write the machine's host key"):
        await complete(asyncio.to_thread(_make_key, paths.ssh_host_key, comment))


def write_config(machine: Machine, paths: MachinePaths) -> None:
    """Write the file that ``ssh -F``, ``scp -F`` and ``rsync -e 'ssh -F …'`` take."""
    lines = [
        f"Host {machine.spec.name} arcbox-{machine.spec.name}",
        f"  HostName {HOST}",
        *([f"  Port {machine.ssh_port}"] if machine.ssh_port else []),
        f"  User {machine.user}",
        f"  IdentityFile {_config_path(paths.ssh_key)}",
        "  IdentitiesOnly yes",
        f"  HostKeyAlias {host_key_alias(machine)}",
        f"  UserKnownHostsFile {_config_path(paths.ssh_known_hosts)}",
        "  StrictHostKeyChecking yes",
    ]
    # A reader sees the old file or the new: a user's ssh may begin at any moment.
    temporary = paths.ssh_config.with_name(".ssh_config.tmp")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.rename(paths.ssh_config)


def authorized_keys(machine: Machine, paths: MachinePaths) -> tuple[str, ...]:
    """Give the keys that the machine's user accepts: its own and the one asked for."""
    return (_public(paths.ssh_key), *machine.spec.ssh_public_keys)


def host_keys(paths: MachinePaths) -> tuple[SshHostKey, ...]:
    """Give the guest its host key."""
    return (SshHostKey("ed25519", paths.ssh_host_key.read_text(), _public(paths.ssh_host_key)),)


def taken_ports(ctx: Context, machine: Machine) -> frozenset[int]:
    """Give the ports that others than ``machine`` keep."""
    others = (m.ssh_port for m in ctx.registry.all() if m.id != machine.id and m.ssh_port)
    return frozenset(others) | ctx.ports.user_ports() - {machine.ssh_port}


def choose_port(wanted: int, taken: frozenset[int]) -> int:
    """Find a free port of the loopback interface: the wanted one, else the kernel's choice.

    Another program may take it before QEMU does; the launch then says so.

    Args:
        wanted: The port that the machine had; 0 for none.
        taken: Ports that other machines keep.

    Raises:
        NoRoomError: There is none.
    """
    for candidate in (wanted, *([0] * _PORT_TRIES)) if wanted else [0] * _PORT_TRIES:
        with socket.socket() as probe:
            # As QEMU binds: a port whose last connection only just ended is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, candidate))
            except OSError:
                continue
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
    raise NoRoomError("no free TCP port was found on 127.0.0.1")


def forward(port: int) -> Forward:
    """Give the forward to the guest's SSH server."""
    return Forward("tcp", HOST, port, GUEST_PORT)


def _make_key(path: Path, comment: str) -> None:
    """Write an Ed25519 key and, with the suffix ``.pub``, its public half, as OpenSSH does."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    path.with_name(f"{path.name}.pub").write_bytes(public + f" {comment}\n".encode())


def _public(private: Path) -> str:
    return private.with_name(private.name + ".pub").read_text().strip()


def _config_path(path: Path) -> str:
    """Quote a path for ssh_config(5), where a percent sign begins a token."""
    return '"' + str(path).replace("%", "%%") + '"'
