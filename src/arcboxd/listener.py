"""A listening unix socket that costs a descriptor, and nothing while nobody connects."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_AT_ONCE = 64
_PAUSE_S = 0.5
"""How long nobody is let in once the descriptors are used up."""


class Listener:
    """Accepts connections, and hands each over as a socket that does not block."""

    def __init__(self, path: Path, accept: Callable[[socket.socket], None]) -> None:
        """Prepare; `open` begins.

        Args:
            path: Where to listen; what is there is replaced.
            accept: Takes over each connection; must not raise.
        """
        self._path = path
        self._accept = accept
        self._socket: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Listen, for this user alone.

        Raises:
            OSError: The socket cannot be made.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            sock.bind(str(self._path))
            self._path.chmod(0o600)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)

    def close(self, *, unlink: bool) -> None:
        """Let nobody in any more. Idempotent.

        Args:
            unlink: Remove the socket's file, which is not somebody else's to remove.
        """
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            if unlink:
                self._path.unlink(missing_ok=True)

    def _readable(self) -> None:
        if self._socket is None:
            return
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Those who wait stay in the backlog meanwhile.
                _log.warning("no more connections to %s for now: %s", self._path, error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket.fileno())
                self._retry = loop.call_later(_PAUSE_S, self._go_on)
                return
            connection.settimeout(0)
            self._accept(connection)

    def _go_on(self) -> None:
        self._retry = None
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
