"""Configure: all is checked first, then each part done; one that fails is a warning."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH110, PTH112, PTH113, PTH114, PTH202

from __future__ import annotations

import ipaddress
import logging
import os
import re
from typing import TYPE_CHECKING

from arcbox_agent import files
from arcbox_agent.threads import in_thread
from arcboxd.errors import ArcboxError, InvalidArgumentError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from arcbox_agent.kernel import Kernel

_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_USER_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}")
_KEY_TYPE = re.compile(r"[a-z0-9]{1,16}")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN OPENSSH PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END OPENSSH PRIVATE KEY-----\n?"
)
_MAX_ENTROPY_BYTES = 4096
_MAX_UID = 0xFFFFFFFD
_NOBODY = 65534

_log = logging.getLogger(__name__)


async def configure(
    request: guest_pb2.ConfigureRequest, kernel: Kernel, root: str
) -> guest_pb2.ConfigureResponse:
    """Give the machine its identity, then let a held init go on. Idempotent.

    Raises:
        InvalidArgumentError: A value can never be accepted; nothing was changed.
    """
    check(request)
    warnings: list[str] = []
    for what, step in _steps(request, kernel, root):
        try:
            step()
        except (OSError, ArcboxError, ValueError) as error:
            _warn(warnings, what, error)
    if request.HasField("network"):
        network = request.network
        try:
            await kernel.configure_network(network.address, network.gateway)
            _set_resolvers(root, list(network.dns_servers))
        except OSError as error:
            _warn(warnings, "configure the network", error)
    _open_gate(root)
    if request.disk_bytes:
        _grow(kernel)
    return guest_pb2.ConfigureResponse(boot_id=_boot_id(), warnings=warnings)


def _steps(
    request: guest_pb2.ConfigureRequest, kernel: Kernel, root: str
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Give what was asked for, named. Entropy and clock first: what follows may depend on them."""
    if request.entropy:
        yield "add entropy", lambda: kernel.add_entropy(request.entropy)
    if request.clock_unix_nanos > 0:
        yield "set the clock", lambda: kernel.set_clock(request.clock_unix_nanos)
    if request.hostname:
        yield "set the hostname", lambda: _set_hostname(kernel, root, request.hostname)
    if request.machine_id:
        yield "set the machine id", lambda: _set_machine_id(root, request.machine_id)
    if request.ssh_host_keys:
        yield "set the SSH host keys", lambda: _set_host_keys(kernel, root, request)
    if request.HasField("user"):
        yield f"set up the user {request.user.name}", lambda: _set_user(root, request.user)


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
    try:
        if network.address:
            ipaddress.IPv4Interface(network.address)
        if network.gateway:
            ipaddress.IPv4Address(network.gateway)
        for server in network.dns_servers:
            ipaddress.ip_address(server)
    except ValueError as error:
        raise InvalidArgumentError(f"The network makes no sense: {error}.") from error


def _set_hostname(kernel: Kernel, root: str, name: str) -> None:
    kernel.set_hostname(name)
    files.write(f"{root}/etc/hostname", f"{name}\n")
    path = f"{root}/etc/hosts"
    lines = [line for line in files.read(path).splitlines() if not line.startswith("127.0.1.1")]
    if not lines:
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost"]
    lines.insert(1, f"127.0.1.1\t{name}")
    files.write(path, "\n".join(lines) + "\n")


def _set_machine_id(root: str, machine_id: str) -> None:
    files.write(f"{root}/etc/machine-id", f"{machine_id}\n", mode=0o444)
    dbus = f"{root}/var/lib/dbus/machine-id"
    if os.path.isfile(dbus) and not os.path.islink(dbus):  # a copy; mostly it is a link
        files.write(dbus, f"{machine_id}\n")


def _set_host_keys(kernel: Kernel, root: str, request: guest_pb2.ConfigureRequest) -> None:
    folder = f"{root}/etc/ssh"
    if not os.path.isdir(folder):
        return
    changed = False
    for key in request.ssh_host_keys:
        path = f"{folder}/ssh_host_{key.type}_key"
        private, public = (text.rstrip("\n") + "\n" for text in (key.private_key, key.public_key))
        changed |= files.write(path, private, mode=0o600)
        changed |= files.write(f"{path}.pub", public, mode=0o644)
    if changed:
        kernel.reload_sshd()


def _set_user(root: str, user: guest_pb2.User) -> None:
    from arcbox_agent.accounts import authorize_keys, ensure_user

    account = ensure_user(root, user.name, user.uid)
    authorize_keys(root, account, list(user.authorized_keys))


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

    in_thread(kernel.grow_root, name="grow the disk").add_done_callback(report)


def _open_gate(root: str) -> None:
    """Let the initramfs go on with init. After the first call of a boot nobody listens."""
    try:
        fd = os.open(f"{root}/run/arcbox/gate", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"go\n")
    except BrokenPipeError:  # it has just stopped waiting
        return
    finally:
        os.close(fd)


def _boot_id() -> str:
    return files.read("/proc/sys/kernel/random/boot_id").strip()
