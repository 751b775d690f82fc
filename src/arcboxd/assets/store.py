"""Builds, once, everything that machines boot from."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from arcboxd.assets import (
    agent_bundle,
    kernel,
    kubernetes_bundle,
    python_runtime,
    runtime_bundle,
)
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
    second_stage_initramfs,
    second_stage_script,
)
from arcboxd.assets.mirror import DEBIAN_ARCHES, Mirror, host_arch, host_codename, host_mirror
from arcboxd.assets.seen import Seen
from arcboxd.domain.image import BootAssets, ProgressFn
from arcboxd.errors import AssetBuildError, UnsupportedError
from arcboxd.kubernetes.distribution import K3S, Pin
from arcboxd.paths import Paths

BUILDABLE = tuple(DEBIAN_ARCHES)
"""Architectures whose assets this version can build, on a host of any of them."""

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
        self._seen: dict[str, Seen[BootAssets]] = {}

    async def ensure(self, arch: str, progress: ProgressFn) -> BootAssets:
        """Give the boot files, building what is missing.

        When all is there this neither runs a program nor uses the network, and takes milliseconds,
        after the first time less. Cancelled, it leaves finished parts and nothing half made.

        Args:
            arch: The kernel's name of the architecture, such as ``x86_64``.
            progress: Told of each step.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        _require_buildable(arch)
        if (seen := self._seen.get(arch)) is not None and seen.holds():
            return seen.answer
        apt = self._apt(arch)
        steps = _Steps(progress)
        busybox = await self._busybox(apt, steps)
        built = await self._kernel(apt, steps)
        initramfs = await self._initramfs(built, busybox, steps)
        agent = await self._agent(apt, busybox, steps)
        early = await asyncio.to_thread(kernel.read_early, built.path)
        key = key_of({"kernel": built.key, "initramfs": initramfs.key, "agent": agent.key})
        assets = BootAssets(
            key=key,
            kernel=built.file("vmlinux"),
            initramfs=initramfs.file("initramfs.cpio"),
            modules_disk=built.file("modules.img"),
            agent_disk=agent.file("agent.img"),
            kernel_version=early.version,
        )
        # Not our own sources, which the agent is made of: this process runs what it began with.
        pins = (_BUSYBOX, kernel.kernel_packages(arch), python_runtime.PACKAGES)
        files = (assets.kernel, assets.initramfs, assets.modules_disk, assets.agent_disk)
        self._seen[arch] = Seen(assets, (*map(apt.pin, pins), *files))
        return assets

    async def refresh(self, arch: str, progress: ProgressFn) -> BootAssets:
        """Ask the archive for newer packages, then give the boot files made of them.

        The disk of the container runtime is made anew too, if one was ever asked for.

        Raises:
            AssetBuildError: The archive cannot be reached, or a step failed.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        if arch in BUILDABLE:
            apt, own = self._apt(arch), self._apt(host_arch())
            wanted = [
                (apt, kernel.kernel_packages(arch)),
                (own, kernel.DEPMOD_PACKAGES),
                (apt, _BUSYBOX),
                (apt, python_runtime.PACKAGES),
            ]
            for source, names in wanted:
                progress("asking for newer packages", 0, 0)
                await source.resolve(names, refresh=True)
            if any(a.pinned(runtime_bundle.PACKAGES) for a in self._runtime_sources(arch)):
                await self._resolve_runtime(arch, _Steps(progress), refresh=True)
                await self.runtime(arch, progress)
        return await self.ensure(arch, progress)

    def find_runtime(self, arch: str) -> Path | None:
        """Give the disk of the container runtime if it is there, made of what the pins say.

        Uses no network, runs no program and takes milliseconds.
        """
        for apt in self._runtime_sources(arch) if arch in BUILDABLE else ():
            if pinned := apt.pinned(runtime_bundle.PACKAGES):
                entry = self._cache.find("runtime", key_of(_runtime_inputs(pinned)))
                return entry.file(runtime_bundle.IMAGE) if entry else None
        return None

    async def runtime(self, arch: str, progress: ProgressFn) -> Path:
        """Give the disk of the container runtime, building it when it is missing.

        It comes from a newer Debian than the kernel if the host has that release's keys and its
        mirror the release, else from the same. Warm and cancelled it does as `ensure` does.

        Args:
            arch: The kernel's name of the architecture, such as ``x86_64``.
            progress: Told of each step.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        _require_buildable(arch)
        if found := self.find_runtime(arch):
            return found
        steps = _Steps(progress)
        apt, resolved = await self._resolve_runtime(arch, steps)
        wanted = runtime_bundle.choose(resolved)

        async def build(target: Path) -> None:
            files = await self._fetch(apt, wanted, "the container runtime", steps)
            await runtime_bundle.build_runtime_disk(wanted, files.values(), target, steps.begin)

        entry = await self._ensure("runtime", _runtime_inputs(resolved), build, steps)
        return entry.file(runtime_bundle.IMAGE)

    async def _resolve_runtime(
        self, arch: str, steps: _Steps, *, refresh: bool = False
    ) -> tuple[Apt, dict[str, Package]]:
        # apt on the host knows its mirror by the host's own release; that mirror has the others.
        mirror = self._mirror or await host_mirror(self._suite)
        best, *others = self._runtime_sources(arch, mirror)
        names = runtime_bundle.PACKAGES
        try:
            return best, await self._resolve(best, names, steps, refresh=refresh)
        except AssetBuildError as error:
            if not others or not runtime_bundle.cannot_be_had(error):
                raise
            return others[0], await self._resolve(others[0], names, steps, refresh=refresh)

    def _runtime_sources(self, arch: str, mirror: Mirror | None = None) -> list[Apt]:
        """Give the releases that the container runtime may come from, the best first."""
        suites = dict.fromkeys((runtime_bundle.SUITE, self._suite))
        root = self._paths.assets / "apt"
        return [Apt(root, suite, arch, mirror or self._mirror) for suite in suites]

    def find_kubernetes(self, arch: str, pin: Pin) -> Path | None:
        """Give the disk of a Kubernetes if it is there; as quick as `find_runtime`."""
        packages: list[Package] = []
        if pin.distribution != K3S:
            resolved = self._apt(arch).pinned(kubernetes_bundle.PACKAGES)
            if resolved is None:
                return None
            packages = kubernetes_bundle.choose(resolved)
        key = key_of(kubernetes_bundle.inputs(pin, packages))
        entry = self._cache.find("kubernetes", key)
        return entry.file(kubernetes_bundle.IMAGE) if entry else None

    async def kubernetes(
        self, arch: str, pin: Pin, fetch: kubernetes_bundle.FetchFn, progress: ProgressFn
    ) -> Path:
        """Give the disk of a Kubernetes, fetching and building it when it is missing.

        Warm and cancelled it does as `ensure` does; what came of a fetch stays for the next call.

        Args:
            arch: The kernel's name of the architecture, such as ``x86_64``.
            pin: Which one.
            fetch: Gets it from where the pin says.
            progress: Told of each step.

        Raises:
            AssetBuildError: A step failed, or the bundle lacks something.
            CorruptError: What came, or the user's own file, is not what the pin says.
            ImageServerError: The server does not answer.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        _require_buildable(arch)
        if found := self.find_kubernetes(arch, pin):
            return found
        steps, apt, resolved = _Steps(progress), self._apt(arch), dict[str, Package]()
        if pin.distribution != K3S:
            resolved = await self._resolve(apt, kubernetes_bundle.PACKAGES, steps)
        downloads = self._paths.assets / "downloads"

        async def fetch_packages(names: Iterable[str]) -> dict[str, tuple[Package, Path]]:
            wanted = [resolved[name] for name in names]
            files = await self._fetch(apt, wanted, "what Kubernetes needs", steps)
            return {package.name: (package, files[package.name]) for package in wanted}

        async def build(target: Path) -> None:
            file = await kubernetes_bundle.obtain(pin, downloads, fetch, progress)
            if pin.distribution == K3S:
                await kubernetes_bundle.build_k3s_disk(pin, file, arch, target, steps.begin)
            else:
                await kubernetes_bundle.build_upstream_disk(
                    pin,
                    file,
                    arch,
                    fetch_packages=fetch_packages,
                    target=target,
                    step=steps.begin,
                )
            if file.parent == downloads:
                file.unlink()

        inputs = kubernetes_bundle.inputs(pin, kubernetes_bundle.choose(resolved))
        entry = await self._ensure("kubernetes", inputs, build, steps)
        return entry.file(kubernetes_bundle.IMAGE)

    def _apt(self, arch: str) -> Apt:
        return Apt(self._paths.assets / "apt", self._suite, arch, self._mirror)

    async def floor(self, arch: str, progress: ProgressFn) -> tuple[Path, Path]:
        """Give a kernel and the least initramfs that boots, for benchmarks to compare with.

        Raises:
            AssetBuildError: A step failed.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        boot = await self.ensure(arch, progress)
        apt = self._apt(arch)
        busybox = (await self._busybox(apt, _Steps(progress))).file("busybox")

        async def build(target: Path) -> None:
            data = floor_initramfs(await asyncio.to_thread(busybox.read_bytes))
            await asyncio.to_thread((target / "floor.cpio").write_bytes, data)

        entry = await self._ensure(
            "floor", {"busybox": str(busybox), "recipe": "1"}, build, _Steps(progress)
        )
        return boot.kernel, entry.file("floor.cpio")

    async def second_stage(self, arch: str, progress: ProgressFn) -> tuple[Path, Path]:
        """Give a kernel and the initramfs that finishes an image of a foreign architecture.

        Raises:
            AssetBuildError: A step failed.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        _require_buildable(arch)
        apt, steps = self._apt(arch), _Steps(progress)
        busybox, built = await self._busybox(apt, steps), await self._kernel(apt, steps)

        async def build(target: Path) -> None:
            data = await asyncio.to_thread(
                second_stage_initramfs,
                busybox.file("busybox").read_bytes(),
                kernel.read_early(built.path),
                built.file("early"),
            )
            await asyncio.to_thread((target / "second.cpio").write_bytes, data)

        inputs: Inputs = {
            "kernel": built.key,
            "busybox": busybox.key,
            "init": second_stage_script().decode(),
        }
        entry = await self._ensure("secondstage", inputs, build, steps)
        return built.file("vmlinux"), entry.file("second.cpio")

    async def _resolve(
        self, apt: Apt, names: Iterable[str], steps: _Steps, *, refresh: bool = False
    ) -> dict[str, Package]:
        return await apt.resolve(
            tuple(names),
            refresh=refresh,
            on_update=lambda: steps.begin("reading the Debian mirror's package lists"),
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

    async def _kernel(self, apt: Apt, steps: _Steps) -> Entry:
        packages = await self._resolve(apt, kernel.kernel_packages(apt.arch), steps)
        image = kernel.kernel_image_package(packages, apt.arch)

        async def build(target: Path) -> None:
            own = self._apt(host_arch())
            found = await self._resolve(own, kernel.DEPMOD_PACKAGES, steps)
            files = await self._fetch(apt, [image], "the kernel", steps)
            depmod = [found[name] for name in kernel.DEPMOD_PACKAGES]
            tools = (await self._fetch(own, depmod, "depmod", steps)).values()
            await kernel.build_kernel(files[image.name], [*tools], apt.arch, target, steps.begin)
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

    async def _python_packages(self, apt: Apt, steps: _Steps) -> list[Package]:
        found = await self._resolve(apt, python_runtime.PACKAGES, steps)
        return [found[name] for name in python_runtime.PACKAGES]

    async def _python(self, apt: Apt, inputs: Inputs, steps: _Steps) -> Entry:
        wanted = await self._python_packages(apt, steps)

        async def build(target: Path) -> None:
            files = await self._fetch(apt, wanted, "Python for the agent", steps)
            await python_runtime.build_runtime(
                list(files.values()),
                agent_bundle.lock_file(),
                apt.arch,
                target,
                interpreter=await self._interpreter(apt, steps),
                step=steps.begin,
            )

        return await self._ensure("python", inputs, build, steps)

    async def _interpreter(self, apt: Apt, steps: _Steps) -> Path | None:
        """Give a Python that runs on this host, where that of ``apt`` does not."""
        if apt.arch == host_arch():
            return None
        own = self._apt(host_arch())
        return (await self._python(own, await self._python_inputs(own, steps), steps)).path

    async def _python_inputs(self, apt: Apt, steps: _Steps) -> Inputs:
        # Not the interpreter that compiles: all of one Python's versions write the same files.
        return {
            "packages": [p.identity for p in await self._python_packages(apt, steps)],
            "lock": await asyncio.to_thread(agent_bundle.lock_file().read_text),
            "recipe": python_runtime.RECIPE,
        }

    async def _agent(self, apt: Apt, busybox: Entry, steps: _Steps) -> Entry:
        runtime_inputs = await self._python_inputs(apt, steps)

        async def build(target: Path) -> None:
            runtime = await self._python(apt, runtime_inputs, steps)
            await agent_bundle.build_agent_disk(
                runtime.path,
                busybox.file("busybox"),
                target,
                interpreter=await self._interpreter(apt, steps),
                step=steps.begin,
            )

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


def _require_buildable(arch: str) -> None:
    if arch not in BUILDABLE:
        raise UnsupportedError(
            f"no boot files for {arch}: this version builds {', '.join(BUILDABLE)} only"
        )


def _runtime_inputs(resolved: Mapping[str, Package]) -> Inputs:
    wanted = runtime_bundle.choose(resolved)
    return {
        "packages": [package.identity for package in wanted],
        "recipe": runtime_bundle.RECIPE,
    }


class _Steps:
    """Tells of steps in one place, so that their phrases look alike."""

    def __init__(self, progress: ProgressFn) -> None:
        self._progress = progress

    def begin(self, phrase: str) -> None:
        self._progress(phrase, 0, 0)

    def bytes(self, phrase: str, done: int, total: int) -> None:
        self._progress(phrase, done, total)
