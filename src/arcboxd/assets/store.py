"""Builds, once, everything that machines boot from."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from arcboxd.assets import agent_bundle, kernel, python_runtime
from arcboxd.assets.agent_bundle import AGENT_FS
from arcboxd.assets.apt import Apt, Package, unpack
from arcboxd.assets.cache import BuildFn, Cache, Entry, Inputs, key_of
from arcboxd.assets.initramfs import (
    DISK_MODULES,
    LATE_MODULES,
    NETWORK_MODULES,
    ROOT_MODULES,
    build_initramfs,
    floor_initramfs,
    init_script,
)
from arcboxd.assets.mirror import Mirror, host_codename
from arcboxd.domain.image import BootAssets, ProgressFn
from arcboxd.errors import UnsupportedError
from arcboxd.paths import Paths

BUILDABLE = ("x86_64",)
"""Architectures whose assets this version can build."""

_BUSYBOX = ("busybox-static",)


class AssetStore:
    """Boot files in the cache, one set for each architecture; implements `machines.Assets`."""

    def __init__(self, paths: Paths, *, mirror: Mirror | None = None, suite: str = "") -> None:
        """Use the cache of ``paths``.

        Args:
            paths: Names the cache.
            mirror: Where Debian's packages come from; None for the host's own mirror.
            suite: The Debian release that the kernel comes from; empty for the host's own.
        """
        self._paths = paths
        self._mirror = mirror
        self._suite = suite or host_codename()
        self._cache = Cache(paths.assets)

    async def ensure(self, arch: str, progress: ProgressFn) -> BootAssets:
        """Give the boot files, building what is missing.

        When all is there this neither runs a program nor uses the network, and takes milliseconds.
        Cancelled, it leaves finished parts and nothing half made.

        Args:
            arch: The kernel's name of the architecture, such as ``x86_64``.
            progress: Told of each step.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        if arch not in BUILDABLE:
            raise UnsupportedError(
                f"no boot files for {arch}: this version builds {', '.join(BUILDABLE)} only"
            )
        apt = Apt(self._paths.assets / "apt", self._suite, arch, self._mirror)
        steps = _Steps(progress)
        kernel_packages = await self._resolve(apt, kernel.kernel_packages(arch), steps)
        busybox = await self._busybox(apt, steps)
        built = await self._kernel(apt, kernel_packages, steps)
        initramfs = await self._initramfs(built, busybox, steps)
        agent = await self._agent(apt, busybox, steps)
        early = await asyncio.to_thread(kernel.read_early, built.path)
        key = key_of({"kernel": built.key, "initramfs": initramfs.key, "agent": agent.key})
        return BootAssets(
            key=key,
            kernel=built.file("vmlinux"),
            initramfs=initramfs.file("initramfs.cpio"),
            modules_disk=built.file("modules.img"),
            agent_disk=agent.file("agent.img"),
            kernel_version=early.version,
        )

    async def refresh(self, arch: str, progress: ProgressFn) -> BootAssets:
        """Ask the archive for newer packages, then give the boot files made of them.

        Raises:
            AssetBuildError: The archive cannot be reached, or a step failed.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        if arch in BUILDABLE:
            apt = Apt(self._paths.assets / "apt", self._suite, arch, self._mirror)
            for names in (kernel.kernel_packages(arch), _BUSYBOX, python_runtime.PACKAGES):
                progress("asking for newer packages", 0, 0)
                await apt.resolve(names, refresh=True)
        return await self.ensure(arch, progress)

    async def floor(self, arch: str, progress: ProgressFn) -> tuple[Path, Path]:
        """Give a kernel and the least initramfs that boots, for benchmarks to compare with.

        Raises:
            AssetBuildError: A step failed.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        boot = await self.ensure(arch, progress)
        apt = Apt(self._paths.assets / "apt", self._suite, arch, self._mirror)
        busybox = (await self._busybox(apt, _Steps(progress))).file("busybox")

        async def build(target: Path) -> None:
            data = floor_initramfs(await asyncio.to_thread(busybox.read_bytes))
            await asyncio.to_thread((target / "floor.cpio").write_bytes, data)

        entry = await self._ensure(
            "floor", {"busybox": str(busybox), "recipe": "1"}, build, _Steps(progress)
        )
        return boot.kernel, entry.file("floor.cpio")

    async def _resolve(self, apt: Apt, names: Iterable[str], steps: _Steps) -> dict[str, Package]:
        return await apt.resolve(
            tuple(names), on_update=lambda: steps.begin("reading the Debian mirror's package lists")
        )

    async def _fetch(
        self, apt: Apt, packages: Iterable[Package], what: str, steps: _Steps
    ) -> dict[str, Path]:
        return await apt.fetch(packages, lambda d, t: steps.bytes(f"downloading {what}", d, t))

    async def _busybox(self, apt: Apt, steps: _Steps) -> Entry:
        package = (await self._resolve(apt, _BUSYBOX, steps))["busybox-static"]

        async def build(target: Path) -> None:
            files = await self._fetch(apt, [package], "busybox", steps)
            await unpack(files.values(), target / "scratch")
            (target / "scratch" / "bin" / "busybox").rename(target / "busybox")
            await asyncio.to_thread(shutil.rmtree, target / "scratch")

        return await self._ensure("busybox", {"package": package.identity}, build, steps)

    async def _kernel(self, apt: Apt, packages: Mapping[str, Package], steps: _Steps) -> Entry:
        image = kernel.kernel_image_package(packages, apt.arch)
        depmod = [packages[name] for name in kernel.DEPMOD_PACKAGES]

        async def build(target: Path) -> None:
            files = await self._fetch(apt, [image, *depmod], "the kernel", steps)
            tools = [files[package.name] for package in depmod]
            await kernel.build_kernel(files[image.name], tools, apt.arch, target, steps.begin)
            await asyncio.to_thread(shutil.rmtree, target / "scratch")

        inputs: Inputs = {
            "package": image.identity,
            "recipe": kernel.RECIPE,
            "early": [*DISK_MODULES, *ROOT_MODULES, *NETWORK_MODULES, *LATE_MODULES],
            "fs": kernel.MODULES_FS,
        }
        return await self._ensure("kernel", inputs, build, steps)

    async def _initramfs(self, built: Entry, busybox: Entry, steps: _Steps) -> Entry:
        async def build(target: Path) -> None:
            steps.begin("making the initramfs")
            data = await asyncio.to_thread(
                build_initramfs,
                busybox.file("busybox").read_bytes(),
                kernel.read_early(built.path),
                built.file("early"),
                agent_fs=AGENT_FS,
                modules_fs=kernel.MODULES_FS,
            )
            await asyncio.to_thread((target / "initramfs.cpio").write_bytes, data)

        inputs: Inputs = {
            "kernel": built.key,
            "busybox": busybox.key,
            "init": init_script().decode(),
            "agent_fs": AGENT_FS,
        }
        return await self._ensure("initramfs", inputs, build, steps)

    async def _agent(self, apt: Apt, busybox: Entry, steps: _Steps) -> Entry:
        wanted = [
            (await self._resolve(apt, python_runtime.PACKAGES, steps))[name]
            for name in python_runtime.PACKAGES
        ]
        lock = agent_bundle.lock_file()

        async def build_runtime(target: Path) -> None:
            files = await self._fetch(apt, wanted, "Python for the agent", steps)
            await python_runtime.build_runtime(list(files.values()), lock, target, steps.begin)

        async def build(target: Path) -> None:
            runtime = await self._ensure("python", runtime_inputs, build_runtime, steps)
            path = busybox.file("busybox")
            await agent_bundle.build_agent_disk(runtime.path, path, target, steps.begin)

        runtime_inputs: Inputs = {
            "packages": [package.identity for package in wanted],
            "lock": await asyncio.to_thread(lock.read_text),
            "recipe": python_runtime.RECIPE,
        }
        inputs: Inputs = {
            "runtime": key_of(runtime_inputs),
            "busybox": busybox.key,
            "sources": await asyncio.to_thread(agent_bundle.sources_digest),
            "recipe": agent_bundle.RECIPE,
            "fs": AGENT_FS,
        }
        return await self._ensure("agent", inputs, build, steps)

    async def _ensure(self, kind: str, inputs: Inputs, build: BuildFn, steps: _Steps) -> Entry:
        def waiting() -> None:
            steps.begin(f"waiting for another process that makes the {kind}")

        return await self._cache.ensure(kind, inputs, build, on_wait=waiting)


class _Steps:
    """Tells of steps in one place, so that their phrases look alike."""

    def __init__(self, progress: ProgressFn) -> None:
        self._progress = progress

    def begin(self, phrase: str) -> None:
        self._progress(phrase, 0, 0)

    def bytes(self, phrase: str, done: int, total: int) -> None:
        self._progress(phrase, done, total)
