"""The parts of the files that a machine boots from, each an entry of the cache.

What a part is made from is known from the packages that were chosen, without building anything: so
its key, too, and whether it is there.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from arcboxd.assets import agent_bundle, kernel, python_runtime
from arcboxd.assets.agent_bundle import AGENT_FS
from arcboxd.assets.apt import Apt, Package, unpack
from arcboxd.assets.cache import Entry, Inputs, key_of
from arcboxd.assets.initramfs import (
    DISK_MODULES,
    LATE_MODULES,
    NETWORK_MODULES,
    ROOT_MODULES,
    build_initramfs,
    init_script,
)
from arcboxd.assets.workshop import Workshop

BUSYBOX = ("busybox-static",)

KINDS = ("busybox", "kernel", "python", "initramfs", "agent")


def package_sets(arch: str) -> list[tuple[str, ...]]:
    """Give the names that are resolved together, of all packages that the parts are made of."""
    return [BUSYBOX, kernel.kernel_packages(arch), python_runtime.PACKAGES]


def wanted(apt: Apt) -> dict[str, str]:
    """Give the key of each part, by its kind, that the pinned packages make; none without pins."""
    found = [apt.pinned(names) for names in package_sets(apt.arch)]
    pinned = [packages for packages in found if packages is not None]
    if len(pinned) < len(found):
        return {}
    busybox, image, python = pinned
    keys = {
        "busybox": key_of(_busybox_inputs(busybox)),
        "kernel": key_of(_kernel_inputs(kernel.kernel_image_package(image, apt.arch))),
        "python": key_of(_python_inputs(python)),
    }
    keys["initramfs"] = key_of(_initramfs_inputs(keys["kernel"], keys["busybox"]))
    keys["agent"] = key_of(_agent_inputs(keys["python"], keys["busybox"]))
    return keys


class BootParts:
    """Builds the parts for one architecture, with programs of the host's."""

    def __init__(self, apt: Apt, own: Apt, workshop: Workshop) -> None:
        """Take packages from ``apt``, and from ``own`` those that must run on this host."""
        self._apt = apt
        self._own = own
        self._workshop = workshop

    async def busybox(self) -> Entry:
        """Give a static ``busybox``."""
        packages = await self._workshop.resolve(self._apt, BUSYBOX)

        async def build(target: Path) -> None:
            files = await self._fetch(packages, BUSYBOX, "busybox")
            await unpack(files, target / "scratch")
            (target / "scratch" / "bin" / "busybox").rename(target / "busybox")
            await asyncio.to_thread(shutil.rmtree, target / "scratch")

        return await self._workshop.ensure("busybox", _busybox_inputs(packages), build)

    async def kernel(self) -> Entry:
        """Give ``vmlinux``, ``modules.img``, and what of it an initramfs takes."""
        arch = self._apt.arch
        packages = await self._workshop.resolve(self._apt, kernel.kernel_packages(arch))
        image = kernel.kernel_image_package(packages, arch)

        async def build(target: Path) -> None:
            found = await self._workshop.resolve(self._own, kernel.DEPMOD_PACKAGES)
            files = await self._workshop.fetch(self._apt, [image], "the kernel")
            depmod = [found[name] for name in kernel.DEPMOD_PACKAGES]
            tools = (await self._workshop.fetch(self._own, depmod, "depmod")).values()
            begin = self._workshop.begin
            await kernel.build_kernel(files[image.name], [*tools], arch, target, begin)
            await asyncio.to_thread(shutil.rmtree, target / "scratch")

        return await self._workshop.ensure("kernel", _kernel_inputs(image), build)

    async def initramfs(self, built: Entry, busybox: Entry) -> Entry:
        """Give the ``initramfs.cpio`` of a kernel."""

        async def build(target: Path) -> None:
            self._workshop.begin("making the initramfs")
            data = await asyncio.to_thread(
                build_initramfs,
                busybox.file("busybox").read_bytes(),
                kernel.read_early(built.path),
                built.file("early"),
                agent_fs=AGENT_FS,
                modules_fs=kernel.MODULES_FS,
            )
            await asyncio.to_thread((target / "initramfs.cpio").write_bytes, data)

        inputs = _initramfs_inputs(built.key, busybox.key)
        return await self._workshop.ensure("initramfs", inputs, build)

    async def agent(self, busybox: Entry) -> Entry:
        """Give the ``agent.img``, whose Python is only built where there is none of it yet."""
        packages = await self._workshop.resolve(self._apt, python_runtime.PACKAGES)

        async def build(target: Path) -> None:
            runtime = await self._python(packages)
            await agent_bundle.build_agent_disk(
                runtime.path,
                busybox.file("busybox"),
                target,
                interpreter=await self._interpreter(),
                step=self._workshop.begin,
            )

        def inputs() -> Inputs:
            return _agent_inputs(key_of(_python_inputs(packages)), busybox.key)

        # In a thread: it reads all of our sources.
        return await self._workshop.ensure("agent", await asyncio.to_thread(inputs), build)

    async def _python(self, packages: Mapping[str, Package]) -> Entry:
        async def build(target: Path) -> None:
            files = await self._fetch(packages, python_runtime.PACKAGES, "Python for the agent")
            await python_runtime.build_runtime(
                files,
                agent_bundle.lock_file(),
                self._apt.arch,
                target,
                interpreter=await self._interpreter(),
                step=self._workshop.begin,
            )

        inputs = await asyncio.to_thread(_python_inputs, packages)
        return await self._workshop.ensure("python", inputs, build)

    async def _interpreter(self) -> Path | None:
        """Give a Python that runs on this host, where the guest's does not."""
        if self._apt.arch == self._own.arch:
            return None
        host = BootParts(self._own, self._own, self._workshop)
        packages = await self._workshop.resolve(self._own, python_runtime.PACKAGES)
        return (await host._python(packages)).path

    async def _fetch(
        self, packages: Mapping[str, Package], names: Iterable[str], what: str
    ) -> list[Path]:
        chosen = [packages[name] for name in names]
        return list((await self._workshop.fetch(self._apt, chosen, what)).values())


def _busybox_inputs(packages: Mapping[str, Package]) -> Inputs:
    (name,) = BUSYBOX
    return {"package": packages[name].identity}


def _kernel_inputs(image: Package) -> Inputs:
    return {
        "package": image.identity,
        "recipe": kernel.RECIPE,
        "early": [*DISK_MODULES, *ROOT_MODULES, *NETWORK_MODULES, *LATE_MODULES],
        "fs": kernel.MODULES_FS,
    }


def _initramfs_inputs(kernel_key: str, busybox_key: str) -> Inputs:
    return {
        "kernel": kernel_key,
        "busybox": busybox_key,
        "init": init_script().decode(),
        "agent_fs": AGENT_FS,
    }


def _python_inputs(packages: Mapping[str, Package]) -> Inputs:
    # Not the interpreter that compiles: all of one Python's versions write the same files.
    return {
        "packages": [packages[name].identity for name in python_runtime.PACKAGES],
        "lock": agent_bundle.lock_file().read_text(),
        "recipe": python_runtime.RECIPE,
    }


def _agent_inputs(python_key: str, busybox_key: str) -> Inputs:
    return {
        "runtime": python_key,
        "busybox": busybox_key,
        "sources": agent_bundle.sources_digest(),
        "recipe": agent_bundle.RECIPE,
        "fs": AGENT_FS,
    }
