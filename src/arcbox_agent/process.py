"""A running child and the agent's ends of its pipes, moved by the event loop alone."""

# Imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import os
import signal
import termios
from collections import deque
from typing import TYPE_CHECKING

from arcbox_agent import child

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_agent.cgroup import Cgroup, Cgroups

_CHUNK_BYTES = 64 * 1024  # what a pipe holds
_QUEUE_BYTES = 256 * 1024
_HANGUP_GRACE_S = 1.0
_DISCARD_S = 0.05
_SWEEP_S = 0.5
_REOPEN_S = 0.05
_VEOF = b"\x04"

_log = logging.getLogger(__name__)

STDOUT, STDERR = 1, 2


class Process:
    """A child of the agent. Whoever starts it ends with `close`, which kills what is still running.

    `changed` is set whenever there is output to take or the process has ended.
    """

    def __init__(self, command: child.Command, cgroups: Cgroups, *, stdin: bool) -> None:
        """Start the command.

        Raises:
            OSError: The guest is out of processes or descriptors.
        """
        self.changed = asyncio.Event()
        self.exit_code: int | None = None
        self.reason = ""
        self._command = command
        self._cgroups = cgroups
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[int, bytes]] = deque()
        self._queued_bytes = 0
        self._paused = False
        self._killed = False
        self._ends_in_newline = True
        self._writable: asyncio.Future[None] | None = None
        self._group: Cgroup | None = cgroups.create()
        try:
            self.pid, self._pipes = child.start(command, self._group, stdin=stdin)
        except BaseException:
            if self._group is not None:
                self._group.remove()
            raise
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._stdin = self._pipes.stdin
        self._outputs = {self._pipes.stdout: STDOUT}
        if self._pipes.stderr >= 0:
            self._outputs[self._pipes.stderr] = STDERR
        for fd in self._outputs:
            self._loop.add_reader(fd, self._on_readable, fd)

    # Output

    def take(self) -> tuple[int, bytes] | None:
        """Take the next piece of output, with which of the two it is; None if there is none yet."""
        if not self._queue:
            return None
        piece = self._queue.popleft()
        self._queued_bytes -= len(piece[1])
        if self._paused and self._queued_bytes < _QUEUE_BYTES // 2:
            self._paused = False
            for fd in self._outputs:
                self._loop.add_reader(fd, self._on_readable, fd)
        return piece

    @property
    def finished(self) -> bool:
        """Whether the process has ended and `rest` will give all that is left."""
        # What was written to a terminal reaches us later than the exit of who wrote it; it is
        # complete when the kernel hangs up. A pipe holds everything at once.
        return self.exit_code is not None and (self._command.size is None or not self._outputs)

    def rest(self) -> Iterator[tuple[int, bytes]]:
        """Give what is queued, and what the pipes hold at this moment.

        Not until they close: a child left in the background may hold them for ever.
        """
        while self._queue:
            yield self._queue.popleft()
        for fd, which in list(self._outputs.items()):
            self._loop.remove_reader(fd)
            size = array.array("i", [0])
            fcntl.ioctl(fd, termios.FIONREAD, size)
            left = size[0]
            while left > 0:
                data = os.read(fd, min(left, _CHUNK_BYTES))
                if not data:
                    break
                left -= len(data)
                yield which, data

    def _on_readable(self, fd: int) -> None:
        try:
            data = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open
            data = b""
            if self.exit_code is None:
                # Closing our end would send the process a hangup to die of, perhaps on its way out.
                # Also, it may open /dev/tty again.
                self._loop.remove_reader(fd)
                self._loop.call_later(_REOPEN_S, self._read_again, fd)
                return
        self.changed.set()
        if not data:
            self._close_output(fd)
            return
        self._queue.append((self._outputs[fd], data))
        self._queued_bytes += len(data)
        if self._queued_bytes >= _QUEUE_BYTES:
            self._paused = True
            for each in self._outputs:
                self._loop.remove_reader(each)

    def _read_again(self, fd: int) -> None:
        if fd in self._outputs and not self._paused:
            self._loop.add_reader(fd, self._on_readable, fd)

    def _close_output(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._outputs[fd]
        if fd == self._stdin:
            self._forget_stdin()
        os.close(fd)

    # Input

    async def write(self, data: bytes) -> None:
        """Write to the standard input, at its reader's pace; without a reader, drop it."""
        view = memoryview(data)
        self._ends_in_newline = data.endswith(b"\n")
        while view and self._stdin >= 0:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await self._wait_writable()
            except OSError:  # EPIPE or EIO: nobody reads any more
                self.close_stdin(end_of_file=False)

    async def _wait_writable(self) -> None:
        fd = self._stdin
        self._writable = self._loop.create_future()
        self._loop.add_writer(fd, self._on_writable)
        try:
            await self._writable
        finally:
            self._writable = None
            if self._stdin == fd:
                self._loop.remove_writer(fd)

    def _on_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def close_stdin(self, *, end_of_file: bool = True) -> None:
        """End the standard input. On a terminal, type the end-of-file character."""
        fd = self._stdin
        if fd < 0:
            return
        if fd not in self._outputs:
            self._forget_stdin()
            os.close(fd)
            return
        if end_of_file:
            try:  # after half a line the first one only ends the line
                os.write(fd, _VEOF if self._ends_in_newline else _VEOF * 2)
            except OSError as error:
                _log.debug("no end of file for process %d: %s", self.pid, error)
        self._forget_stdin()

    def _forget_stdin(self) -> None:
        self._loop.remove_writer(self._stdin)
        self._stdin = -1
        self._on_writable()

    # Control

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal a size; nothing without a terminal."""
        if self._command.size is not None and self._pipes.stdout in self._outputs:
            child.set_size(self._pipes.stdout, rows, columns)

    def signal(self, number: int) -> None:
        """Send a signal to the process group; nothing once the process has ended."""
        if self.exit_code is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # the child has not made its session yet
                os.kill(self.pid, number)

    def close(self) -> None:
        """Close the pipes, and kill the process with all its descendants unless it has ended."""
        if self.exit_code is None:
            self._kill()
        self.close_stdin(end_of_file=False)
        for fd in list(self._outputs):
            self._close_output(fd)

    def _kill(self) -> None:
        self._killed = True
        if self._group is not None:
            self._group.kill()
        else:
            from arcbox_agent.processes import kill_tree

            kill_tree(self.pid)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        failure = child.read_failure(self._pipes.failure, self._command)
        os.close(self._pipes.failure)
        if failure is not None:
            code, self.reason = failure
        self.exit_code = code if code >= 0 else 128 - code
        if code < 0:
            self.reason = signal.strsignal(-code) or ""
        self.changed.set()
        if self._group is not None:
            # Its end is told first.
            self._loop.call_later(_DISCARD_S, self._cgroups.discard, self._group)
            if self._killed:  # its descendants take a moment to go
                self._loop.call_later(_SWEEP_S, self._cgroups.sweep)
        if self._command.size is not None and self._outputs:
            self._read_again(self._pipes.stdout)
            self._loop.call_later(_HANGUP_GRACE_S, self._hang_up)

    def _hang_up(self) -> None:
        """Stop waiting for a terminal that someone in another session still holds."""
        for fd in list(self._outputs):
            self._close_output(fd)
        self.changed.set()
