"""Makes a child process: in a session and a control group of its own, with nothing of the agent's.

The child side runs between fork and exec and may only make system calls. What goes wrong there is
told through a pipe that closes by itself when exec succeeds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import termios
import threading
from typing import TYPE_CHECKING, NoReturn

from arcbox_agent import forker
from arcbox_agent.syscalls import fork_into_cgroup

if TYPE_CHECKING:
    from arcbox_agent.cgroup import Cgroup, Cgroups
    from arcbox_agent.users import Credentials

NOT_EXECUTABLE = 126
NOT_FOUND = 127

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_STAGES = ("", "change to the directory", "run", "become the user", "prepare")
_IN_DIRECTORY, _IN_EXEC, _IN_USER, _IN_PREPARE = 1, 2, 3, 4
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
# By Python; and by a shell, for a job in its background, as the forker may be. Exec resets others.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_REPORT = struct.Struct("=ii")
_clone_works = True


class Ids:
    """Whom a process runs as, in numbers."""

    __slots__ = ("gid", "groups", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int]) -> None:
        """Keep the primary group and the supplementary ones."""
        self.uid = uid
        self.gid = gid
        self.groups = groups


class Command:
    """What to run, all of it decided before the fork."""

    __slots__ = ("argv", "candidates", "credentials", "cwd", "env", "optional_cwd", "size")

    def __init__(
        self,
        argv: list[bytes],
        env: dict[bytes, bytes],
        credentials: Credentials | Ids,
        cwd: str,
        *,
        optional_cwd: bool,
        size: tuple[int, int] | None,
    ) -> None:
        """Keep it; a `size` (rows, columns) asks for a terminal.

        An `optional_cwd` that cannot be entered is replaced by the root directory.
        """
        self.argv = argv
        self.env = env
        self.credentials = credentials
        self.cwd = cwd
        self.optional_cwd = optional_cwd
        self.size = size
        self.candidates = _candidates(argv[0], env.get(b"PATH", b""))


class Pipes:
    """The agent's ends; -1 is one that does not exist. A terminal's two ways share a descriptor."""

    __slots__ = ("failure", "stderr", "stdin", "stdout")

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        """Keep the descriptors, all non-blocking."""
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.failure = -1


def start(command: Command, group: Cgroup | None, *, stdin: bool) -> tuple[int, Pipes]:
    """Fork and exec; return the child's pid and the ends of its pipes.

    Returns before the exec has happened: whether it did is read from `Pipes.failure` after the
    child's end.

    Raises:
        OSError: There was no descriptor or process left to make one of.
    """
    ends = _Ends()
    try:
        failure, our_failure = ends.pipe()
        stdio, pipes = _make_stdio(ends, command, stdin=stdin)
        pipes.failure = our_failure
        pid = _run(command, group, stdio, failure)
    except BaseException:
        ends.close_ours()
        raise
    finally:
        ends.close_theirs()
    return pid, pipes


def start_with(
    command: Command, group: Cgroup | None, stdio: tuple[int, int, int]
) -> tuple[int, int]:
    """Fork and exec with the caller's descriptors for 0 to 2, none of which may be 0 to 2 itself.

    Returns:
        The pid, and the descriptor for `read_failure` after the child's end.

    Raises:
        OSError: There was no descriptor or process left to make one of.
    """
    ends = _Ends()
    try:
        failure, our_failure = ends.pipe()
        return _run(command, group, stdio, failure), our_failure
    except BaseException:
        ends.close_ours()
        raise
    finally:
        ends.close_theirs()


class _Ends:
    """The descriptors being made for a child: what it gets, and what the agent keeps."""

    __slots__ = ("ours", "theirs")

    def __init__(self) -> None:
        self.ours: list[int] = []
        self.theirs: list[int] = []

    def pipe(self, *, child_reads: bool = False) -> tuple[int, int]:
        """Make a pipe; return the child's end and ours."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        return self.add(*((reader, writer) if child_reads else (writer, reader)))

    def add(self, theirs: int, ours: int) -> tuple[int, int]:
        """Keep account of a pair; our side never blocks."""
        self.theirs.append(theirs)
        self.ours.append(ours)
        os.set_blocking(ours, False)
        return theirs, ours

    def close_ours(self) -> None:
        for fd in self.ours:
            os.close(fd)

    def close_theirs(self) -> None:
        for fd in self.theirs:
            os.close(fd)


def _make_stdio(
    ends: _Ends, command: Command, *, stdin: bool
) -> tuple[tuple[int, int, int], Pipes]:
    """Make the child's descriptors 0 to 2, and our ends of them."""
    if command.size is not None:
        ours, theirs = os.openpty()
        ends.add(theirs, ours)
        if all(command.size):
            set_size(ours, *command.size)
        # Without a caller who types it is a terminal all the same, as `docker exec -t` has it.
        return (theirs, theirs, theirs), Pipes(ours if stdin else -1, ours, -1)
    theirs_in, ours_in = ends.pipe(child_reads=True) if stdin else (_null(ends), -1)
    theirs_out, ours_out = ends.pipe()
    theirs_err, ours_err = ends.pipe()
    return (theirs_in, theirs_out, theirs_err), Pipes(ours_in, ours_out, ours_err)


