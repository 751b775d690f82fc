"""Finding the daemon, starting it when there is none, and stopping it.

Nothing here imports grpc before a daemon is known to listen: a command spends those 100 ms while
the daemon starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from arcboxd import process
from arcboxd.client.lock import owner_pid
from arcboxd.errors import DaemonUnreachableError, InvalidArgumentError
from arcboxd.paths import SUN_PATH_MAX, Paths

if TYPE_CHECKING:
    from arcboxd.client.client import Client

START_TIMEOUT_S = 10.0
_ADOPT_S = 20.0
"""Granted beyond that to a daemon that is there: it takes over what runs before it listens."""
_POLL_S = 0.02
_PROBE_S = 1.0
_LOG_LINES = 8
_STDERR = 2


def listens(path: Path, *, timeout_s: float = _PROBE_S) -> bool:
    """Tell whether someone accepts connections on a unix socket.

    Raises:
        DaemonUnreachableError: The socket is there and not ours to use.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(str(path))
        except PermissionError as error:
            raise DaemonUnreachableError(
                f"no permission for the daemon's socket {path}",
                hint="a daemon serves one user: is this another user's state directory?",
            ) from error
        except OSError:
            return False
    return True


def connect(paths: Paths) -> Client:
    """Connect to the daemon that runs.

    Raises:
        DaemonUnreachableError: None does.
        InvalidArgumentError: The state directory is too deep for a socket.
    """
    _check_length(paths)
    if not listens(paths.socket):
        raise DaemonUnreachableError(
            f"no daemon runs for {paths.home}", hint="start it with: arcbox daemon start"
        )
    return _client(paths)


def ensure_daemon(paths: Paths, *, timeout_s: float = START_TIMEOUT_S) -> Client:
    """Connect to the daemon, and start one when there is none.

    Commands that race start several; the daemon's own lock lets one live, and all connect to it.
    A start that takes too long is left to itself.

    Raises:
        DaemonUnreachableError: It ended or does not answer; the message has its last words.
        InvalidArgumentError: The state directory is too deep for a socket.
    """
    _check_length(paths)
    if listens(paths.socket):
        return _client(paths)
    paths.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    said = paths.daemon_log.stat().st_size if paths.daemon_log.exists() else 0
    deadline = time.monotonic() + timeout_s
    if not asyncio.run(_start(paths, deadline)):
        pid = owner_pid(paths.lock)
        what = "did not start" if pid is None else f"(pid {pid}) runs, but does not listen"
        raise DaemonUnreachableError(
            f"the daemon for {paths.home} {what}{_last_words(paths.daemon_log, said)}",
            hint=f"its log is {paths.daemon_log}; arcbox doctor checks the host",
        )
    client = _client(paths)
    try:
        client.daemon_info(timeout_s=max(1.0, deadline - time.monotonic()))
    except BaseException:
        client.close()
        raise
    return client


def stop_daemon(paths: Paths, *, timeout_s: float = START_TIMEOUT_S) -> bool:
    """End the daemon, and leave its machines running; tell whether there was one.

    It is asked first; one that does not answer gets a SIGTERM.

    Raises:
        DaemonUnreachableError: It is still there after ``timeout_s`` seconds.
    """
    pid = owner_pid(paths.lock)
    if pid is None:
        return False
    deadline = time.monotonic() + timeout_s
    try:
        with connect(paths) as client:
            client.stop_daemon()
    except DaemonUnreachableError:
        # The pid is of the process that holds the lock at this moment: nobody else's.
        if pid and owner_pid(paths.lock) == pid:
            os.kill(pid, signal.SIGTERM)
    while owner_pid(paths.lock) is not None:
        if time.monotonic() > deadline:
            raise DaemonUnreachableError(
                f"the daemon (pid {pid}) did not end within {timeout_s:g} s",
                hint=f"its log is {paths.daemon_log}; kill {pid} ends it, machines go on running",
            )
        time.sleep(_POLL_S)
    return True


def _client(paths: Paths) -> Client:
    from arcboxd.client.client import Client  # noqa: PLC0415 - grpc, see above

    return Client(paths.socket)


def _check_length(paths: Paths) -> None:
    """Say at once what the daemon would only say in its log."""
    longest = max(paths.socket, paths.machine("0" * 12).agent_socket, key=lambda p: len(str(p)))
    if (length := len(os.fsencode(longest))) > SUN_PATH_MAX:
        most = len(os.fsencode(paths.home)) - (length - SUN_PATH_MAX)
        raise InvalidArgumentError(
            f"the state directory {paths.home} has too long a path for unix sockets in it",
            hint=f"choose one of at most {most} bytes with --home or ARCBOX_HOME",
        )


async def _start(paths: Paths, deadline: float) -> bool:
    """Start a daemon if nobody else does, and wait until one listens."""
    handle = None
    try:
        while not listens(paths.socket):
            owned = owner_pid(paths.lock) is not None
            if handle is None and not owned:
                handle = _spawn(paths)
            elif handle is not None and not handle.alive and not owned:
                # Looked at once more: the winner of a race may have been quicker than we look.
                return listens(paths.socket)
            if time.monotonic() > deadline + (_ADOPT_S if owned else 0):
                return False
            await asyncio.sleep(_POLL_S)
        return True
    finally:
        if handle is not None:
            handle.release()


def _spawn(paths: Paths) -> process.ProcessHandle:
    # What the shell left open for us (bats keeps descriptor 3, make its job pipe) must not stay
    # open as long as the daemon lives, or those who read from it wait for ever.
    for entry in list(Path("/proc/self/fd").iterdir()):
        # The directory's own descriptor is closed by now.
        with contextlib.suppress(OSError):
            os.set_inheritable(int(entry.name), int(entry.name) <= _STDERR)
    # -P: a folder named `arcboxd` or a `socket.py` where the user stands is not ours.
    return process.spawn_detached(
        [sys.executable, "-P", "-m", "arcboxd.daemon"],
        log=paths.daemon_log,
        env={**os.environ, "ARCBOX_HOME": str(paths.home)},
    )


def _last_words(log: Path, offset: int) -> str:
    """Quote the end of what the log says since this start."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            text = file.read(1 << 20).decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()][-_LOG_LINES:]
    return ":" + "".join(f"\n  {line}" for line in lines) if lines else ""
