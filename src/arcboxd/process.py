"""The only place that spawns, signals or waits for a child or an adopted process."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from arcboxd.domain.machine import ProcessIdentity
from arcboxd.errors import ArcboxError, MissingToolError, TooLateError

OUTPUT_LIMIT_BYTES = 4 << 20
_PR_SET_THP_DISABLE = 41


class CommandError(ArcboxError):
    """A program ended with a status other than zero."""

    def __init__(self, message: str, *, status: int, stderr: str) -> None:
        """Keep the exit status and what the program said."""
        super().__init__(message)
        self.status = status
        self.stderr = stderr


@dataclass(frozen=True, slots=True)
class Output:
    """What a program wrote."""

    stdout: bytes
    stderr: bytes


def tool(name: str, *, package: str = "") -> str:
    """Find a program on the PATH, or where Debian keeps programs for administrators.

    Raises:
        MissingToolError: It is not installed; the hint names the Debian package.
    """
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    if (found := shutil.which(name, path=path)) is None:
        raise MissingToolError(
            f"the program {name!r} is not installed",
            hint=f"install it with: apt-get install {package or name}",
        )
    return found


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Output:
    """Run a program to its end, with its output kept; a cancelled call kills it.

    Raises:
        MissingToolError: There is no such program.
        CommandError: It ended with another status than 0; the message has its last words.
        TooLateError: It took longer than ``timeout_s`` seconds and was killed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            start_new_session=True,
            limit=OUTPUT_LIMIT_BYTES,
        )
    except FileNotFoundError as error:
        raise MissingToolError(f"the program {argv[0]!r} is not installed") from error
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin or None)
    except TimeoutError as error:
        raise TooLateError(f"{argv[0]} took longer than {timeout_s:g} s and was ended") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
    if process.returncode:
        words = err.decode(errors="replace").strip()
        last = " / ".join(words.splitlines()[-3:]) or "it said nothing"
        raise CommandError(
            f"{argv[0]} ended with status {process.returncode}: {last}",
            status=process.returncode,
            stderr=words,
        )
    return Output(out, err)


def boot_id() -> str:
    """Name this boot of the host's kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessIdentity | None:
    """Identify the process that has this pid now; None when there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = _fields(stat)
    state, start_ticks = fields[0], fields[19]
    if state in "ZX":
        return None
    return ProcessIdentity(boot_id(), pid, int(start_ticks))


def cpu_seconds(pid: int) -> float:
    """Tell the processor time that a process has used. Source: proc(5), ``utime`` and ``stime``.

    Raises:
        OSError: There is none.
    """
    user_ticks, system_ticks = _fields(Path(f"/proc/{pid}/stat").read_text())[11:13]
    return (int(user_ticks) + int(system_ticks)) / os.sysconf("SC_CLK_TCK")


def _fields(stat: str) -> list[str]:
    # The second field, the name, is in parentheses and may hold spaces and parentheses itself.
    return stat.rpartition(")")[2].split()


class ProcessHandle:
    """A process held by a pidfd: it can never be mistaken for another that got its pid."""

    def __init__(self, identity: ProcessIdentity, pidfd: int) -> None:
        """Take ownership of ``pidfd``; use `hold`."""
        self.identity = identity
        self._pidfd = pidfd
        self._exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @classmethod
    def hold(cls, identity: ProcessIdentity) -> ProcessHandle | None:
        """Hold that very process; None when it is gone."""
        if identity.boot_id != boot_id():
            return None
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        # Checked after the pidfd is open: from here on, the pid cannot change hands unseen.
        if identify(identity.pid) != identity:
            os.close(pidfd)
            return None
        return cls(identity, pidfd)

    @property
    def alive(self) -> bool:
        """Tell whether it runs still, as far as the loop has seen."""
        return not self._exited.done()

    async def wait(self) -> None:
        """Return once it is gone. May be awaited by many."""
        await asyncio.shield(self._exited)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that is gone is no error."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def release(self) -> None:
        """Let go of it, and leave it running. Idempotent."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_exit(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        self.release()
        if not self._exited.done():
            self._exited.set_result(None)


def spawn_detached(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    keep_fds: Sequence[int] = (),
    huge_pages: bool = True,
) -> ProcessHandle:
    """Start a program in a session of its own, which outlives this process.

    Its output is appended to ``log``. It inherits the descriptors ``keep_fds``, at the same
    numbers, and no other. Without ``huge_pages`` it gets none, not even where it asks for them.

    Raises:
        MissingToolError: There is no such program.
    """
    # posix_spawn, not Popen, which would warn of a child that nobody waits for: the pidfd tells,
    # for children and adopted processes alike.
    with log.open("ab") as out, contextlib.nullcontext() if huge_pages else _no_huge_pages():
        try:
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                os.environ if env is None else env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, out.fileno(), 2),
                    # Onto itself: that takes the close-on-exec flag off (posix_spawn(3)).
                    *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep_fds),
                ],
                setsid=True,
            )
        except FileNotFoundError as error:
            raise MissingToolError(f"the program {argv[0]!r} is not installed") from error
    pidfd = os.pidfd_open(pid)
    return ProcessHandle(identify(pid) or ProcessIdentity(boot_id(), pid, 0), pidfd)


@contextlib.contextmanager
def _no_huge_pages() -> Iterator[None]:
    """Let programs that are started meanwhile inherit this: see PR_SET_THP_DISABLE in prctl(2)."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)


@contextlib.contextmanager
def reading(argv: Sequence[str], source: BinaryIO) -> Iterator[IO[bytes]]:
    """Run a program on a file, and give what it writes as it comes; for code without a loop.

    What is left of the output when the body ends is read and thrown away; if the body fails, the
    program is killed.

    Raises:
        CommandError: It ended with another status than 0.
    """
    with _piped(argv, stdin=source, stdout=subprocess.PIPE) as process:
        if process.stdout is not None:
            yield process.stdout
            while process.stdout.read(1 << 20):
                pass


@contextlib.contextmanager
def writing(argv: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[IO[bytes]]:
    """Run a program that reads what the body writes; for code without a loop.

    Raises:
        CommandError: It ended with another status than 0.
    """
    with _piped(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env) as process:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # its status tells more
                yield process.stdin
                process.stdin.close()


@contextlib.contextmanager
def _piped(
    argv: Sequence[str],
    *,
    stdin: BinaryIO | int,
    stdout: int,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=words, env=env)
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            status = process.wait()
        if status:
            words.seek(0)
            text = words.read(1 << 16).decode(errors="replace").strip()
            last = " / ".join(text.splitlines()[-3:]) or "it said nothing"
            raise CommandError(
                f"{argv[0]} ended with status {status}: {last}", status=status, stderr=text
            )
