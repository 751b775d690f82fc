"""What machines boot from, as plain values. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ProgressFn = Callable[[str, int, int], None]
"""Called with a step's phrase, how much is done, and how much there is in all (0: not known)."""

ARCH_ALIASES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
"""The kernel's names of architectures, by the names that users write."""


@dataclass(frozen=True, slots=True)
class BootAssets:
    """The files that every machine of an architecture boots from; all read-only and shared."""

    key: str
    kernel: Path
    initramfs: Path
    modules_disk: Path
    agent_disk: Path
    kernel_version: str


@dataclass(frozen=True, slots=True)
class NewImage:
    """A file to make an image of; the empty string stands for what the file itself says."""

    path: str
    """Absolute: qcow2, raw, root tarball, squashfs, OCI or docker archive."""
    name: str
    """By which machines name it as their distribution."""
    version: str = ""
    arch: str = ""
    """Empty: the host's."""
    sha256: str = ""
    """Of the file; checked when it is given."""


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A read-only root filesystem that overlays are made on."""

    key: str
    path: Path
    format: str
    """As qemu-img names it: ``raw`` or ``qcow2``."""
    virtual_bytes: int
    distro: str
    version: str
    arch: str
    source: str = "debian"
    """``debian``, ``ubuntu``, ``simplestreams``, ``oci`` or ``file``."""
    init: str = "systemd"
    """Or ``openrc``, another program's name, or ``none``."""
    created_unix_ns: int = 0
