from __future__ import annotations

import json
import os
import signal
import subprocess
import termios

import pytest

from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon
from tests.integration.cli.terminal import Terminal

TABLE = """\
NAME   OWN      SHARED   SWAP   GUEST USED / MEMORY   CPU %
web    512MiB   1GiB     0B     700MiB / 2GiB         -
mute   0B       0B       0B     - / 1GiB              -
Host memory: 16GiB, 9GiB available
"""


@pytest.mark.parametrize("args", [["top"], ["top", "--once"], ["machine", "top"]])
def test_in_a_pipe_it_is_one_table(arcbox: Arcbox, daemon: StubDaemon, args: list[str]) -> None:
    done = arcbox.run(*args)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, TABLE, b"")
    assert daemon.host.polls == 1


def test_once_as_json_is_one_document_in_bytes(arcbox: Arcbox, daemon: StubDaemon) -> None:
    document = json.loads(arcbox.run("top", "--once", "--json").stdout)
    assert (document["host_memory_bytes"], document["host_available_bytes"]) == (16 << 30, 9 << 30)
    web, mute = document["machines"]
    assert web == {
        "id": "id-web",
        "name": "web",
        "own_bytes": 512 << 20,
        "shared_bytes": 1 << 30,
        "swapped_bytes": 0,
        "memory_bytes": 2 << 30,
        "guest_used_bytes": 700 << 20,
        "cpu_seconds": 1000.0,
        "cpu_percent": None,
    }
    assert mute["guest_used_bytes"] is None


def test_json_goes_on_a_line_a_look_until_interrupted(arcbox: Arcbox, daemon: StubDaemon) -> None:
    argv = ("top", "--json", "--interval", "0.1")
    with arcbox.popen(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (0, b"")
    assert first["machines"][0]["cpu_percent"] is None
    web, mute = second["machines"]
    assert web["cpu_percent"] > 100
    assert mute["cpu_percent"] == 0


def test_json_ends_when_nobody_reads_it(arcbox: Arcbox, daemon: StubDaemon) -> None:
    argv = ("top", "--json", "--interval", "0.1")
    with arcbox.popen(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(15) == 141
        assert process.stderr.read() == b""


def test_an_interval_that_makes_no_sense_is_refused(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("top", "--interval", "-1")
    assert done.returncode == 2
    assert done.stderr == b"arcbox: --interval must be from 0.1 to 3600 seconds\n"
    assert daemon.host.polls == 0


def ended(terminal: Terminal, status: int) -> None:
    assert terminal.process.wait(15) == status
    terminal.expect(b"\x1b[?25h")  # the cursor is shown again
    assert termios.tcgetattr(terminal.theirs) == terminal.before


def test_on_a_terminal_it_is_live_until_q(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with Terminal(arcbox, "top", "--interval", "0.2") as terminal:
        terminal.expect(b"Host memory: 16GiB, 9GiB available")
        assert b"\x1b[?25l" in terminal.screen
        assert not termios.tcgetattr(terminal.theirs)[3] & (termios.ICANON | termios.ECHO)
        terminal.expect(b" 0.0")  # of the idle one: nothing on the first look
        os.write(terminal.ours, b"xq")
        ended(terminal, 0)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(
    arcbox: Arcbox, daemon: StubDaemon, number: signal.Signals, status: int
) -> None:
    # It waits for a key when the signal comes.
    with Terminal(arcbox, "top", "--interval", "3600") as terminal:
        terminal.expect(b"Host memory")
        terminal.process.send_signal(number)
        ended(terminal, status)


def test_an_error_is_told_below_the_table(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with Terminal(arcbox, "top", "--interval", "0.1") as terminal:
        terminal.expect(b"Host memory")
        daemon.host.lost = True
        terminal.expect(b"arcbox: the memory of machines cannot be read\r\n")
        assert terminal.screen.rindex(b"\x1b[?25h") < terminal.screen.rindex(b"arcbox: ")
        ended(terminal, 1)


def test_a_terminal_that_cannot_draw_gets_one_table(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with Terminal(arcbox, "top", env={"TERM": "dumb"}) as terminal:
        terminal.expect(b"Host memory")
        assert terminal.process.wait(15) == 0
        assert b"\x1b" not in terminal.screen


def test_once_on_a_terminal_ends_by_itself(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with Terminal(arcbox, "top", "--once") as terminal:
        terminal.expect(b"Host memory: 16GiB, 9GiB available\r\n")
        assert terminal.process.wait(15) == 0
