"""The user's terminal and standard streams, as an interactive command needs them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from arcboxd.domain.guest import ExecInput, StdinData, StdinEnd

_SIGNAL_S = 0.5
_CHUNK_BYTES = 64 << 10


def window_size() -> tuple[int, int]:
    """Tell the terminal's rows and columns; 24 and 80 when there is no terminal."""
    for fd in (1, 0, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.lines and size.columns:
                return size.lines, size.columns
    return 24, 80


@contextlib.contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Pass every key on as it is typed; the mode from before comes back however the body ends."""
    with _restored(fd):
        tty.setraw(fd, termios.TCSADRAIN)
        yield


@contextlib.contextmanager
def key_mode(fd: int) -> Iterator[None]:
    """Give keys as they are typed, unseen; Ctrl-C stays a signal. The mode comes back likewise."""
    with _restored(fd):
        tty.setcbreak(fd, termios.TCSADRAIN)
        yield


@contextlib.contextmanager
def _restored(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    try:
        yield
    finally:
        # The terminal may be gone (SIGHUP); then there is nothing to restore.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def handling(handlers: Mapping[signal.Signals, Callable[[int], None]]) -> Iterator[None]:
    """Handle signals while the body runs; those that were ignored (nohup) stay so."""
    before = {}

    def adapt(handler: Callable[[int], None]) -> Callable[[int, FrameType | None], None]:
        return lambda number, _frame: handler(number)

    try:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, adapt(handler))
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, also where someone made the descriptor non-blocking.

    Raises:
        BrokenPipeError: Nobody reads it any more.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


class Keys:
    """What is typed on a terminal in `key_mode`."""

    def __init__(self, fd: int | None) -> None:
        """Read from a terminal; None: nobody types."""
        self._fd = fd

    def pressed(self, wanted: bytes, timeout_s: float) -> bool:
        """Wait for one of some keys, at most so long; other keys are thrown away."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            # Python sees a signal that another thread got, one of gRPC's, when a wait is over.
            wait_s = min(left_s, _SIGNAL_S)
            if self._fd is None:
                time.sleep(wait_s)
            elif select.select([self._fd], [], [], wait_s)[0]:
                typed = os.read(self._fd, _CHUNK_BYTES)
                if any(key in wanted for key in typed):
                    return True
                if not typed:
                    self._fd = None
        return False


class Inputs:
    """What a command in a guest gets: standard input, and what is posted meanwhile.

    Iterated by one thread, which reads stdin only when asked for the next item: what the guest does
    not take stays in the user's pipe. `post` may be called from a signal handler.
    """

    def __init__(self, stdin: int | None) -> None:
        """Read from the descriptor ``stdin``; None: there is nothing to read."""
        self._stdin = stdin
        self._posted: deque[ExecInput] = deque()
        self._finished = False
        # Both ends stay open until the process ends: the reader is another thread, and a post after
        # its end must not hit a descriptor that is something else by then.
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def post(self, item: ExecInput) -> None:
        """Send something before what is read next."""
        self._posted.append(item)
        self._wake()

    def finish(self) -> None:
        """End the iteration, wherever it waits. Idempotent."""
        self._finished = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it wakes up anyway
            os.write(self._wake_write, b"\0")

    def __iter__(self) -> Iterator[ExecInput]:
        """Give what comes, until `finish`."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if self._stdin is not None:
            poll.register(self._stdin, select.POLLIN)
        while True:
            while self._posted:
                yield self._posted.popleft()
            if self._finished:
                return
            ready = [fd for fd, _ in poll.poll()]
            if self._wake_read in ready:
                os.read(self._wake_read, _CHUNK_BYTES)
            elif (data := self._read(ready[0])) is not None:
                if not data:
                    poll.unregister(ready[0])
                yield StdinData(data) if data else StdinEnd()

    @staticmethod
    def _read(fd: int) -> bytes | None:
        """Read what is there; None: nothing yet. A stdin that cannot be read is at its end."""
        try:
            return os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""
