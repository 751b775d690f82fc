"""What measurements run on: the floor, and a daemon with a state directory of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

from arcboxd.assets.mirror import host_arch
from arcboxd.assets.store import AssetStore
from arcboxd.client.client import Client
from arcboxd.client.daemon import connect, stop_daemon
from arcboxd.client.lock import owner_pid
from arcboxd.errors import ArcboxError, TooLateError
from arcboxd.hypervisor.base import Accelerator
from arcboxd.hypervisor.qemu.accelerator import choose_accelerator
from arcboxd.hypervisor.qemu.argv import kernel_cmdline
from arcboxd.hypervisor.qemu.platforms import platform_of
from arcboxd.paths import Paths
from arcboxd.settings import MIB

CPUS = 2
MEMORY_BYTES = 1024 * MIB
"""Every guest here is of this size, the floor's too."""

_READY = b"FLOOR_READY"
_ARCBOX = Path(sys.executable).parent / "arcbox"
_START_S = 60.0
_LOG_LINES = 30
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_T = TypeVar("_T")


class Floor:
    """A bare kernel and a busybox init that says one word: no machine boots faster than that."""

    def __init__(self, kernel: Path, initramfs: Path, accelerator: Accelerator) -> None:
        """Use these files; see `prepared`."""
        self._kernel = kernel
        self._initramfs = initramfs
        self.accelerator = accelerator

    @classmethod
    def prepared(cls) -> Floor:
        """Give it, with its files built first when they are missing: minutes, that once.

        Raises:
            ArcboxError: They cannot be built.
        """
        store = AssetStore(Paths.of())
        kernel, initramfs = asyncio.run(store.floor(host_arch(), _say_step))
        setting = os.environ.get("ARCBOX_ACCELERATOR", "auto")
        return cls(kernel, initramfs, choose_accelerator(setting))

    def s(self, *, our_options: bool = False) -> float:
        """Time the way from QEMU's start to the word, in seconds.

        Args:
            our_options: Give the kernel the options that machines have, for a lower floor.
        """
        of = platform_of(host_arch())
        plain = f"{of.cmdline.split()[0]} quiet no_timer_check"
        our_own = kernel_cmdline(host_arch(), self.accelerator)
        cpu = of.emulated_cpu if our_options else of.emulated_cpu.partition(",")[0]
        kvm = self.accelerator.name == "kvm"
        began = time.perf_counter()
        with subprocess.Popen(
            [
                *(of.program, "-machine", of.board, "-accel", self.accelerator.name),
                *("-cpu", "host" if kvm else cpu),
                *("-smp", str(CPUS), "-m", str(MEMORY_BYTES // MIB)),
                *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
                *("-kernel", str(self._kernel), "-initrd", str(self._initramfs)),
                *("-append", our_own if our_options else plain),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as qemu:
            assert qemu.stdout is not None
            try:
                seen = b""
                while _READY not in seen:
                    chunk = os.read(qemu.stdout.fileno(), 65536)
                    assert chunk, f"the floor's guest ended: {seen!r}"
                    seen += chunk
                return time.perf_counter() - began
            finally:
                qemu.kill()


class Host:
    """A state directory of one run, which `host` makes and takes away."""

    def __init__(self, home: Path, floor: Floor) -> None:
        """Use an empty directory; use `host`."""
        self.floor = floor
        self.paths = Paths.of(home)

    @contextlib.contextmanager
    def daemon(self, *, templates: str = "manual", staged_clones: int = 0) -> Iterator[Client]:
        """Start a daemon on the directory; at the end it stops, and no machine of it is left.

        Templates stay: a later daemon of this run has them.

        Raises:
            ArcboxError: It does not start, or a machine cannot be removed.
        """
        environ = {
            **os.environ,
            "ARCBOX_HOME": str(self.paths.home),
            "ARCBOX_TEMPLATES": templates,
            "ARCBOX_STAGED_CLONES": str(staged_clones),
        }
        try:
            subprocess.run(
                [_ARCBOX, "daemon", "start"],
                env=environ,
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=_START_S,
            )
            with connect(self.paths) as client:
                yield client
                for machine in client.list(all_states=True):
                    client.remove(machine.id, force=True)
        except Exception:
            # The log is about to go.
            sys.stderr.writelines(self._last_words())
            raise
        finally:
            with _to_the_end():
                self.end()

    def end(self) -> None:
        """End the daemon and every QEMU of the directory. Idempotent; takes seconds at most."""
        try:
            stop_daemon(self.paths)
        except ArcboxError as error:
            sys.stderr.write(f"bench: {error}\n")
            if pid := owner_pid(self.paths.lock):
                _kill(pid)
        for pid in self._qemu_pids():
            _kill(pid)

    def daemon_rss_bytes(self, client: Client) -> int:
        """Read the daemon's resident memory."""
        status = Path(f"/proc/{client.daemon_info().pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def _last_words(self) -> list[str]:
        with contextlib.suppress(OSError):
            log = self.paths.daemon_log.read_text(errors="replace")
            return log.splitlines(keepends=True)[-_LOG_LINES:]
        return []

    def _qemu_pids(self) -> list[int]:
        """Find the QEMU processes with files in the directory, whose name is nobody else's."""
        inside = os.fsencode(f"{self.paths.home}/")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    cmdline = (entry / "cmdline").read_bytes()
                    if b"qemu-system" in cmdline and inside in cmdline:
                        found.append(int(entry.name))
        return found


@contextlib.contextmanager
def host(floor: Floor) -> Iterator[Host]:
    """Make a state directory, and take it away with all that is in it and runs in it."""
    # Short: a unix socket's path holds 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="abx-"))
    made = Host(home, floor)
    try:
        yield made
    finally:
        with _to_the_end():
            made.end()
            shutil.rmtree(home)


def end_in_order() -> None:
    """Let what ends a program from outside do so as Ctrl-C does, by an exception."""
    for number in _ENDINGS:
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise in the main thread once the time is over.

    Raises:
        TooLateError: It is over.
    """

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TooLateError(f"it took longer than {seconds:g} s and was ended")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def rounds(floor: Floor, times: int, sample: Callable[[int], _T]) -> tuple[list[float], list[_T]]:
    """Alternate the floor and something else; give the floor's seconds, and the other's results."""
    floors, samples = [], []
    for i in range(times):
        floors.append(floor.s())
        samples.append(sample(i))
    return floors, samples


def timed(call: Callable[[], object]) -> float:
    """Time one call, in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextlib.contextmanager
def _to_the_end() -> Iterator[None]:
    """Let no signal come between: what cleans up is short, and must not be left half done."""
    quiet = (*_ENDINGS, signal.SIGALRM)
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in quiet]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _say_step(step: str, done: int, total: int) -> None:
    if done == 0:
        sys.stderr.write(f"bench: {step}\n")
