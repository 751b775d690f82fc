"""System calls that Python's `os` lacks. ctypes is imported at the first use: it is slow to."""

# Imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_BIND = 4096
_UMOUNT_NOFOLLOW = 8
_MNT_DETACH = 2
_RB_POWER_OFF = 0x4321FEDC
_RB_AUTOBOOT = 0x01234567
_SYS_CLONE3 = 435  # the same on every architecture that we know
_CLONE_PARENT = 0x8000
_CLONE_CLEAR_SIGHAND = 0x1_0000_0000
_CLONE_INTO_CGROUP = 0x2_0000_0000
_SIGCHLD = 17

_libraries: dict[str, ctypes.CDLL] = {}


def _libc(*, holding_gil: bool = False) -> ctypes.CDLL:
    """Return the process's own C library; `holding_gil` keeps other threads out during a call."""
    kind = "PyDLL" if holding_gil else "CDLL"
    library = _libraries.get(kind)
    if library is None:
        import ctypes

        library = getattr(ctypes, kind)(None, use_errno=True)
        _libraries[kind] = library
    return library


def _check(result: int, what: str) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: str, filesystem: str, flags: int = 0, options: str = "") -> None:
    """Attach a filesystem to the tree.

    Raises:
        OSError: The kernel refused.
    """
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(filesystem))
    data = os.fsencode(options) or None
    _check(_libc().mount(*arguments, flags, data), f"mount {target}")


def unmount(target: str) -> None:
    """Take a filesystem out of the tree, once all that was written is where it belongs.

    Raises:
        OSError: The kernel refused, as it does while it is in use.
    """
    _check(_libc().umount2(os.fsencode(target), _UMOUNT_NOFOLLOW), f"unmount {target}")


def detach(target: str) -> None:
    """Take a filesystem out of the tree at once; it ends when nobody uses it any more.

    Raises:
        OSError: The kernel refused.
    """
    flags = _UMOUNT_NOFOLLOW | _MNT_DETACH
    _check(_libc().umount2(os.fsencode(target), flags), f"unmount {target}")


def bind(source: str, target: str) -> None:
    """Let a file show in another's place.

    Raises:
        OSError: The kernel refused.
    """
    mount(source, target, "", _MS_BIND)


def remount_read_only(target: str) -> None:
    """Make a mounted filesystem read-only.

    Raises:
        OSError: The kernel refused, as it does while a file is open for writing.
    """
    flags = _MS_REMOUNT | MS_RDONLY
    _check(_libc().mount(None, os.fsencode(target), None, flags, None), f"remount {target}")


def power_off() -> None:
    """Switch the machine off at once. See reboot(2).

    Raises:
        OSError: The kernel refused.
    """
    _check(_libc().reboot(_RB_POWER_OFF), "reboot")


def restart() -> None:
    """Restart the machine at once. See reboot(2).

    Raises:
        OSError: The kernel refused.
    """
    _check(_libc().reboot(_RB_AUTOBOOT), "reboot")


def fork_into_cgroup(cgroup_fd: int, *, parents_child: bool = False) -> int:
    """Fork a child that is born in a control group, with default signal handlers; 0 in the child.

    Moving a process afterwards costs 11 ms (measured on Linux 6.18, idle, 2 cores): the kernel
    waits for an RCU grace period. A child born in its group waits for nothing.

    Only for a process with one thread: C library and interpreter learn nothing of this fork. The
    child may make system calls and then exec or `_exit`, nothing more.

    Args:
        cgroup_fd: The group's directory.
        parents_child: Make it a child of this process's own parent, who then waits for it.

    Raises:
        OSError: The kernel cannot do it.

    Source: clone(2), CLONE_INTO_CGROUP since Linux 5.7.
    """
    import ctypes

    flags = _CLONE_INTO_CGROUP | _CLONE_CLEAR_SIGHAND
    # A sibling sends its parent the signal that this process would: clone(2) wants none named.
    number = 0 if parents_child else _SIGCHLD
    flags |= _CLONE_PARENT if parents_child else 0
    arguments = struct.pack("=11Q", flags, 0, 0, 0, number, 0, 0, 0, 0, 0, cgroup_fd)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    syscall = _libc(holding_gil=True).syscall
    return _check(syscall(_SYS_CLONE3, buffer, len(arguments)), "clone3")
