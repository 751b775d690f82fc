"""The Debian base image, built on the host by mmdebstrap from the host's own mirror."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from importlib import resources
from pathlib import Path

from arcboxd import aio
from arcboxd.assets.mirror import DEBIAN_ARCHES
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import AssetBuildError, PreconditionError
from arcboxd.process import CommandError, run, tool

RECIPE = "1"
"""Raised when this module makes something else of the same inputs; the script has its own part."""

VIRTUAL_BYTES = 3 << 30
"""The filesystem's size; machines get a larger disk and grow it at their first start."""

_PACKAGE_NAMES = """
    bash-completion ca-certificates curl dbus e2fsprogs file iproute2 iputils-ping kmod less
    libpam-systemd lsof nano netbase openssh-server procps psmisc rsync sudo systemd systemd-sysv
    tzdata udev vim-tiny wget xz-utils zstd
"""
PACKAGES = tuple(_PACKAGE_NAMES.split())
"""What one expects to find in a shell. git, which brings Perl along, and compilers are an
`apt install` away."""

_TIMEOUT_S = 1800.0
_POLL_S = 0.3


_STEPS = (
    (r"^I: running apt-get update", "reading the mirror's package lists"),
    (r"^I: downloading packages with apt", "downloading the base system"),
    (r"^I: extracting archives", "unpacking the base system"),
    (r"^I: installing essential packages", "installing the base system"),
    (r"^I: installing remaining packages", "installing the other packages"),
    (r"^I: arcbox: settings", "writing settings"),
    (r"^I: arcbox: packing", "packing the disk image"),
)
"""Lines of the build's log, in their order, and what they mean."""


def script() -> bytes:
    """Read the build script, which is part of the package."""
    return (resources.files("arcboxd.images") / "debian-build.sh").read_bytes()


def step_of(log: str) -> int:
    """Tell how many steps a log shows to have begun."""
    return max(
        (n for n, (line, _) in enumerate(_STEPS, start=1) if re.search(line, log, re.MULTILINE)),
        default=0,
    )


def namespace_command() -> list[str]:
    """Give the words that run a command as root of a user namespace; none when we are root.

    Raises:
        MissingToolError: The programs for it are not installed.
        PreconditionError: The user has no subordinate ids.
    """
    if os.geteuid() == 0:
        return []
    tool("newuidmap", package="uidmap")
    for table in (Path("/etc/subuid"), Path("/etc/subgid")):
        if not _has_subordinate_ids(table):
            raise PreconditionError(
                f"this user has no subordinate ids in {table}",
                hint="give some with: sudo usermod --add-subuids 100000-165535"
                " --add-subgids 100000-165535 $USER",
            )
    unshare = tool("unshare", package="util-linux")
    return [unshare, "--map-auto", "--map-root-user", "--mount"]


async def build_debian(
    suite: str, arch: str, *, sources: str, debs: Path, target: Path, progress: ProgressFn
) -> None:
    """Make ``root.img`` in ``target``: ext4 without partitions, sparse.

    Args:
        suite: The release's name.
        arch: The architecture.
        sources: A sources.list: where the packages come from, now and for the machine's own apt.
        debs: Keeps downloaded packages for the next build.
        target: An empty directory; also used for scratch.
        progress: Told of each step.

    Raises:
        AssetBuildError: A step failed.
        MissingToolError: A program is missing on the host.
        PreconditionError: The user may not make user namespaces.
    """
    tool("mmdebstrap")
    prefix = namespace_command()
    program, listed = target / "build.sh", target / "sources.list"
    await asyncio.to_thread(debs.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(program.write_bytes, script())
    await asyncio.to_thread(listed.write_text, sources)
    argv = [*prefix, "sh", str(program), suite, DEBIAN_ARCHES[arch], str(target), str(listed)]
    argv += [",".join(PACKAGES), str(VIRTUAL_BYTES)]
    env = {**os.environ, "ARCBOX_DEB_CACHE": str(debs)}
    log = target / "build.log"
    watcher = aio.spawn(_watch(log, progress), name="debian-build-log")
    try:
        await run(argv, timeout_s=_TIMEOUT_S, env=env)
    except CommandError as error:
        raise AssetBuildError(
            f"cannot build the {suite} image: {_complaint(log) or error}",
            hint="check that the host reaches its mirror",
        ) from error
    finally:
        await aio.cancel(watcher)
    await asyncio.to_thread(_keep_only, target, "root.img")


def _keep_only(folder: Path, name: str) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != name:
            path.unlink()


async def _watch(log: Path, progress: ProgressFn) -> None:
    seen = -1
    while True:
        step = 0
        with contextlib.suppress(FileNotFoundError):
            step = step_of(await asyncio.to_thread(log.read_text, errors="replace"))
        if step != seen:
            seen = step
            phrase = _STEPS[step - 1][1] if step else "preparing the Debian image"
            progress(phrase, step, len(_STEPS))
        await asyncio.sleep(_POLL_S)  # the log is a file: it has no event


def _complaint(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        return " / ".join([line for line in lines if line.startswith(("E:", "Err:"))][-3:])
    return ""


def _has_subordinate_ids(table: Path) -> bool:
    names = {str(os.getuid()), os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
    with contextlib.suppress(OSError):
        return any(line.split(":")[0] in names for line in table.read_text().splitlines())
    return False
