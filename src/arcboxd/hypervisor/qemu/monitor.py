"""QEMU's monitor: QMP with deadlines, and errors of our own."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from arcboxd.errors import HypervisorError

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 10.0


class Monitor:
    """A connection to one QEMU, made anew when it broke. Commands run one after another."""

    def __init__(self, name: str, socket: Path) -> None:
        """Name the machine, for messages, and the socket."""
        self._name = name
        self._socket = socket
        self._client: QMPClient | None = None
        self._lock = asyncio.Lock()

    async def connect(self) -> None:
        """Connect, if there is no connection.

        Raises:
            HypervisorError: Nothing answers on the socket.
        """
        async with self._lock:
            await self._connected()

    async def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> object:
        """Run a QMP command.

        Raises:
            HypervisorError: QEMU refused it, or did not answer in ``timeout_s`` seconds.
        """
        async with self._lock:
            return await self._execute(command, arguments, timeout_s)

    async def send_fd(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor, for a later command to name. Source: QMP ``getfd``.

        Raises:
            HypervisorError: As `execute`.
        """
        async with self._lock:
            (await self._connected()).send_fd_scm(fd)
            await self._execute("getfd", {"fdname": name})

    async def human(self, line: str) -> str:
        """Run a command of the human monitor, for what QMP lacks; give what it printed.

        Raises:
            HypervisorError: As `execute`.
        """
        return str(await self.execute("human-monitor-command", {"command-line": line}))

    def version(self) -> tuple[int, int]:
        """Tell the major and minor version that QEMU greeted with; 0, 0 without a connection."""
        greeting = None if self._client is None else self._client.greeting
        match None if greeting is None else greeting.QMP.version.get("qemu"):
            case {"major": int(major), "minor": int(minor)}:
                return major, minor
            case _:
                return 0, 0

    def moved(self, socket: Path) -> None:
        """Note that the socket has another name now; a connection that stands goes on."""
        self._socket = socket

    async def close(self) -> None:
        """Drop the connection. Idempotent."""
        async with self._lock:
            await self._drop()

    async def _execute(
        self,
        command: str,
        arguments: dict[str, object] | None,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> object:
        client = await self._connected()
        try:
            async with asyncio.timeout(timeout_s):
                return await client.execute(command, arguments)
        except ExecuteError as error:
            raise HypervisorError(
                f"QEMU of machine {self._name!r} refused {command}: {error}"
            ) from error
        except (TimeoutError, QMPError, OSError, EOFError) as error:
            await self._drop()
            raise HypervisorError(
                f"QEMU of machine {self._name!r} did not answer {command}"
            ) from error

    async def _connected(self) -> QMPClient:
        if self._client is not None:
            return self._client
        client = QMPClient(self._name)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect(str(self._socket))
        except (TimeoutError, QMPError, OSError, EOFError) as error:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
            raise HypervisorError(
                f"the monitor of machine {self._name!r} does not answer on {self._socket}"
            ) from error
        self._client = client
        return client

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            # Whatever broke the connection was reported to whom it concerned.
            with contextlib.suppress(QMPError, OSError, EOFError, asyncio.IncompleteReadError):
                await client.disconnect()
