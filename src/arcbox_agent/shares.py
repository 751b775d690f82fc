"""Mount and Unmount: directories of the host, which come as devices while the system runs."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH103, PTH110, PTH112, PTH115, PTH116, PTH120, PTH123, PTH208

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from arcbox_agent import syscalls
from arcbox_agent.mounts import parse_mounts, read_mounts
from arcbox_agent.threads import in_thread
from arcboxd.errors import InvalidArgumentError, PreconditionError, TooLateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.mounts import Mount
    from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

_9P = "9p"
_TAG = re.compile(r"[A-Za-z0-9_-]{1,31}")
# Both sides see at once what the other writes: nothing is cached but the pages that are mapped.
_OPTIONS = "trans=virtio,version=9p2000.L,msize=512000,access=any,cache=mmap"
_MODULES = ("9p", "9pnet_virtio")
_BUSYBOX = "/run/arcbox/bundle/bin/busybox"
_TAGS = "/sys/bus/virtio/drivers/9pnet_virtio"
_WAIT_S = 60.0
_POLL_S = 0.02
_MAX_NAMED = 8

_log = logging.getLogger(__name__)
_targets: dict[str, str] = {}
"""Where each share is, by the path that it was asked for: a link on the way may change later."""


async def mount(request: guest_pb2.MountRequest, cgroups: Cgroups) -> None:
    """Mount a share, waiting for its device and for the kernel's modules. Idempotent.

    Raises:
        InvalidArgumentError: The tag or the path cannot be one.
        UnsupportedError: It is of a filesystem that this agent or the kernel does not know.
        PreconditionError: The kernel refuses, or the path cannot be a directory.
        TooLateError: The device did not appear.
    """
    _check(request)
    target = _real(request.path)
    if _is_mounted(target, request.tag):
        _targets[request.path] = target
        return
    try:
        async with asyncio.timeout(_WAIT_S):
            await _load_modules(cgroups)
            while request.tag not in _tags():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise TooLateError(f"The share {request.tag} did not appear.") from error
    try:
        _make_folder(target)
        flags = syscalls.MS_RDONLY if request.readonly else 0
        attach = partial(syscalls.mount, request.tag, target, _9P, flags, _OPTIONS)
        await in_thread(attach, name="mount")
    except OSError as error:
        raise PreconditionError(
            f"{request.path} cannot be mounted in the guest: {error.strerror}."
        ) from error
    _targets[request.path] = target
    _log.info("mounted %s on %s", request.tag, target)


async def unmount(request: guest_pb2.UnmountRequest) -> None:
    """Unmount a share, so that its device can go; one that is not mounted is no error.

    Raises:
        PreconditionError: It is in use; names who uses it.
    """
    target = _targets.get(request.path) or _real(request.path)
    mounts = read_mounts()
    here = [each for each in mounts if each.target == target and each.filesystem == _9P]
    if not here:
        _targets.pop(request.path, None)
        return
    tag = here[-1].source
    if elsewhere := sorted({each.target for each in mounts if _hinders(each, tag, target)}):
        raise _in_use(request.path, [f"the mount {each}" for each in elsewhere])
    try:
        await in_thread(partial(syscalls.unmount, target), name="unmount")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise PreconditionError(
                f"{request.path} cannot be unmounted in the guest: {error.strerror}."
            ) from error
        users = await in_thread(partial(_users, here[-1]), name="users")
        raise _in_use(request.path, users) from None
    if holders := _holders(tag):
        # Of a namespace of their own, into which it was copied: the device cannot go.
        syscalls.mount(tag, target, _9P, 0 if here[-1].writable else syscalls.MS_RDONLY, _OPTIONS)
        raise _in_use(request.path, holders)
    _targets.pop(request.path, None)
    _log.info("unmounted %s from %s", tag, target)


def _check(request: guest_pb2.MountRequest) -> None:
    if not _TAG.fullmatch(request.tag):
        raise InvalidArgumentError(f"{request.tag[:40]!r} cannot be a share's tag.")
    if request.filesystem != _9P:
        raise UnsupportedError(f"This agent cannot mount {request.filesystem[:20]!r}.")
    if not request.path.startswith("/") or "\0" in request.path:
        raise InvalidArgumentError(f"{request.path[:200]!r} is not an absolute path.")


def _real(path: str) -> str:
    return os.path.realpath(path)


def _is_mounted(target: str, tag: str) -> bool:
    here = [each for each in read_mounts() if each.target == target]
    return bool(here) and here[-1].filesystem == _9P and here[-1].source == tag


async def _load_modules(cgroups: Cgroups) -> None:
    """Load the filesystem; while the machine boots, its modules are not there at once."""
    from arcbox_agent.programs import run

    if _knows_filesystem():
        return
    while not _has_modules():  # noqa: ASYNC110 - nothing tells of them
        await asyncio.sleep(_POLL_S)
    status, said = await run(_BUSYBOX, "modprobe", "-a", *_MODULES, cgroups=cgroups)
    if status or not _knows_filesystem():
        raise UnsupportedError(f"The guest's kernel has no 9p: {said.strip() or status}.")


def _has_modules() -> bool:
    return os.path.exists(f"/lib/modules/{os.uname().release}/modules.dep")


def _knows_filesystem() -> bool:
    if not os.path.isdir(_TAGS):
        return False
    with open("/proc/filesystems", encoding="ascii") as file:
        return any(line.split()[-1:] == [_9P] for line in file)


def _tags() -> set[str]:
    """Give the tags of the shares that are plugged in."""
    found = set()
    for name in os.listdir(_TAGS):
        try:
            with open(f"{_TAGS}/{name}/mount_tag", encoding="ascii", errors="replace") as file:
                found.add(file.read().rstrip("\0\n"))
        except OSError:
            continue
    return found


def _make_folder(path: str) -> None:
    """Make a directory and those above it; they belong to whom the first of these belongs."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    if missing:
        owner = os.stat(path)
        os.makedirs(missing[0])
        for each in missing:
            os.chown(each, owner.st_uid, owner.st_gid)


