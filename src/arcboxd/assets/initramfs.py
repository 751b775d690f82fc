"""The initramfs: busybox, the few modules that the disks and the root need, and ``init.sh``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from arcboxd.assets import cpio
from arcboxd.assets.modules import module_name

ROOT_OPTIONS = "rw,discard,noinit_itable"
"""The root's mount options: what the guest deletes goes back to the host, and inode tables that a
grown filesystem does not use yet are not zeroed in the background (ext4(5))."""

DISK_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "erofs")
ROOT_MODULES = ("ext4",)
NETWORK_MODULES = ("virtio_net",)
LATE_MODULES = ("squashfs", "virtio_rng", "virtio_balloon", "af_packet")
CHECKSUMS = {"x86_64": ("crc32c_intel", "crc32c_generic"), "aarch64": ("crc32c_generic",)}
"""Modules for ext4's and jbd2's checksums, the quickest first; the first that loads is enough."""

_OWN_FSTAB = "proc /proc proc defaults 0 0\ndev /dev devtmpfs defaults 0 0\n"


@dataclass(frozen=True, slots=True)
class EarlyModules:
    """What is loaded before the distribution's init, each list in order of need."""

    version: str
    checksums: tuple[str, ...]
    root: tuple[str, ...]
    disk: tuple[str, ...]
    network: tuple[str, ...]
    late: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Name them all."""
        return (*self.checksums, *self.root, *self.disk, *self.network, *self.late)


def init_script() -> bytes:
    """Read the init script, which is part of the package."""
    return (resources.files("arcboxd.assets") / "init.sh").read_bytes()


def boot_conf(modules: EarlyModules, *, agent_fs: str, modules_fs: str) -> str:
    """Write the settings that ``init.sh`` reads; none of the values needs quoting but by spaces."""
    values = {
        "KERNEL_VERSION": modules.version,
        "CHECKSUMS": " ".join(modules.checksums),
        "ROOT_MODULES": " ".join(modules.root),
        "DISK_MODULES": " ".join(modules.disk),
        "NETWORK_MODULES": " ".join(modules.network),
        "LATE_MODULES": " ".join(modules.late),
        "ROOT_OPTIONS": ROOT_OPTIONS,
        "LAST_DISK": "/dev/vdc",
        "AGENT_FS": agent_fs,
        "MODULES_FS": modules_fs,
    }
    return "".join(f"{name}='{value}'\n" for name, value in values.items())


def build_initramfs(
    busybox: bytes, modules: EarlyModules, folder: Path, *, agent_fs: str, modules_fs: str
) -> bytes:
    """Write the archive, uncompressed: unpacking costs more than reading from the page cache.

    Args:
        busybox: A static busybox that runs its applets by name (FEATURE_SH_STANDALONE).
        modules: What to load.
        folder: Where the modules' files are, named ``NAME.ko``.
        agent_fs: The agent disk's filesystem.
        modules_fs: The modules disk's filesystem.
    """
    conf = boot_conf(modules, agent_fs=agent_fs, modules_fs=modules_fs)
    root = (
        f"/dev/vda /new ext4 {ROOT_OPTIONS} 0 0\n"
        "dev /new/dev devtmpfs mode=0755,nosuid 0 0\n"
        "proc /new/proc proc nosuid,nodev,noexec 0 0\n"
        "sysfs /new/sys sysfs nosuid,nodev,noexec 0 0\n"
        "run /new/run tmpfs mode=0755,nosuid,nodev,size=20% 0 0\n"
    )
    nodes = {
        "bin/busybox": cpio.file(busybox, 0o755),
        "init": cpio.file(init_script(), 0o755),
        "etc/boot.conf": cpio.file(conf.encode()),
        "etc/fstab.self": cpio.file(_OWN_FSTAB.encode()),
        "etc/fstab.root": cpio.file(root.encode()),
        # The kernel opens the console before there is a devtmpfs.
        "dev/console": cpio.character_device(5, 1),
        **{name: cpio.directory() for name in ("dev", "proc", "run", "new")},
        **_module_files(modules.all, folder),
    }
    return cpio.write_cpio(nodes)


def _module_files(names: Iterable[str], folder: Path) -> dict[str, cpio.Node]:
    return {
        f"lib/{module_name(name)}.ko": cpio.file((folder / f"{name}.ko").read_bytes())
        for name in names
    }


def second_stage_script() -> bytes:
    """Read the script of `second_stage_initramfs`."""
    return (resources.files("arcboxd.assets") / "second-stage.sh").read_bytes()


def second_stage_initramfs(busybox: bytes, modules: EarlyModules, folder: Path) -> bytes:
    """Write the archive that finishes an image of a foreign architecture (``second-stage.sh``).

    Args:
        busybox: As in `build_initramfs`.
        modules: What to load.
        folder: Where the modules' files are, named ``NAME.ko``.
    """
    conf = boot_conf(modules, agent_fs="", modules_fs="")
    return cpio.write_cpio(
        {
            "bin/busybox": cpio.file(busybox, 0o755),
            "init": cpio.file(second_stage_script(), 0o755),
            "etc/boot.conf": cpio.file(conf.encode()),
            "etc/fstab.self": cpio.file(_OWN_FSTAB.encode()),
            "dev/console": cpio.character_device(5, 1),
            **{name: cpio.directory() for name in ("dev", "proc", "new")},
            **_module_files((*modules.checksums, *modules.root, *modules.disk), folder),
        }
    )


def floor_initramfs(busybox: bytes) -> bytes:
    """Write the least that boots: busybox says FLOOR_READY on the first serial port and powers off.

    The benchmarks hold the start of a machine against the start of this.
    """
    init = b"#!/bin/busybox sh\necho FLOOR_READY\nexec /bin/busybox poweroff -f\n"
    return cpio.write_cpio(
        {
            "bin/busybox": cpio.file(busybox, 0o755),
            "init": cpio.file(init, 0o755),
            "dev/console": cpio.character_device(5, 1),
        }
    )
