"""Configure: all is checked first, then each part done; one that fails is a warning."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH110, PTH112, PTH113, PTH114, PTH202

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from arcbox_agent import files
from arcbox_agent.clone import write_line
from arcbox_agent.network import parse_address, parse_cidr
from arcbox_agent.threads import in_thread
from arcboxd import aio
from arcboxd.errors import ArcboxError, InvalidArgumentError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_agent.clone import Clone
    from arcbox_agent.kernel import Kernel

# Not regular expressions: their compiler takes long under emulation.
_DIGITS = "0123456789"
_HEX = f"{_DIGITS}abcdef"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_LETTERS = f"{_LOWER}{_LOWER.upper()}"
_KEY_BEGINS = "-----BEGIN OPENSSH PRIVATE KEY-----\n"
_KEY_ENDS = "\n-----END OPENSSH PRIVATE KEY-----"
_MACHINE_ID_DIGITS = 32
_MAC_BYTES = 6
_MAX_HOSTNAME = 64
_MAX_USER_NAME = 32
_MAX_KEY_TYPE = 16
_MULTICAST = 1  # a bit of a MAC's first byte
_MAX_ENTROPY_BYTES = 4096
_CLOCK_TOLERANCE_NS = 1_000_000_000  # the link's `clock` adjusts it finely
_MAX_UID = 0xFFFFFFFD
_NOBODY = 65534

_log = logging.getLogger(__name__)
_Write = Callable[..., bool]  # `files.write` or `files.overwrite`
_ANSWER_S = 0.1  # by then it has left
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
    warnings = await _apply(request, kernel, clone, root, in_clone=clone.settled)
    grow = [partial(_grow, kernel)] if request.disk_bytes else []
    if clone.settled:
        clone.begin_later(*grow)
    else:
        # After the first call of a boot nobody listens at the gate.
        _after_the_answer(partial(write_line, f"{root}/run/arcbox/gate"), *grow)
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
    while _background:
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
    if request.machine_id:
        _require(_is_machine_id(request.machine_id), request.machine_id, "machine id")
    if request.hostname:
        _require(_is_hostname(request.hostname), request.hostname, "hostname")
    if len(request.entropy) > _MAX_ENTROPY_BYTES:
        raise InvalidArgumentError(f"More than {_MAX_ENTROPY_BYTES} bytes of entropy.")
    for key in request.ssh_host_keys:
        _require(_is_key_type(key.type), key.type, "type of an SSH host key")
        if not _is_private_key(key.private_key):
            raise InvalidArgumentError("An SSH host key is not in OpenSSH's format.")
        _check_key(key.public_key.rstrip("\n"))
    if request.HasField("user"):
        _require(_is_user_name(request.user.name), request.user.name, "user name")
        if request.user.uid > _MAX_UID or request.user.uid == _NOBODY:
            raise InvalidArgumentError(f"No user can have the uid {request.user.uid}.")
        for line in request.user.authorized_keys:
            _check_key(line)
    if request.HasField("network"):
        _check_network(request.network)


def _require(sound: bool, value: str, what: str) -> None:  # noqa: FBT001
    if not sound:
        raise InvalidArgumentError(f"{value[:80]!r} cannot be a {what}.")


def _consists(text: str, characters: str, *, most: int) -> bool:
    return 0 < len(text) <= most and not text.strip(characters)


def _is_machine_id(text: str) -> bool:
    return len(text) == _MACHINE_ID_DIGITS and not text.strip(_HEX)


def _is_hostname(text: str) -> bool:
    ends = _LETTERS + _DIGITS
    return (
        _consists(text, f"{ends}._-", most=_MAX_HOSTNAME) and text[0] in ends and text[-1] in ends
    )


def _is_user_name(text: str) -> bool:
    first = f"{_LOWER}_"
    return _consists(text, f"{first}{_DIGITS}.-", most=_MAX_USER_NAME) and text[0] in first


def _is_key_type(text: str) -> bool:
    return _consists(text, _LOWER + _DIGITS, most=_MAX_KEY_TYPE)


def _is_private_key(text: str) -> bool:
    text = text.removesuffix("\n")
    framed = text.startswith(_KEY_BEGINS) and text.endswith(_KEY_ENDS)
    body = text[len(_KEY_BEGINS) : -len(_KEY_ENDS)]
    return framed and _consists(body, f"{_LETTERS}{_DIGITS}+/=\n", most=len(text))


def _is_mac(text: str) -> bool:
    parts = text.split(":")
    return len(parts) == _MAC_BYTES and all(
        len(part) == 2 and not part.strip(_HEX)  # noqa: PLR2004  hexadecimal digits of a byte
        for part in parts
    )


def _check_key(line: str) -> None:
    if not line.strip() or line.startswith("#") or not line.isprintable():
        raise InvalidArgumentError(f"{line[:80]!r} is not an SSH public key on one line.")


def _check_network(network: guest_pb2.Network) -> None:
    if network.mac:
        _require(_is_mac(network.mac), network.mac, "MAC address")
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


def _after_the_answer(*steps: Callable[[], object]) -> None:
    """Do so once the answer is likely to have left, which they would compete with."""

    async def later() -> None:
        await asyncio.sleep(_ANSWER_S)
        for step in steps:
            step()

    task = aio.spawn(later(), name="what follows Configure")
    _background.add(task)
    task.add_done_callback(_background.discard)


def _grow(kernel: Kernel) -> None:
    """Grow the disk beside whatever comes next: it may take seconds. A failure is logged."""

    def report(growth: asyncio.Future[None]) -> None:
        if (error := growth.exception()) is not None:
            _log.warning("cannot grow the root filesystem: %s", error)

    growth = in_thread(kernel.grow_root, name="grow the disk")
    _background.add(growth)
    growth.add_done_callback(_background.discard)
    growth.add_done_callback(report)
