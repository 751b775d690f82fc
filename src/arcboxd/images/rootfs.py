"""What kind of system a root filesystem holds: its name, its architecture, its init."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from arcboxd.errors import InvalidArgumentError, UnsupportedError

_MAX_LINKS = 40
_RELEASE_BYTES = 64 << 10
_ELF_BYTES = 20
_MACHINES = {62: "x86_64", 183: "aarch64"}
"""ELF's numbers of the architectures that we know (elf(5), e_machine)."""
_INITS = ("sbin/init", "lib/systemd/systemd", "usr/lib/systemd/systemd", "bin/init")
"""As the initramfs looks for them, in its order."""
_PROGRAMS = (
    *("bin/sh", "sbin/init", "bin/busybox", "usr/bin/env", "lib/systemd/systemd", "bin/bash"),
    *("lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1", "lib/ld-musl-x86_64.so.1"),
    *("lib/ld-musl-aarch64.so.1", "usr/bin/python3", "usr/bin/perl"),
)

N = TypeVar("N")


class Files(Protocol[N]):
    """Files to look at, in memory or in a filesystem."""

    root: N

    def child(self, node: N, name: str, /) -> N | None:
        """Give what a directory has under a name."""
        ...

    def kind(self, node: N, /) -> str:
        """Tell what a node is: ``file``, ``directory``, ``symlink`` or something else."""
        ...

    def link(self, node: N, /) -> str:
        """Tell where a symbolic link points."""
        ...

    def head(self, node: N, count: int, /) -> bytes:
        """Give a file's first bytes."""
        ...


@dataclass(frozen=True, slots=True)
class System:
    """What an image says that it is."""

    distro: str
    version: str
    arch: str
    """Of its programs; empty if it has none that we know."""
    init: str
    """``systemd``, ``openrc``, another program's name, or ``none``."""


def examine(files: Files[N], arch: str) -> System:
    """Tell what kind of system it is.

    Args:
        files: The root filesystem.
        arch: What it is to run on.

    Raises:
        InvalidArgumentError: It is no root filesystem of a Linux.
        UnsupportedError: It is of another architecture.
    """
    release = _release(files)
    found = _arch(files)
    if not release and found is None:
        raise InvalidArgumentError(
            "the image is no Linux system: it has neither /etc/os-release nor /bin/sh",
            hint="an image is a root filesystem, with bin, etc and usr at its top",
        )
    if found is not None and found != arch:
        raise UnsupportedError(
            f"the programs in the image are for {found}, not for {arch}",
            hint=f"get the image for {arch}, or say which it is with --arch",
        )
    return System(release.get("ID", ""), release.get("VERSION_ID", ""), found or "", _init(files))


def find(files: Files[N], path: str) -> tuple[N, str] | None:
    """Follow a path within the image, and give what it leads to, and that one's own path.

    Links are followed as a guest that has this root would; none leads out of it.
    """
    pending = list(reversed(path.split("/")))
    trail: list[tuple[str, N]] = [("", files.root)]
    links = 0
    while pending:
        name = pending.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            if len(trail) > 1:
                trail.pop()
            continue
        node = trail[-1][1]
        if files.kind(node) != "directory" or (found := files.child(node, name)) is None:
            return None
        if files.kind(found) == "symlink":
            links += 1
            target = files.link(found)
            if links > _MAX_LINKS:
                return None
            if target.startswith("/"):
                del trail[1:]
            pending.extend(reversed(target.split("/")))
        else:
            trail.append((name, found))
    return trail[-1][1], "/".join(name for name, _ in trail[1:])


def _release(files: Files[N]) -> Mapping[str, str]:
    for path in ("etc/os-release", "usr/lib/os-release"):
        found = find(files, path)
        if found is not None and files.kind(found[0]) == "file":
            text = files.head(found[0], _RELEASE_BYTES).decode(errors="replace")
            # With the file there and nothing in it, it is a system still.
            return {"": "", **_pairs(text)}
    return {}


def _pairs(text: str) -> dict[str, str]:
    pairs = re.findall(r"^([A-Z_]{1,32})=[\"']?([A-Za-z0-9._~+-]{0,64})", text, re.MULTILINE)
    return dict(pairs)


def _arch(files: Files[N]) -> str | None:
    for path in _PROGRAMS:
        found = find(files, path)
        if found is None or files.kind(found[0]) != "file":
            continue
        head = files.head(found[0], _ELF_BYTES)
        if head.startswith(b"\x7fELF") and len(head) == _ELF_BYTES:
            (number,) = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)
            return _MACHINES.get(number, f"another processor (ELF machine {number})")
    return None


def _init(files: Files[N]) -> str:
    for path in _INITS:
        found = find(files, path)
        if found is None or files.kind(found[0]) != "file":
            continue
        name = found[1].rpartition("/")[2]
        if name == "systemd":
            return name
        if name in {"init", "busybox", "openrc-init"} and find(files, "sbin/openrc"):
            return "openrc"
        return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:32]
    return "none"
