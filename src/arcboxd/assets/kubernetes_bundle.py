"""Kubernetes: a read-only disk with k3s, or with Kubernetes' own programs and what they need.

In the guest it is mounted at `MOUNT`. Nothing of it is run on the host: what version a program is,
the pin says, and the guest can ask the program.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tarfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from arcboxd.assets.apt import Package, unpack
from arcboxd.assets.disk_image import make_erofs
from arcboxd.assets.elf import needed
from arcboxd.assets.pause_image import write_pause_image
from arcboxd.assets.runtime_bundle import copy_libraries, patchelf, set_paths, upstream_version
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import AssetBuildError, CorruptError
from arcboxd.kubernetes.distribution import K3S, Pin

MOUNT = "/run/arcbox/kubernetes"
"""Where the guest has it; programs of Debian's name their loader and libraries by this path."""

IMAGE = "kubernetes.img"
RECIPE = "1"
"""Raised when this module makes something else of the same inputs."""

PACKAGES = ("etcd-client", "etcd-server", "kubernetes-client")
"""What an upstream bundle may lack, from Debian."""

FetchFn = Callable[[str, Path, str, ProgressFn], Awaitable[Path]]
"""Fetches an address to a file that has this SHA-256 in the end, and goes on where it broke off."""

REQUIRED = (
    *("kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    *("kubelet", "kube-proxy", "kubeadm"),
)
_OPTIONAL = ("etcd", "etcdctl", "kubectl", "pause")
_FROM_DEBIAN = {
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "kubectl": "kubernetes-client",
}
_LIBRARIES = ("libc6", "libgcc-s1")
_MACHINES = {"x86_64": 62, "aarch64": 183}
_FILE_MAX, _TOTAL_MAX, _MEMBERS_MAX = 1 << 30, 4 << 30, 100_000
_CHUNK_BYTES = 1 << 20


def choose(resolved: Mapping[str, Package]) -> list[Package]:
    """Pick, of `PACKAGES` and all that they depend on, those that files are taken of."""
    return [resolved[name] for name in sorted(resolved) if name in (*PACKAGES, *_LIBRARIES)]


def inputs(pin: Pin, packages: Sequence[Package]) -> dict[str, str | int | list[str]]:
    """Tell all that a disk is made of."""
    return {
        "distribution": pin.distribution,
        "version": pin.version,
        "sha256": pin.sha256,
        "packages": [package.identity for package in packages],
        "recipe": RECIPE,
    }


async def obtain(pin: Pin, folder: Path, fetch: FetchFn, progress: ProgressFn) -> Path:
    """Give the file of a pin, checked: the user's own, or one that is fetched to ``folder``.

    Raises:
        AssetBuildError: The user's own cannot be read.
        CorruptError: It has another digest than the pin says.
        ImageServerError: The server does not answer.
    """
    if pin.path is None:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        return await fetch(pin.source, folder / pin.sha256, pin.sha256, progress)
    progress(f"checking {pin.path.name}", 0, 0)
    if (digest := await asyncio.to_thread(_digest, pin.path)) != pin.sha256:
        raise CorruptError(
            f"{pin.path} is not the {pin.distribution} {pin.version} that is wanted: its sha256 is "
            f"{digest}, not {pin.sha256}",
            hint="use the file that is meant, or say so in kubernetes.toml",
        )
    return pin.path


async def build_k3s_disk(
    pin: Pin, file: Path, arch: str, target: Path, step: Callable[[str], None]
) -> None:
    """Make `IMAGE` in ``target``: ``bin/k3s`` and ``versions.json``.

    Raises:
        AssetBuildError: A step failed, or the file is no program for ``arch``.
        MissingToolError: There is no mkfs.erofs.
    """
    step("packing k3s")
    tree = target / "tree"
    program = tree / "bin" / "k3s"
    await asyncio.to_thread(lambda: _place(file.resolve(), program))
    _check_program(program, arch)
    for name in ("kubectl", "crictl", "ctr"):
        (program.parent / name).symlink_to("k3s")
    await _finish(tree, target, {K3S: pin.version})


async def build_upstream_disk(
    pin: Pin,
    bundle: Path,
    arch: str,
    *,
    fetch_packages: Callable[[Iterable[str]], Awaitable[Mapping[str, tuple[Package, Path]]]],
    target: Path,
    step: Callable[[str], None],
) -> None:
    """Make `IMAGE` in ``target``.

    Layout: ``bin``; ``lib`` (what programs of Debian's need); ``images/*.tar``, to be imported;
    ``versions.json``.

    Args:
        pin: What it is.
        bundle: A tar archive, whose digest was checked.
        arch: The kernel's name of the architecture.
        fetch_packages: Gives the packages of these names with their files.
        target: An empty directory; also used for scratch.
        step: Called with a phrase before each step.

    Raises:
        AssetBuildError: A step failed, or the bundle lacks something.
        CorruptError: The bundle has what it should not.
        MissingToolError: There is no patchelf or mkfs.erofs.
    """
    tree = target / "tree"
    step("unpacking Kubernetes")
    names = await asyncio.to_thread(take, bundle, tree, arch)
    versions = {"kubernetes": pin.version}
    if missing := [name for name in _FROM_DEBIAN if name not in names]:
        step("adding what the bundle lacks")
        wanted = [*(_FROM_DEBIAN[name] for name in missing), *_LIBRARIES]
        packages = await fetch_packages(wanted)
        scratch = target / "scratch"
        await unpack([file for _, file in packages.values()], scratch)
        for name in missing:
            _place(scratch / "usr" / "bin" / name, tree / "bin" / name)
            versions[name] = upstream_version(packages[_FROM_DEBIAN[name]][0].version)
        dynamic = [path for name in missing if needed(path := tree / "bin" / name)]
        if dynamic:
            (tree / "lib").mkdir()
            await asyncio.to_thread(copy_libraries, scratch, tree, dynamic)
            await set_paths(patchelf(), tree, dynamic, MOUNT)
        await asyncio.to_thread(shutil.rmtree, scratch)
    if "pause" in names:
        (tree / "images").mkdir(exist_ok=True)
        await asyncio.to_thread(
            write_pause_image, tree / "bin" / "pause", tree / "images" / "pause.tar", arch
        )
    step("packing Kubernetes")
    await _finish(tree, target, versions)


def take(bundle: Path, tree: Path, arch: str) -> set[str]:
    """Take the programs and images of a bundle, and name the programs.

    They are known by the last part of their names, so that the archives which Kubernetes' authors
    publish will do. Nothing else of the archive is written, and no name of its is used as a path.

    Raises:
        AssetBuildError: A program is missing, is not static, or is for another architecture.
        CorruptError: It is no archive, is too large, or has something twice, or as a link.
    """
    (tree / "bin").mkdir(parents=True)
    found: set[str] = set()
    try:
        with tarfile.open(bundle, "r|*") as archive:
            total = 0
            for count, member in enumerate(archive):
                total += member.size
                if member.size > _FILE_MAX or total > _TOTAL_MAX or count > _MEMBERS_MAX:
                    raise CorruptError(f"{bundle.name} holds more than Kubernetes does")
                place = _place_of(member.name)
                if place and not member.isdir():
                    _extract(archive, member, tree / place)
                    found.add(place)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise CorruptError(f"{bundle.name} cannot be unpacked: {error}") from error
    programs = {name for name in (*REQUIRED, *_OPTIONAL) if f"bin/{name}" in found}
    if missing := [name for name in REQUIRED if name not in programs]:
        raise AssetBuildError(f"{bundle.name} has no {', '.join(missing)}")
    for name in programs:
        _check_program(tree / "bin" / name, arch)
        if needed(tree / "bin" / name):
            raise AssetBuildError(
                f"{name} in {bundle.name} needs libraries, which guests may not have",
                hint="build it without cgo, or take the programs that Kubernetes' authors publish",
            )
    return programs


def _place_of(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts:
        return ""
    if parts[-1] in (*REQUIRED, *_OPTIONAL):
        return f"bin/{parts[-1]}"
    folder = parts[-2] if len(parts) > 1 else ""
    return f"images/{parts[-1]}" if folder == "images" and parts[-1].endswith(".tar") else ""


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(member) if member.isreg() else None
    if source is None:
        raise CorruptError(f"{member.name[:80]!r} in the bundle is not a plain file")
    target.parent.mkdir(exist_ok=True)
    try:
        with target.open("xb") as file:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
    except FileExistsError as error:
        raise CorruptError(f"{target.name} is in the bundle twice") from error
    target.chmod(0o755 if target.parent.name == "bin" else 0o644)


def _check_program(path: Path, arch: str) -> None:
    with path.open("rb") as file:
        head = file.read(20)
    machine = int.from_bytes(head[18:20], "little")
    if head[:6] != b"\x7fELF\x02\x01" or machine != _MACHINES[arch]:
        raise AssetBuildError(f"{path.name} is no program for {arch}")


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.is_symlink():
            raise AssetBuildError(f"{target.name} is a link to {source.readlink()}")
        shutil.copyfile(source, target)
    except OSError as error:
        raise AssetBuildError(f"{target.name} cannot be had: {error}") from error
    target.chmod(0o755)


async def _finish(tree: Path, target: Path, versions: Mapping[str, str]) -> None:
    (tree / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")
    await make_erofs(tree, target / IMAGE)
    await asyncio.to_thread(shutil.rmtree, tree)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AssetBuildError(f"{path} cannot be read: {error.strerror}") from error
