"""The kernel: from the host distribution's package to what QEMU boots and the initramfs loads."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from arcboxd.assets.apt import Package, unpack
from arcboxd.assets.disk_image import make_squashfs
from arcboxd.assets.initramfs import (
    CHECKSUMS,
    DISK_MODULES,
    LATE_MODULES,
    NETWORK_MODULES,
    ROOT_MODULES,
    EarlyModules,
)
from arcboxd.assets.mirror import DEBIAN_ARCHES
from arcboxd.assets.modules import ModuleIndex, early_modules, read_index
from arcboxd.assets.vmlinux import extract_image, extract_vmlinux, is_elf
from arcboxd.errors import AssetBuildError
from arcboxd.process import CommandError, run

MODULES_FS = "squashfs"
RECIPE = "1"
"""Raised when this module makes something else of the same packages."""

# (T) all modules of Debian's 6.1: zstd 104 MB in 4.8 s, lz4 160 MB in 2.7 s; erofs with lz4 185 MB.
# Little of it is ever read, so size counts most.
_SQUASHFS = ("-comp", "zstd", "-Xcompression-level", "3")

DEPMOD_PACKAGES = ("kmod", "libkmod2", "libzstd1", "liblzma5", "libssl3", "libc6")
"""depmod and its libraries, of the host's architecture whatever the kernel's is; run with its own
loader, so the host needs none of them."""


def kernel_packages(arch: str) -> tuple[str, ...]:
    """Name what to resolve: the newest full kernel (not "cloud", which lacks 9p)."""
    return (f"linux-image-{DEBIAN_ARCHES[arch]}",)


def kernel_image_package(packages: Mapping[str, Package], arch: str) -> Package:
    """Find the package that the kernel's meta package stands for.

    Raises:
        AssetBuildError: There is none.
    """
    pattern = re.compile(rf"linux-image-\d.*-{DEBIAN_ARCHES[arch]}")
    found = [package for name, package in packages.items() if pattern.fullmatch(name)]
    if len(found) != 1:
        raise AssetBuildError(f"found {len(found)} kernel packages for {arch} instead of one")
    return found[0]


async def build_kernel(
    kernel: Path, depmod: Sequence[Path], arch: str, target: Path, step: Callable[[str], None]
) -> None:
    """Make ``vmlinux``, ``modules.img``, ``early/NAME.ko`` and ``kernel.json`` in ``target``.

    Args:
        kernel: The kernel's package.
        depmod: The packages of `DEPMOD_PACKAGES`, of the host's architecture.
        arch: The kernel's architecture.
        target: An empty directory; also used for scratch.
        step: Called with a phrase before each step.

    Raises:
        AssetBuildError: A step failed.
        CorruptError: The kernel is not one.
    """
    scratch = target / "scratch"
    step("unpacking the kernel's package")
    await unpack([kernel], scratch / "root")
    modules = scratch / "root" / "lib" / "modules"
    if not modules.exists():  # merged /usr
        modules = scratch / "root" / "usr" / "lib" / "modules"
    versions = sorted(path.name for path in modules.iterdir())
    if len(versions) != 1:
        raise AssetBuildError(f"{kernel.name} has modules of {len(versions)} kernels")
    version = versions[0]
    tree = modules / version
    image = scratch / "root" / "boot" / f"vmlinuz-{version}"
    await asyncio.to_thread(_write_kernel, image, target / "vmlinux", arch)

    step("indexing the kernel's modules")
    await unpack(depmod, scratch / "kmod")
    await _depmod(scratch / "kmod", modules, version)

    step("packing the kernel's modules")
    early = select_early(await asyncio.to_thread(read_index, tree), version, arch)
    await asyncio.to_thread(early_modules, tree, early.all, target / "early")
    (target / "kernel.json").write_text(
        json.dumps({name: getattr(early, name) for name in EarlyModules.__slots__}, indent=1)
    )
    await make_squashfs(tree, target / "modules.img", options=_SQUASHFS)


def read_early(folder: Path) -> EarlyModules:
    """Read back what `build_kernel` chose."""
    facts = json.loads((folder / "kernel.json").read_bytes())
    lists = {name: tuple(facts[name]) for name in EarlyModules.__slots__ if name != "version"}
    return EarlyModules(version=facts["version"], **lists)


def select_early(index: ModuleIndex, version: str, arch: str) -> EarlyModules:
    """Choose and order what is loaded before the distribution's init.

    The root's and the disks' modules are loaded at the same time, so neither list may rely on the
    other.

    Raises:
        AssetBuildError: The kernel lacks a module.
    """
    checksums = index.load_order(CHECKSUMS[arch])
    root = index.load_order(ROOT_MODULES, loaded=checksums)
    disk = index.load_order(DISK_MODULES, loaded=checksums)
    if shared := {*root} & {*disk}:
        raise AssetBuildError(f"the root's and the disks' modules share {sorted(shared)}")
    before = [*root, *disk, *checksums]
    network = index.load_order(NETWORK_MODULES, loaded=before)
    late = index.load_order(LATE_MODULES, loaded=[*before, *network])
    lists = (checksums, root, disk, network, late)
    return EarlyModules(version, *(tuple(names) for names in lists))


def _write_kernel(image: Path, target: Path, arch: str) -> None:
    data = image.read_bytes()
    unpack_image = {"x86_64": extract_vmlinux, "aarch64": extract_image}[arch]
    target.write_bytes(data if is_elf(data) else unpack_image(data))


async def _depmod(kmod: Path, modules: Path, version: str) -> None:
    command = await asyncio.to_thread(_depmod_command, kmod)
    base = modules.parent.parent  # depmod -b looks for lib/modules below it
    try:
        await run([*command, "-b", str(base), version], timeout_s=120)
    except CommandError as error:
        raise AssetBuildError(f"cannot index the kernel's modules: {error}") from error


def _depmod_command(kmod: Path) -> list[str]:
    loaders = sorted(kmod.glob("lib*/ld-linux*.so*"))
    programs = sorted(kmod.glob("**/bin/kmod"))
    if not loaders or not programs:
        raise AssetBuildError("Debian's kmod package has no depmod where it is expected")
    folders = sorted({str(path.parent) for path in kmod.glob("**/*.so.*")})
    library_path = ["--library-path", ":".join(folders)]
    return [str(loaders[0]), *library_path, "--argv0", "depmod", str(programs[0])]
