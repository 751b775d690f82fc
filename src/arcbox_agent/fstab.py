"""Leaves disks that a new machine does not have out of its /etc/fstab.

The image of a whole disk names its other partitions there, such as /boot/efi, but the machine has
only its root. systemd would wait 90 s for each of them, and then boot no further.
"""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH110, PTH208

from __future__ import annotations

import os
from collections.abc import Callable

ROOT_DISK = "/dev/vda"
LEFT_OUT = "# arcbox: this machine has no such disk: "

_BUSYBOX = "/run/arcbox/bundle/bin/busybox"
_BY_NAME = {"/dev/disk/by-uuid/": "UUID=", "/dev/disk/by-label/": "LABEL="}
_TAGS = ("UUID=", "LABEL=")
_OF_PARTITIONS = ("PARTUUID=", "PARTLABEL=", "/dev/disk/")
_MADE_LATER = ("/dev/mapper/", "/dev/md", "/dev/fd", "/dev/sr", "/dev/cdrom")
_OPTIONS = 3  # which field has them


def without_missing(text: str, has_disk: Callable[[str], bool]) -> str:
    """Comment out what is on disks that are not there; what names the root names our root disk.

    Args:
        text: An fstab(5).
        has_disk: Tells whether there is a disk of such a name.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        fields = line.split()
        if _is_wanted(fields) and not has_disk(fields[0].replace('"', "")):
            at_root = fields[1] == "/"
            line = line.replace(fields[0], ROOT_DISK, 1) if at_root else LEFT_OUT + line  # noqa: PLW2901
        lines.append(line)
    return "".join(lines)


def _is_wanted(fields: list[str]) -> bool:
    return (
        len(fields) > 1
        and fields[0].startswith((*_TAGS, *_OF_PARTITIONS, "/dev/"))
        and not fields[0].startswith(_MADE_LATER)
        and "noauto" not in "".join(fields[_OPTIONS : _OPTIONS + 1]).split(",")
    )


def has_disk(name: str) -> bool:
    """Tell whether the kernel has a disk of that name, before there is a udev.

    Blocks for some milliseconds. Of partitions by their own ids it only tells whether there are
    any.
    """
    for folder, tag in _BY_NAME.items():
        if name.startswith(folder):
            name = tag + name.removeprefix(folder)
    if name.startswith(_TAGS):
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        pid = os.posix_spawn(_BUSYBOX, ("findfs", name), {}, file_actions=null)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    if name.startswith(_OF_PARTITIONS):
        disks = os.listdir("/sys/class/block")
        return any(os.path.exists(f"/sys/class/block/{each}/partition") for each in disks)
    return os.path.exists(name)
