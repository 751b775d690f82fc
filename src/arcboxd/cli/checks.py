"""What `arcbox doctor` looks at; each check is one function, and none changes anything."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from arcboxd.cli.sizes import format_size
from arcboxd.errors import ArcboxError
from arcboxd.paths import SUN_PATH_MAX, Paths

if TYPE_CHECKING:
    from arcboxd.hypervisor.qemu.platforms import Platform

_TOOL_TIMEOUT_S = 10.0
QEMU_FLOOR = (7, 2)
_ROOM_BYTES = 8 << 30
_ROOM_FLOOR_BYTES = 1 << 30
_SUBIDS = 65536
_DAY_S = 24 * 3600
_KERNEL_DAYS = 30


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as well, or not everything does."""
    MISSING = "missing"
    """Machines cannot run without it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; ``mend`` says what to do about it."""

    name: str
    verdict: Verdict
    detail: str
    mend: str = ""


def every(paths: Paths) -> Iterator[Finding]:
    """Look at everything, one at a time."""
    yield accelerator(paths)
    yield from qemus()
    yield from (tool(*row) for row in _TOOLS)
    yield filesystem_tools()
    yield busybox()
    yield subids()
    yield state_directory(paths)
    yield socket_length(paths)
    yield room("room for machines", paths.home)
    yield room("room for the cache", paths.cache)
    yield from kernel(paths)
    yield daemon(paths)


_TOOLS = (
    # program, package, what it is for, and whether nothing works without it
    ("qemu-img", "qemu-utils", "makes disks", True),
    ("mmdebstrap", "mmdebstrap", "builds Debian images", True),
    ("mkfs.ext4", "e2fsprogs", "makes root filesystems", True),
    ("ssh", "openssh-client", "arcbox ssh", False),
)


def accelerator(paths: Paths) -> Finding:
    """Tell how guests run here."""
    from arcboxd import settings
    from arcboxd.hypervisor.qemu.accelerator import KVM, choose_accelerator

    try:
        chosen = choose_accelerator(settings.load(paths.config).accelerator)
    except ArcboxError as error:
        return Finding("accelerator", Verdict.MISSING, error.message, error.hint)
    detail = f"{chosen.name}: {chosen.reason}"
    if chosen.name == KVM:
        return Finding("accelerator", Verdict.OK, detail)
    mend = "machines run, but 5 to 20 times slower, and emulation isolates nothing; "
    if "group kvm" in chosen.reason:
        mend += f"usermod -aG kvm {_user()}, then log in again"
    else:
        mend += "enable virtualization in the firmware, or nested virtualization on the host"
    return Finding("accelerator", Verdict.WARNING, detail, mend)


def qemus() -> Iterator[Finding]:
    """Find QEMU for this processor, without which nothing works, and for the others."""
    from arcboxd.assets.mirror import host_arch
    from arcboxd.hypervisor.qemu.platforms import PLATFORMS, platform_of

    own = host_arch()
    yield qemu("qemu", platform_of(own), Verdict.MISSING)
    for arch in PLATFORMS.keys() - {own}:
        yield qemu(f"qemu for {arch}", PLATFORMS[arch], Verdict.WARNING)


def qemu(name: str, wanted: Platform, verdict: Verdict) -> Finding:
    """Find one QEMU, and its version; the verdict is that of its absence."""
    program = wanted.program
    mend = f"apt-get install {wanted.package}"
    if (path := _which(program)) is None:
        return Finding(name, verdict, f"{program} is not installed", mend)
    text = _output([path, "--version"])
    match = re.search(r"version (\d+)\.(\d+)", text)
    if match is None:
        return Finding(name, verdict, f"{path} does not tell its version", mend)
    version = int(match[1]), int(match[2])
    detail = f"{path}, version {match[1]}.{match[2]}"
    if version < QEMU_FLOOR:
        return Finding(name, verdict, f"{detail}: 7.2 or newer is needed", mend)
    return Finding(name, Verdict.OK, detail)


def tool(program: str, package: str, purpose: str, needed: bool) -> Finding:
    """Find one program."""
    if path := _which(program):
        return Finding(program, Verdict.OK, path)
    verdict = Verdict.MISSING if needed else Verdict.WARNING
    detail = f"not installed ({purpose})"
    return Finding(program, verdict, detail, f"apt-get install {package}")


def filesystem_tools() -> Finding:
    """Find one of the two programs that make read-only disks."""
    for program in ("mkfs.erofs", "mksquashfs"):
        if path := _which(program):
            return Finding("read-only disks", Verdict.OK, path)
    detail = "neither mkfs.erofs nor mksquashfs is installed (modules and agent disks)"
    return Finding("read-only disks", Verdict.MISSING, detail, "apt-get install erofs-utils")


