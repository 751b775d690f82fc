"""Which directories of the host may be mounted where in a guest."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from arcboxd.domain.machine import DirectoryMount
from arcboxd.errors import InvalidArgumentError, MountExistsError, NoRoomError
from arcboxd.hypervisor.base import SHARE_SLOTS, ShareSlot

MAX_PATH_BYTES = 4095
"""Of the kernel, with the byte that ends it: PATH_MAX."""
MAX_NAME_BYTES = 255

_KEPT = frozenset(
    {
        *("/", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/run", "/sbin"),
        *("/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/var", "/var/lib", "/var/run"),
    }
)
"""What a mount would hide and the guest needs; directories below these may be mounted on."""
_KEPT_TREES = ("/dev", "/lib/modules", "/proc", "/run/arcbox", "/sys", "/usr/lib/modules")


def check_mounts(mounts: Iterable[DirectoryMount]) -> tuple[DirectoryMount, ...]:
    """Refuse mounts that cannot be, and give each of the others its slot.

    Raises:
        InvalidArgumentError: A path can never be accepted, or the host has no such directory.
        MountExistsError: One is at or below the place of another.
        NoRoomError: There are too many.
    """
    checked: tuple[DirectoryMount, ...] = ()
    for mount in mounts:
        checked = (*checked, check_mount(mount, checked))
    return checked


def check_mount(mount: DirectoryMount, known: tuple[DirectoryMount, ...]) -> DirectoryMount:
    """Refuse a mount that cannot be beside others, or give it its slot.

    Raises:
        InvalidArgumentError: A path can never be accepted, or the host has no such directory.
        MountExistsError: It is at, above or below the place of another.
        NoRoomError: There are too many.
    """
    _check_host_path(mount.host_path)
    guest_path = check_guest_path(mount.guest_path)
    for other in known:
        if f"{guest_path}/".startswith(f"{other.guest_path}/") or other.guest_path.startswith(
            f"{guest_path}/"
        ):
            raise MountExistsError(
                f"a mount on {guest_path!r} is in the way of the one on {other.guest_path!r}",
                hint="mounts cannot be at the same place, nor inside each other",
            )
    taken = {other.slot for other in known if other.readonly == mount.readonly}
    free = [number for number in range(SHARE_SLOTS) if number not in taken]
    if not free:
        kind = "read-only" if mount.readonly else "writable"
        raise NoRoomError(
            f"a machine has room for {SHARE_SLOTS} {kind} mounts", hint="mount a common parent"
        )
    return replace(mount, guest_path=guest_path, slot=free[0])


def check_guest_path(path: str) -> str:
    """Give a place in a guest in its plainest form, without slashes that say nothing.

    Raises:
        InvalidArgumentError: Nothing can be mounted there.
    """
    _check_path(path, "the guest path")
    if ".." in path.split("/"):
        raise InvalidArgumentError(
            f"the guest path {path[:200]!r} has a '..' in it", hint="write it without"
        )
    # normpath leaves two slashes at the beginning as they are: POSIX gives them a meaning.
    plain = posixpath.normpath("/" + path.lstrip("/"))
    if plain in _KEPT or any(f"{plain}/".startswith(f"{tree}/") for tree in _KEPT_TREES):
        raise InvalidArgumentError(
            f"a mount on {plain} would hide what the guest needs",
            hint="choose another place, such as /mnt/data",
        )
    return plain


def directory(mount: DirectoryMount) -> Path:
    """Give the directory that a mount is of, now, with every symbolic link followed.

    Raises:
        InvalidArgumentError: There is none, or it cannot be entered.
    """
    try:
        path = Path(mount.host_path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or "a loop of links"
        raise InvalidArgumentError(
            f"the host path {mount.host_path!r} cannot be mounted: {why}"
        ) from error
    if not path.is_dir():
        raise InvalidArgumentError(
            f"the host path {mount.host_path!r} cannot be mounted: it is no directory"
        )
    if not os.access(path, os.R_OK | os.X_OK):
        raise InvalidArgumentError(
            f"the host path {mount.host_path!r} cannot be mounted: you may not read it"
        )
    return path


def slot(mount: DirectoryMount) -> ShareSlot:
    """Give the place that the hypervisor has for a mount."""
    return ShareSlot(mount.slot, mount.readonly)


def _check_host_path(path: str) -> None:
    _check_path(path, "the host path")
    directory(DirectoryMount(path, ""))


def _check_path(path: str, what: str) -> None:
    if not path.startswith("/"):
        raise InvalidArgumentError(
            f"{what} {path[:200]!r} is not absolute", hint="begin it with a slash"
        )
    if "\0" in path:
        raise InvalidArgumentError(f"{what} has a NUL character, which no path has")
    names = [name.encode(errors="surrogateescape") for name in path.split("/")]
    too_long = any(len(name) > MAX_NAME_BYTES for name in names)
    if too_long or len(b"/".join(names)) > MAX_PATH_BYTES:
        raise InvalidArgumentError(f"{what} {path[:80]!r}... is too long for a path")
