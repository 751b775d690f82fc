from __future__ import annotations

import os
import select
import signal
import subprocess
import termios

import pytest

from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon
from tests.integration.cli.terminal import Terminal

PIPE = subprocess.PIPE


def test_streams_are_raw_and_the_status_is_the_guests(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("exec", "web", "both", "42")
    assert (done.returncode, done.stdout, done.stderr) == (42, b"out\xff\0", b"err\xfe")


def test_options_end_at_the_name(arcbox: Arcbox, daemon: StubDaemon) -> None:
    arcbox.run(
        *("exec", "-u", "me:us", "-w", "/tmp", "-e", "A=1=2", "--env", "B="),
        *("web", "--", "both", "-i", "--help", "--"),
    )
    start = daemon.host.started[0]
    assert list(start.argv) == ["both", "-i", "--help", "--"]
    assert (start.user, start.working_dir, dict(start.env)) == (
        "me:us",
        "/tmp",
        {"A": "1=2", "B": ""},
    )
    assert (start.tty, start.stdin) == (False, False)


def test_stdin_is_streamed_binary_to_its_end(arcbox: Arcbox, daemon: StubDaemon) -> None:
    data = os.urandom(3 << 20)
    done = arcbox.run("machine", "exec", "-i", "web", "cat", stdin=data)
    assert (done.returncode, done.stdout == data) == (0, True)


def test_stdin_is_left_alone_without_i(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with arcbox.popen("exec", "web", "both", "0", stdin=PIPE, stdout=PIPE) as process:
        assert process.wait(15) == 0
        assert daemon.host.started[0].stdin is False


def test_a_guest_that_reads_nothing_holds_the_pipe_back(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with arcbox.popen("exec", "-i", "web", "sink", stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        fd, taken = process.stdin.fileno(), 0
        os.set_blocking(fd, False)
        while taken < 64 << 20 and select.select([], [fd], [], 0.7)[1]:
            taken += os.write(fd, b"x" * 65536)
        assert 0 < taken < 8 << 20
        daemon.host.ended.set()
        assert process.wait(15) == 125


def test_our_errors_have_125(arcbox: Arcbox, daemon: StubDaemon) -> None:
    ghost = arcbox.run("exec", "ghost", "true")
    assert ghost.returncode == 125
    assert ghost.stderr == b"arcbox: no machine 'ghost'\n  hint: arcbox ls --all\n"
    lost = arcbox.run("exec", "web", "lost")
    assert (lost.returncode, lost.stdout) == (125, b"half")
    assert b"without an exit status" in lost.stderr
    assert arcbox.run("exec", "web").returncode == 2
    assert arcbox.run("exec", "-it", "web", "cat").returncode == 2, "stdin is no terminal"


def test_why_a_command_could_not_run_is_told(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("exec", "web", "nothing")
    assert (done.returncode, done.stderr) == (127, b"arcbox: no such program: nothing\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on(arcbox: Arcbox, daemon: StubDaemon, number: signal.Signals) -> None:
    with arcbox.popen("exec", "web", "trap", stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        out, errors = process.communicate(timeout=15)
        assert (out, errors) == (f"signal {number:d}\n".encode(), b"")
        assert process.returncode == 128 + number


def test_a_second_signal_ends_the_command(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with arcbox.popen("exec", "web", "trap", "stubborn", stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"signal 2\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=15)[1] == b""
        assert process.returncode == 130
        assert daemon.host.ended.wait(5)


def test_a_reader_that_goes_away_ends_the_command_quietly(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    with arcbox.popen("exec", "web", "flood", stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(15) == 141
        assert process.stderr.read() == b""
        assert daemon.host.ended.wait(5)


def test_a_terminal_is_raw_resized_and_restored(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with Terminal(arcbox, "exec", "-it", "web", "terminal") as terminal:
        terminal.expect(b"<30x100 xterm>")
        assert not termios.tcgetattr(terminal.theirs)[3] & termios.ICANON
        os.write(terminal.ours, b"\x03")
        terminal.expect(rb"<b'\x03'>")  # Ctrl-C is the guest's
        terminal.resize(40, 120)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.expect(b"<40x120>")
        os.write(terminal.ours, b"q")
        terminal.expect(b"<b'q'>")
        assert terminal.process.wait(15) == 7
        assert termios.tcgetattr(terminal.theirs) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_is_restored_when_we_are_ended(
    arcbox: Arcbox, daemon: StubDaemon, number: signal.Signals
) -> None:
    with Terminal(arcbox, "exec", "-it", "web", "terminal") as terminal:
        terminal.expect(b"<30x100 xterm>")
        terminal.process.send_signal(number)
        if number == signal.SIGTERM:
            terminal.expect(b"<b''>")  # the stub shows a signal as no stdin
            terminal.process.send_signal(number)
        assert terminal.process.wait(15) == 128 + number
        assert termios.tcgetattr(terminal.theirs) == terminal.before


def test_an_error_in_a_terminal_restores_it(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with Terminal(arcbox, "exec", "-it", "ghost", "terminal") as terminal:
        terminal.expect(b"arcbox: no machine 'ghost'\r\n  hint: ")
        assert terminal.process.wait(15) == 125
        assert termios.tcgetattr(terminal.theirs) == terminal.before
