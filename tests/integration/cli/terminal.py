"""A terminal, as the tests of interactive commands need one."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import time
from typing import Self

from tests.integration.cli.conftest import Arcbox


class Terminal:
    """A terminal with a command in it."""

    def __init__(self, arcbox: Arcbox, *args: str, env: dict[str, str] | None = None) -> None:
        self.ours, self.theirs = os.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(self.theirs)
        self.process = arcbox.popen(
            *args, stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, env=env
        )
        self.screen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + 10
        while text not in self.screen:
            assert time.monotonic() < deadline, (text, self.screen)
            if select.select([self.ours], [], [], 0.2)[0]:
                self.screen += os.read(self.ours, 4096)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)
