"""One daemon a state directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from arcboxd.errors import DaemonRunningError, InvalidArgumentError
from arcboxd.paths import SUN_PATH_MAX, Paths

_LONGEST = "0" * 12
"""As long as a machine's id."""


def check_length(paths: Paths) -> None:
    """Refuse a state directory in which no machine's socket could be made.

    Raises:
        InvalidArgumentError: Its path is too long.

    Source: unix(7), sun_path.
    """
    longest = len(os.fsencode(paths.machine(_LONGEST).docker_socket))
    if longest > SUN_PATH_MAX:
        most = len(os.fsencode(paths.home)) - (longest - SUN_PATH_MAX)
        raise InvalidArgumentError(
            f"the state directory {paths.home} has too long a path for unix sockets in it",
            hint=f"set ARCBOX_HOME to a path of at most {most} bytes",
        )


@contextmanager
def owned(paths: Paths) -> Iterator[None]:
    """Own the state directory; nobody else does until the context, or this process, ends.

    Raises:
        DaemonRunningError: Another daemon owns it.
        InvalidArgumentError: The directory's path is too long.
    """
    check_length(paths)
    for directory in (paths.home, paths.run, paths.machines):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.run.chmod(0o700)
    descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(descriptor, 32).decode(errors="replace").strip() or "not known"
            raise DaemonRunningError(
                f"a daemon owns {paths.home} already; its pid is {pid}",
                hint="use that one, or stop it with: arcbox daemon stop",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        # Only under the lock: whatever has this name was left behind.
        for socket in (paths.socket, paths.docker_socket):
            socket.unlink(missing_ok=True)
        yield
        for socket in (paths.socket, paths.docker_socket):
            socket.unlink(missing_ok=True)
    finally:
        # The lock goes with the descriptor; the file stays, for a name must never be locked twice.
        os.close(descriptor)