def busybox() -> Finding:
    """Find a busybox that needs no library; the initramfs has none."""
    mend = "apt-get install busybox-static"
    if (path := _which("busybox")) is None:
        return Finding("busybox", Verdict.WARNING, "not installed; it will be downloaded", mend)
    if b"/ld-" in Path(path).read_bytes()[:4096]:  # the interpreter of a dynamic ELF file
        return Finding("busybox", Verdict.WARNING, f"{path} is not static", mend)
    return Finding("busybox", Verdict.OK, f"{path}, static")


def subids(*, uid: int | None = None, etc: Path = Path("/etc")) -> Finding:
    """Look for the user's subordinate ids, by which images are built without root."""
    if (os.geteuid() if uid is None else uid) == 0:
        return Finding("subordinate ids", Verdict.OK, "not needed: this is root")
    user = _user()
    for file in ("subuid", "subgid"):
        try:
            rows = [line.split(":") for line in (etc / file).read_text().splitlines()]
        except OSError:
            rows = []
        mine = [r for r in rows if len(r) == 3 and r[0] in {user, str(uid or os.geteuid())}]  # noqa: PLR2004
        if not any(r[2].isdigit() and int(r[2]) >= _SUBIDS for r in mine):
            return Finding(
                "subordinate ids",
                Verdict.MISSING,
                f"/etc/{file} gives {user} fewer than {_SUBIDS} (building images without root)",
                f"usermod --add-sub{file[3:]}s 100000-165535 {user}",
            )
    if _which("newuidmap") is None:
        return Finding(
            "subordinate ids",
            Verdict.MISSING,
            "newuidmap is not installed",
            "apt-get install uidmap",
        )
    return Finding("subordinate ids", Verdict.OK, f"/etc/subuid and /etc/subgid have {user}")


def state_directory(paths: Paths) -> Finding:
    """Tell whether the state directory can be written, or made."""
    where = _existing(paths.home)
    if not os.access(where, os.W_OK | os.X_OK):
        mend = f"chown -R {_user()} {where}, or choose another with --home or ARCBOX_HOME"
        return Finding("state directory", Verdict.MISSING, f"{where} is not writable", mend)
    detail = str(paths.home) if where == paths.home else f"{paths.home} (not made yet)"
    return Finding("state directory", Verdict.OK, detail)


def socket_length(paths: Paths) -> Finding:
    """Tell whether the longest socket path fits; that of a machine, with an id of 12 characters."""
    sample = paths.machine("x" * 12).agent_socket
    length = max(len(os.fsencode(p)) for p in (sample, paths.socket))
    detail = f"{length} of {SUN_PATH_MAX} bytes"
    if length > SUN_PATH_MAX:
        mend = "choose a shorter state directory with --home or ARCBOX_HOME"
        return Finding("socket paths", Verdict.MISSING, detail, mend)
    return Finding("socket paths", Verdict.OK, detail)


def room(name: str, directory: Path) -> Finding:
    """Tell how much room a directory's filesystem has."""
    free = shutil.disk_usage(_existing(directory)).free
    detail = f"{format_size(free)} free for {directory}"
    if free >= _ROOM_BYTES:
        return Finding(name, Verdict.OK, detail)
    verdict = Verdict.WARNING if free >= _ROOM_FLOOR_BYTES else Verdict.MISSING
    return Finding(name, verdict, detail, "free some: an image takes about 1GiB, machines more")


def kernel(paths: Paths) -> Iterator[Finding]:
    """Tell how long ago the machines' kernel was chosen, which only its user has made newer."""
    from arcboxd.assets.apt import Apt
    from arcboxd.assets.kernel import kernel_image_package, kernel_packages
    from arcboxd.assets.mirror import host_arch, host_codename

    arch = host_arch()
    apt = Apt(paths.assets / "apt", host_codename(), arch)
    if (packages := apt.pinned(kernel_packages(arch))) is None:
        return
    package = kernel_image_package(packages, arch)
    days = int((time.time() - apt.pin(kernel_packages(arch)).stat().st_mtime) / _DAY_S)
    detail = f"{package.version}, the newest {days} days ago"
    if days < _KERNEL_DAYS:
        yield Finding("kernel of machines", Verdict.OK, detail)
    else:
        yield Finding("kernel of machines", Verdict.WARNING, detail, "arcbox image update")


def daemon(paths: Paths) -> Finding:
    """Ask the daemon, if one runs."""
    from arcboxd.client.daemon import connect, listens

    try:
        if not listens(paths.socket):
            return Finding("daemon", Verdict.OK, "not running; commands start it")
        with connect(paths) as client:
            info = client.daemon_info(timeout_s=_TOOL_TIMEOUT_S)
    except ArcboxError as error:
        mend = error.hint or "arcbox daemon stop, and try again"
        return Finding("daemon", Verdict.MISSING, error.message, mend)
    return Finding("daemon", Verdict.OK, f"runs, pid {info.pid}, {info.running} machines run")


def _existing(path: Path) -> Path:
    """Find the nearest folder that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _which(program: str) -> str | None:
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(program, path=path)


def _output(argv: list[str]) -> str:
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            timeout=_TOOL_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