def _hinders(each: Mount, tag: str, target: str) -> bool:
    """Tell whether a mount keeps a share's device from going: below it, or one more of it."""
    below = each.target.startswith(f"{target}/")
    return below or (each.source == tag and each.filesystem == _9P and each.target != target)


def _in_use(path: str, users: list[str]) -> PreconditionError:
    named = ", ".join(users[:_MAX_NAMED]) or "the kernel, perhaps a loop device or a swap file"
    more = f" and {len(users) - _MAX_NAMED} more" if len(users) > _MAX_NAMED else ""
    return PreconditionError(
        f"{path} is in use in the guest by {named}{more}", hint="end what uses it, and try again"
    )


def _users(mount: Mount) -> list[str]:
    """Name the processes that have a directory, file or mapping of a mount."""
    major, minor = map(int, mount.device.split(":"))
    device, text = os.makedev(major, minor), f"{major:02x}:{minor:02x}"
    return [
        _name(pid) for pid in _pids() if _uses(pid, mount.target, device) or _maps(pid, text)
    ]  # fmt: skip


def _uses(pid: str, target: str, device: int) -> bool:
    return any(_is_in(link, target, device) for link in _links(pid))


def _links(pid: str) -> Iterable[str]:
    yield from (f"/proc/{pid}/cwd", f"/proc/{pid}/root")
    try:
        yield from (f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return  # it has ended


def _is_in(link: str, target: str, device: int) -> bool:
    try:
        path = os.readlink(link)
        if path == target or path.startswith(f"{target}/"):
            return True
        # One that was renamed or deleted, or of another root, shows by its device alone.
        return path.startswith("/") and os.stat(link).st_dev == device
    except OSError:
        return False


def _maps(pid: str, device: str) -> bool:
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            return any(line.split(None, 5)[3] == device for line in file)
    except (OSError, IndexError):
        return False


def _holders(tag: str) -> list[str]:
    """Name a process of each other mount namespace that has a share."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    found = []
    for pid in _pids():
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                mounts = parse_mounts(file.read())
        except OSError:
            continue
        if any(each.source == tag and each.filesystem == _9P for each in mounts):
            found.append(_name(pid))
    return found


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"{file.read().strip()} ({pid})"
    except OSError:
        return f"process {pid}"