def _null(ends: _Ends) -> int:
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    ends.theirs.append(fd)
    return fd


def read_failure(fd: int, command: Command) -> tuple[int, str] | None:
    """Read what kept the child from its exec, as exit code and sentence; None if nothing did."""
    try:
        report = os.read(fd, _REPORT.size)
    except BlockingIOError:  # a child of the child holds it: then there was an exec, or a kill
        return None
    if len(report) < _REPORT.size:
        return None
    stage, number = _REPORT.unpack(report)
    subject = {
        _IN_DIRECTORY: command.cwd,
        _IN_EXEC: os.fsdecode(command.argv[0]),
        _IN_USER: f"{command.credentials.uid}:{command.credentials.gid}",
    }.get(stage, "the process")
    code = NOT_FOUND if number in _MISSING else NOT_EXECUTABLE
    return code, f"cannot {_STAGES[stage]} {subject}: {os.strerror(number)}"


def set_size(fd: int, rows: int, columns: int) -> None:
    """Give a terminal its size; its foreground processes get SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("=4H", rows, columns, 0, 0))


def _candidates(program: bytes, path: bytes) -> list[bytes]:
    if b"/" in program:
        return [program]
    return [(folder or b".") + b"/" + program for folder in path.split(b":")]


def _run(command: Command, group: Cgroup | None, stdio: tuple[int, int, int], failure: int) -> int:
    if group is not None:
        spare, group.spare = group.spare, None
        try:
            if spare is not None:
                return spare.run(command, stdio, failure)
            if forker.current is not None:
                return forker.current.run(command, group.fd, stdio, failure)
        except forker.ForkerLostError:
            pass
    pid = _fork(group)
    if pid == 0:
        become(command, stdio, failure)
    return pid


def _fork(group: Cgroup | None) -> int:
    global _clone_works  # noqa: PLW0603  a property of the kernel, found out once
    if group is None:
        return os.fork()
    if _clone_works and threading.active_count() == 1:
        try:
            return fork_into_cgroup(group.fd)
        except OSError as error:
            _clone_works = error.errno not in (errno.ENOSYS, errno.EINVAL, errno.E2BIG)
    procs = os.open(f"{group.path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                os.write(procs, b"0")
            except OSError:
                os._exit(NOT_EXECUTABLE)
        return pid
    finally:
        os.close(procs)


def make_spare(cgroups: Cgroups) -> Cgroup | None:
    """Make a group with a process that waits to become a command; None where that cannot be."""
    if forker.current is None or (group := cgroups.create()) is None:
        return None
    try:
        group.spare = forker.current.spare(group.fd)
    except (OSError, forker.ForkerLostError):
        group.remove()
        return None
    return group


def separate() -> None:
    """Leave the agent's session and whatever else of it a forked child has.

    Raises:
        OSError: The kernel refused.
    """
    signal.set_wakeup_fd(-1)
    for each in _IGNORED:
        signal.signal(each, signal.SIG_DFL)
    os.setsid()
    os.umask(0o022)


def become(
    command: Command, stdio: tuple[int, int, int], failure: int, *, separated: bool = False
) -> NoReturn:
    """Turn the forked child into the command. Never returns, whatever happens."""
    stage = _IN_PREPARE
    number = errno.EIO
    try:
        if not separated:
            separate()
        if command.size is not None:
            fcntl.ioctl(stdio[1], termios.TIOCSCTTY, 0)
        # Descriptors 0 to 2 of the agent are always open, so none of `stdio` can be among them.
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        stage = _IN_USER
        _become_user(command.credentials)
        stage = _IN_DIRECTORY
        _enter_directory(command)
        stage = _IN_EXEC
        _exec(command)
    except OSError as error:
        number = error.errno or errno.EIO
    except BaseException:  # noqa: BLE001  the child must end here and say so
        number = errno.EIO
    finally:
        os.write(failure, _REPORT.pack(stage, number))
        os._exit(NOT_EXECUTABLE)


def _become_user(wanted: Credentials | Ids) -> None:
    if wanted.groups != os.getgroups():
        os.setgroups(wanted.groups)
    if wanted.gid != 0:
        os.setresgid(wanted.gid, wanted.gid, wanted.gid)
    if wanted.uid != 0:
        os.setresuid(wanted.uid, wanted.uid, wanted.uid)


def _enter_directory(command: Command) -> None:
    try:
        os.chdir(command.cwd)
    except OSError:
        if not command.optional_cwd:
            raise
        os.chdir("/")


def _exec(command: Command) -> NoReturn:
    """Run the first candidate that exists, as execvp(3) does, without its fallback to a shell."""
    refused: OSError | None = None
    missing: OSError | None = None
    for candidate in command.candidates:
        try:
            os.execve(candidate, command.argv, command.env)  # noqa: S606  there shall be none
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                missing = error
            elif error.errno == errno.EACCES:
                refused = error
            else:
                raise
    raise refused or missing or FileNotFoundError(errno.ENOENT, "not found")
