"""Configure: all is checked first, then each part done; one that fails is a warning."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH110, PTH112, PTH113, PTH114, PTH202

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from arcbox_agent import files, forker
from arcbox_agent.clone import write_line
from arcbox_agent.network import parse_address, parse_cidr
from arcbox_agent.threads import in_thread
from arcboxd.errors import ArcboxError, InvalidArgumentError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_agent.clone import Clone
    from arcbox_agent.kernel import Kernel

_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_USER_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}")
_KEY_TYPE = re.compile(r"[a-z0-9]{1,16}")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN OPENSSH PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END OPENSSH PRIVATE KEY-----\n?"
)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MULTICAST = 1  # a bit of a MAC's first byte
_MAX_ENTROPY_BYTES = 4096
_CLOCK_TOLERANCE_NS = 1_000_000_000  # the link's `clock` adjusts it finely
_MAX_UID = 0xFFFFFFFD
_NOBODY = 65534

_log = logging.getLogger(__name__)
_Write = Callable[..., bool]  # `files.write` or `files.overwrite`
_background: set[asyncio.Future[None]] = set()


async def configure(
    request: guest_pb2.ConfigureRequest, kernel: Kernel, clone: Clone, root: str
) -> guest_pb2.ConfigureResponse:
    """Give the machine its identity, then let a held init go on. Idempotent.

    The first time after Settle it is a clone's: that also gets a boot id, and what Settle holds
    begins a little later.

    Raises:
        InvalidArgumentError: A value can never be accepted; nothing was changed.
    """
    check(request)
    if clone.settled and forker.current is not None and (os.cpu_count() or 1) > 1:
        forker.current.warm_up()  # by another processor, beside what comes now
    warnings = await _apply(request, kernel, clone, root, in_clone=clone.settled)
    if clone.settled:
        clone.begin_later(*([partial(_grow, kernel)] if request.disk_bytes else []))
    else:
        write_line(f"{root}/run/arcbox/gate")  # after the first call of a boot nobody listens
        if request.disk_bytes:
            _grow(kernel)
    clone.configured = request
    return guest_pb2.ConfigureResponse(boot_id=clone.boot_id(), warnings=warnings)


async def rehearse(kernel: Kernel, clone: Clone, root: str) -> None:
    """Do what a clone's request will do, so that it finds code and files in memory."""
    request = guest_pb2.ConfigureRequest()
    request.CopyFrom(clone.configured)
    request.clock_unix_nanos = 0  # it is over
    check(request)
    await _apply(request, kernel, clone, root, in_clone=True)


def withdraw(clone: Clone, root: str) -> None:
    """Take away what the last request wrote; files that a clone writes again are emptied.

    Raises:
        OSError: Something cannot be taken away.
    """
    identity = clone.configured
    files.overwrite(f"{root}/etc/hostname", "")
    files.overwrite(f"{root}/etc/machine-id", "")
    files.overwrite(f"{root}/etc/hosts", _hosts(root, ""))
    for key in identity.ssh_host_keys:
        path = f"{root}/etc/ssh/ssh_host_{key.type}_key"
        if os.path.isfile(path):
            files.overwrite(path, "")
            files.overwrite(f"{path}.pub", "")
    if identity.HasField("user"):
        user = guest_pb2.User(name=identity.user.name, uid=identity.user.uid)
        _set_user(root, user, in_place=True)


async def background_ended() -> None:
    """Wait until what earlier calls started has ended."""
    if _background:
        await asyncio.wait(_background)


async def _apply(
    request: guest_pb2.ConfigureRequest, kernel: Kernel, clone: Clone, root: str, *, in_clone: bool
) -> list[str]:
    """Do all that was asked for; return what could not be done."""
    warnings: list[str] = []
    for what, step in _steps(request, kernel, clone, root, in_clone=in_clone):
        try:
            step()
        except (OSError, ArcboxError, ValueError) as error:
            _warn(warnings, what, error)
    if request.HasField("network"):
        network = request.network
        try:
            as_in_template = in_clone and _differ_in_mac_only(network, clone.configured.network)
            await kernel.configure_network(
                network.address, network.gateway, network.mac, only_mac=as_in_template
            )
            if not as_in_template:
                _set_resolvers(root, list(network.dns_servers))
        except OSError as error:
            _warn(warnings, "configure the network", error)
    return warnings


