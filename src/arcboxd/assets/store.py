"""Builds, once, everything that machines boot from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

from arcboxd.assets import boot_parts, kernel, kubernetes_bundle, runtime_bundle
from arcboxd.assets.apt import Apt, Package, prune_archives, put_back
from arcboxd.assets.boot_parts import BootParts
from arcboxd.assets.cache import Cache, Inputs, key_of
from arcboxd.assets.initramfs import (
    floor_initramfs,
    second_stage_initramfs,
    second_stage_script,
)
from arcboxd.assets.mirror import DEBIAN_ARCHES, Mirror, host_arch, host_codename, host_mirror
from arcboxd.assets.seen import Seen
from arcboxd.assets.workshop import Workshop
from arcboxd.domain.image import BootAssets, ProgressFn
from arcboxd.errors import AssetBuildError, UnsupportedError
from arcboxd.kubernetes.distribution import K3S, Pin
from arcboxd.paths import Paths

BUILDABLE = tuple(DEBIAN_ARCHES)
"""Architectures whose assets this version can build, on a host of any of them."""

_KINDS = (*boot_parts.KINDS, "runtime", "floor", "secondstage")
"""Of what `AssetStore.prune` removes. The last two are small, and made again in no time."""


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
        parts = self._parts(arch, progress)
        busybox, built = await parts.busybox(), await parts.kernel()
        initramfs = await parts.initramfs(built, busybox)
        agent = await parts.agent(busybox)
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
        pins = map(self._apt(arch).pin, boot_parts.package_sets(arch))
        files = (assets.kernel, assets.initramfs, assets.modules_disk, assets.agent_disk)
        self._seen[arch] = Seen(assets, (*pins, *files))
        return assets

    async def refresh(self, arch: str, progress: ProgressFn) -> tuple[BootAssets, bool]:
        """Ask the archive for newer packages, and make boot files of them.

        The disk of the container runtime is made anew too, if one was ever asked for. If anything
        fails, machines boot what they booted before.

        Returns:
            The boot files, and whether any of them, or the container runtime's, are others now.

        Raises:
            AssetBuildError: The archive cannot be reached, or a step failed.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        _require_buildable(arch)
        apt, own = self._apt(arch), self._apt(host_arch())
        sets = [(apt, names) for names in boot_parts.package_sets(arch)]
        sets.append((own, kernel.DEPMOD_PACKAGES))
        runtimes = [(source, runtime_bundle.PACKAGES) for source in self._runtime_sources(arch)]
        before = self._wanted(arch)
        with put_back([source.pin(names) for source, names in (*sets, *runtimes)]):
            for source, names in sets:
                progress("asking for newer packages", 0, 0)
                await source.resolve(names, refresh=True)
            if any(source.pinned(names) for source, names in runtimes):
                await self._resolve_runtime(arch, self._workshop(progress), refresh=True)
                await self.runtime(arch, progress)
            boot = await self.ensure(arch, progress)
        return boot, self._wanted(arch) != before

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
        workshop = self._workshop(progress)
        apt, resolved = await self._resolve_runtime(arch, workshop)
        wanted = runtime_bundle.choose(resolved)

        async def build(target: Path) -> None:
            files = await workshop.fetch(apt, wanted, "the container runtime")
            await runtime_bundle.build_runtime_disk(wanted, files.values(), target, workshop.begin)

        entry = await workshop.ensure("runtime", _runtime_inputs(resolved), build)
        return entry.file(runtime_bundle.IMAGE)

    async def _resolve_runtime(
        self, arch: str, workshop: Workshop, *, refresh: bool = False
    ) -> tuple[Apt, dict[str, Package]]:
        # apt on the host knows its mirror by the host's own release; that mirror has the others.
        mirror = self._mirror or await host_mirror(self._suite)
        best, *others = self._runtime_sources(arch, mirror)
        names = runtime_bundle.PACKAGES
        try:
            return best, await workshop.resolve(best, names, refresh=refresh)
        except AssetBuildError as error:
            if not others or not runtime_bundle.cannot_be_had(error):
                raise
            return others[0], await workshop.resolve(others[0], names, refresh=refresh)

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
        workshop, apt = self._workshop(progress), self._apt(arch)
        resolved = dict[str, Package]()
        if pin.distribution != K3S:
            resolved = await workshop.resolve(apt, kubernetes_bundle.PACKAGES)
        downloads = self._paths.assets / "downloads"

        async def fetch_packages(names: Iterable[str]) -> dict[str, tuple[Package, Path]]:
            wanted = [resolved[name] for name in names]
            files = await workshop.fetch(apt, wanted, "what Kubernetes needs")
            return {package.name: (package, files[package.name]) for package in wanted}

        async def build(target: Path) -> None:
            file = await kubernetes_bundle.obtain(pin, downloads, fetch, progress)
            if pin.distribution == K3S:
                await kubernetes_bundle.build_k3s_disk(pin, file, arch, target, workshop.begin)
            else:
                await kubernetes_bundle.build_upstream_disk(
                    pin,
                    file,
                    arch,
                    fetch_packages=fetch_packages,
                    target=target,
                    step=workshop.begin,
                )
            if file.parent == downloads:
                file.unlink()

        inputs = kubernetes_bundle.inputs(pin, kubernetes_bundle.choose(resolved))
        entry = await workshop.ensure("kubernetes", inputs, build)
        return entry.file(kubernetes_bundle.IMAGE)

    async def floor(self, arch: str, progress: ProgressFn) -> tuple[Path, Path]:
        """Give a kernel and the least initramfs that boots, for benchmarks to compare with.

        Raises:
            AssetBuildError: A step failed.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        boot = await self.ensure(arch, progress)
        busybox = (await self._parts(arch, progress).busybox()).file("busybox")

        async def build(target: Path) -> None:
            data = floor_initramfs(await asyncio.to_thread(busybox.read_bytes))
            await asyncio.to_thread((target / "floor.cpio").write_bytes, data)

        inputs: Inputs = {"busybox": str(busybox), "recipe": "1"}
        entry = await self._workshop(progress).ensure("floor", inputs, build)
        return boot.kernel, entry.file("floor.cpio")

    async def second_stage(self, arch: str, progress: ProgressFn) -> tuple[Path, Path]:
        """Give a kernel and the initramfs that finishes an image of a foreign architecture.

        Raises:
            AssetBuildError: A step failed.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        _require_buildable(arch)
        parts = self._parts(arch, progress)
        busybox, built = await parts.busybox(), await parts.kernel()

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
        entry = await self._workshop(progress).ensure("secondstage", inputs, build)
        return built.file("vmlinux"), entry.file("second.cpio")

    async def prune(self) -> tuple[list[str], int]:
        """Remove what earlier versions, of ours and of Debian's packages, booted and nobody uses.

        What is not removed needs no network to be used, as before. Kubernetes' disks stay: what
        they were made of may have no other copy.

        Returns:
            The names of the entries that went, and the bytes that this freed, with those of
            packages that are of no more use.
        """
        keep = {name for arch in BUILDABLE for name in self._wanted(arch)}
        archives = await asyncio.to_thread(prune_archives, self._paths.assets / "apt")
        names, freed = await self._cache.prune(_KINDS, keep)
        return names, archives + freed

    def _wanted(self, arch: str) -> set[str]:
        """Name the entries that the pins make, of which the container runtime's is there."""
        names = {f"{kind}-{key}" for kind, key in boot_parts.wanted(self._apt(arch)).items()}
        if runtime := self.find_runtime(arch):
            names.add(runtime.parent.name)
        return names

    def _apt(self, arch: str) -> Apt:
        return Apt(self._paths.assets / "apt", self._suite, arch, self._mirror)

    def _workshop(self, progress: ProgressFn) -> Workshop:
        return Workshop(self._cache, progress)

    def _parts(self, arch: str, progress: ProgressFn) -> BootParts:
        return BootParts(self._apt(arch), self._apt(host_arch()), self._workshop(progress))


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
