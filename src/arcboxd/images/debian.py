"""The Debian base image, built on the host by mmdebstrap from the host's own mirror."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
from importlib import resources
from pathlib import Path

from arcboxd import aio
from arcboxd.assets.initramfs import second_stage_script
from arcboxd.assets.mirror import DEBIAN_ARCHES, host_arch
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import AssetBuildError, PreconditionError, UnsupportedError
from arcboxd.images.second_stage import SecondStage
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


_FIRST_STEPS = (
    (r"^I: running apt-get update", "reading the mirror's package lists"),
    (r"^I: downloading packages with apt", "downloading the base system"),
)
_NATIVE_STEPS = (
    *_FIRST_STEPS,
    (r"^I: extracting archives", "unpacking the base system"),
    (r"^I: installing essential packages", "installing the base system"),
    (r"^I: installing remaining packages", "installing the other packages"),
    (r"^I: arcbox: settings", "writing settings"),
    (r"^I: arcbox: packing", "packing the disk image"),
)
_FOREIGN_STEPS = (
    *_FIRST_STEPS,
    (r"^I: arcbox: unpacking", "unpacking the system"),
    (r"^I: arcbox: packing", "packing the disk image"),
    (r"^I: arcbox: preparing", "installing the system in a machine of its own"),
    (r"^I: arcbox: configuring", "installing the system in a machine of its own"),
    (r"^I: arcbox: finished", "checking the disk image"),
)
"""Lines of the build's log, in their order, and what they mean."""

_BUILD, _SETTINGS, _CONFIGURE = "debian-build.sh", "debian-settings.sh", "debian-configure.sh"


def scripts(arch: str) -> str:
    """Give the scripts that make an image of an architecture, which are part of the package."""
    if arch == host_arch():
        return _script(_BUILD) + _script(_SETTINGS)
    parts = (_script(name) for name in (_BUILD, _SETTINGS, _CONFIGURE))
    return "".join(parts) + second_stage_script().decode()


def _script(name: str) -> str:
    return (resources.files("arcboxd.images") / name).read_text()


def step_of(log: str, *, foreign: bool = False) -> tuple[str, int, int]:
    """Tell what is being done, how much of it is done, and of how much, by a log."""
    steps = _FOREIGN_STEPS if foreign else _NATIVE_STEPS
    begun = [n for n, (line, _) in enumerate(steps, 1) if re.search(line, log, re.MULTILINE)]
    if not begun:
        return "preparing the Debian image", 0, len(steps)
    line, phrase = steps[begun[-1] - 1]
    if "configuring" in line:  # by far the longest
        count = functools.partial(re.findall, string=log, flags=re.MULTILINE)
        return phrase, len(count("^Setting up ")), len(count("^Unpacking "))
    return phrase, begun[-1], len(steps)


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
    suite: str,
    arch: str,
    *,
    sources: str,
    debs: Path,
    target: Path,
    progress: ProgressFn,
    second_stage: SecondStage | None = None,
) -> None:
    """Make ``root.img`` in ``target``: ext4 without partitions, sparse.

    Args:
        suite: The release's name.
        arch: The architecture.
        sources: A sources.list: where the packages come from, now and for the machine's own apt.
        debs: Keeps downloaded packages for the next build.
        target: An empty directory; also used for scratch.
        progress: Told of each step.
        second_stage: Finishes the image if the architecture is not the host's.

    Raises:
        AssetBuildError: A step failed.
        MissingToolError: A program is missing on the host.
        PreconditionError: The user may not make user namespaces.
        TooLateError: It took much longer than it ever should.
        UnsupportedError: There is nothing that finishes an image of that architecture.
    """
    foreign = arch != host_arch()
    if foreign and second_stage is None:
        raise UnsupportedError(f"no {arch} image can be built on this host")
    tool("mmdebstrap")
    prefix = namespace_command()
    await asyncio.to_thread(debs.mkdir, parents=True, exist_ok=True)
    program, listed = target / "build.sh", target / "sources.list"
    texts = {program: _script(_BUILD), listed: sources}
    texts |= {target / "settings.sh": _script(_SETTINGS)}
    texts |= {target / "configure.sh": _script(_CONFIGURE)}
    for path, text in texts.items():
        await asyncio.to_thread(path.write_text, text)
    argv = [*prefix, "sh", str(program), suite, DEBIAN_ARCHES[arch], str(target), str(listed)]
    argv += [",".join(PACKAGES), str(VIRTUAL_BYTES), "foreign" if foreign else "native"]
    env = {**os.environ, "ARCBOX_DEB_CACHE": str(debs)}
    log = target / "build.log"
    watcher = aio.spawn(_watch(log, progress, foreign=foreign), name="debian-build-log")
    try:
        await run(argv, timeout_s=_TIMEOUT_S, env=env)
        if foreign and second_stage is not None:
            await second_stage.finish(arch, target / "root.img", log, progress)
    except (CommandError, AssetBuildError) as error:
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


async def _watch(log: Path, progress: ProgressFn, *, foreign: bool) -> None:
    seen = None
    while True:
        text = ""
        with contextlib.suppress(FileNotFoundError):
            text = await asyncio.to_thread(log.read_text, errors="replace")
        if (step := step_of(text, foreign=foreign)) != seen:
            seen = step
            progress(*step)
        await asyncio.sleep(_POLL_S)  # the log is a file: it has no event


def _complaint(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        return " / ".join(
            [line for line in lines if line.startswith(("E:", "Err:", "dpkg: error"))][-3:]
        )
    return ""


def _has_subordinate_ids(table: Path) -> bool:
    names = {str(os.getuid()), os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
    with contextlib.suppress(OSError):
        return any(line.split(":")[0] in names for line in table.read_text().splitlines())
    return False