def _steps(
    request: guest_pb2.ConfigureRequest, kernel: Kernel, clone: Clone, root: str, *, in_clone: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Give what was asked for, named. Entropy and clock first: what follows may depend on them."""
    write = files.overwrite if in_clone else files.write
    if request.entropy:
        yield "add entropy", lambda: kernel.add_entropy(request.entropy)
    if in_clone:
        yield "give the clone a boot id", lambda: clone.identify(request.machine_id)
    wanted = request.clock_unix_nanos
    if wanted > 0 and abs(time.time_ns() - wanted) > _CLOCK_TOLERANCE_NS:
        yield "set the clock", lambda: kernel.set_clock(wanted)
    if request.hostname:
        yield "set the hostname", lambda: _set_hostname(kernel, root, request.hostname, write)
    if request.machine_id:
        if not in_clone and files.read(f"{root}/etc/machine-id").strip() != request.machine_id:
            yield "leave missing disks out of fstab", lambda: _adapt_fstab(kernel, root)
        yield "set the machine id", lambda: _set_machine_id(root, request.machine_id, write)
    if request.ssh_host_keys:
        yield "set the SSH host keys", lambda: _set_host_keys(kernel, root, request, write)
    if request.HasField("user"):
        what = f"set up the user {request.user.name}"
        yield what, lambda: _set_user(root, request.user, in_place=in_clone)


def _warn(warnings: list[str], what: str, error: Exception) -> None:
    sentence = f"Could not {what}: {error}."
    _log.warning("%s", sentence)
    warnings.append(sentence)


def check(request: guest_pb2.ConfigureRequest) -> None:
    """Check every value.

    Raises:
        InvalidArgumentError: One can never be accepted.
    """
    _match(_MACHINE_ID, request.machine_id, "machine id", optional=True)
    _match(_HOSTNAME, request.hostname, "hostname", optional=True)
    if len(request.entropy) > _MAX_ENTROPY_BYTES:
        raise InvalidArgumentError(f"More than {_MAX_ENTROPY_BYTES} bytes of entropy.")
    for key in request.ssh_host_keys:
        _match(_KEY_TYPE, key.type, "type of an SSH host key")
        if not _PRIVATE_KEY.fullmatch(key.private_key):
            raise InvalidArgumentError("An SSH host key is not in OpenSSH's format.")
        _check_key(key.public_key.rstrip("\n"))
    if request.HasField("user"):
        _match(_USER_NAME, request.user.name, "user name")
        if request.user.uid > _MAX_UID or request.user.uid == _NOBODY:
            raise InvalidArgumentError(f"No user can have the uid {request.user.uid}.")
        for line in request.user.authorized_keys:
            _check_key(line)
    if request.HasField("network"):
        _check_network(request.network)


def _match(pattern: re.Pattern[str], value: str, what: str, *, optional: bool = False) -> None:
    if not (optional and not value) and not pattern.fullmatch(value):
        raise InvalidArgumentError(f"{value[:80]!r} cannot be a {what}.")


def _check_key(line: str) -> None:
    if not line.strip() or line.startswith("#") or not line.isprintable():
        raise InvalidArgumentError(f"{line[:80]!r} is not an SSH public key on one line.")


def _check_network(network: guest_pb2.Network) -> None:
    _match(_MAC, network.mac, "MAC address", optional=True)
    if network.mac and int(network.mac[:2], 16) & _MULTICAST:
        raise InvalidArgumentError(f"{network.mac} is a group's MAC address, not a card's.")
    try:
        if network.address:
            parse_cidr(network.address)
        if network.gateway:
            parse_address(network.gateway)
        for server in network.dns_servers:
            parse_address(server, ipv6=":" in server)
    except ValueError as error:
        raise InvalidArgumentError(f"The network makes no sense: {error}.") from error


def _differ_in_mac_only(one: guest_pb2.Network, other: guest_pb2.Network) -> bool:
    return (one.address, one.gateway) == (other.address, other.gateway) and (
        one.dns_servers == other.dns_servers
    )


def _set_hostname(kernel: Kernel, root: str, name: str, write: _Write) -> None:
    kernel.set_hostname(name)
    write(f"{root}/etc/hostname", f"{name}\n")
    write(f"{root}/etc/hosts", _hosts(root, name))


def _hosts(root: str, name: str) -> str:
    """Give /etc/hosts with the machine's own name, or without one."""
    text = files.read(f"{root}/etc/hosts")
    lines = [line for line in text.splitlines() if not line.startswith("127.0.1.1")]
    if not lines:
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost"]
    if name:
        lines.insert(1, f"127.0.1.1\t{name}")
    return "\n".join(lines) + "\n"


def _set_machine_id(root: str, machine_id: str, write: _Write) -> None:
    write(f"{root}/etc/machine-id", f"{machine_id}\n", mode=0o444)
    dbus = f"{root}/var/lib/dbus/machine-id"
    if os.path.isfile(dbus) and not os.path.islink(dbus):  # a copy; mostly it is a link
        write(dbus, f"{machine_id}\n")


def _adapt_fstab(kernel: Kernel, root: str) -> None:
    """Do so once, before a machine's first init: whatever it has later is its user's."""
    path = f"{root}/etc/fstab"
    if text := files.read(path):
        from arcbox_agent.fstab import without_missing

        files.write(path, without_missing(text, kernel.has_disk))


def _set_host_keys(
    kernel: Kernel, root: str, request: guest_pb2.ConfigureRequest, write: _Write
) -> None:
    folder = f"{root}/etc/ssh"
    if not os.path.isdir(folder):
        return
    changed = False
    for key in request.ssh_host_keys:
        path = f"{folder}/ssh_host_{key.type}_key"
        private, public = (text.rstrip("\n") + "\n" for text in (key.private_key, key.public_key))
        changed |= write(path, private, mode=0o600)
        changed |= write(f"{path}.pub", public, mode=0o644)
    if changed:
        kernel.reload_sshd()


def _set_user(root: str, user: guest_pb2.User, *, in_place: bool) -> None:
    from arcbox_agent.accounts import authorize_keys, ensure_user

    account = ensure_user(root, user.name, user.uid)
    authorize_keys(root, account, list(user.authorized_keys), in_place=in_place)


def _set_resolvers(root: str, servers: list[str]) -> None:
    path = f"{root}/etc/resolv.conf"
    # A distribution that has a resolver of its own knows better.
    if servers and not (os.path.exists(path) and os.path.getsize(path)):
        files.write(path, "".join(f"nameserver {server}\n" for server in servers))


def _grow(kernel: Kernel) -> None:
    """Grow the disk beside whatever comes next: it may take seconds. A failure is logged."""

    def report(growth: asyncio.Future[None]) -> None:
        if (error := growth.exception()) is not None:
            _log.warning("cannot grow the root filesystem: %s", error)

    growth = in_thread(kernel.grow_root, name="grow the disk")
    _background.add(growth)
    growth.add_done_callback(_background.discard)
    growth.add_done_callback(report)
