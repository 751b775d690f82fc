from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.cli.stub import StubDaemon

SRC = Path(__file__).parents[3] / "src"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Whoever started the tests in the background: the commands must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Arcbox:
    """Runs the real command, with a state directory of its own."""

    home: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(SRC),
            "PYTHONWARNINGS": "error",
            "ARCBOX_HOME": str(self.home / "s"),
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "arcboxd.cli.main", *args]

    def run(
        self, *args: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.argv(*args),
            env={**self.env, **(env or {})},
            input=stdin,
            capture_output=True,
            timeout=15,
            check=False,
        )

    def popen(
        self,
        *args: str,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv(*args),
            env={**self.env, **(env or {})},
            start_new_session=True,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )


@pytest.fixture
def arcbox() -> Iterator[Arcbox]:
    # Not tmp_path: a socket's path has 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="ax"))
    yield Arcbox(home)
    shutil.rmtree(home)


@pytest.fixture
def daemon(arcbox: Arcbox) -> Iterator[StubDaemon]:
    stub = StubDaemon(arcbox.home / "s")
    yield stub
    stub.close()
