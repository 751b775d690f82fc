from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon, exited

Inputs = Iterator[guest_pb2.ExecInput]
Outputs = Iterator[guest_pb2.ExecOutput]


class Tail:
    """The guest's `tail`: what it was asked, and what it says."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.log = b""
        self.breaks = 0
        self.held = threading.Event()

    def run(self, start: guest_pb2.ExecStart, inputs: Inputs) -> Outputs:
        self.asked.append(list(start.argv[1:]))
        if not self.log:
            yield guest_pb2.ExecOutput(stderr=b"tail: can't open it\n")
            yield exited(1)
            return
        yield guest_pb2.ExecOutput(stdout=self.log)
        if "-F" not in start.argv:
            yield exited(0)
        elif self.breaks:
            self.breaks -= 1
        else:
            self.held.wait(10)


@pytest.fixture
def tail(daemon: StubDaemon) -> Iterator[Tail]:
    tail = Tail()
    # As the stub finds what a guest can run.
    run: Callable[[guest_pb2.ExecStart, Inputs], Outputs] = tail.run
    setattr(daemon.host, "_/run/arcbox/bundle/bin/busybox", run)
    yield tail
    tail.held.set()


def test_a_guests_logs(arcbox: Arcbox, tail: Tail) -> None:
    old, new = (datetime.now(UTC) - timedelta(minutes=m) for m in (20, 5))
    lines = [
        f'time="{old.isoformat(timespec="microseconds")[:-6]}Z" level=info msg=old\n',
        "  more of it\n",
        f'time="{new.isoformat(timespec="microseconds")[:-6]}Z" level=info msg=new\n',
        "  \x1b[2J\n",
    ]
    tail.log = "".join(lines).encode()
    done = arcbox.run("logs", "web", "--source", "dockerd", "--lines", "7")
    assert (done.returncode, done.stdout) == (0, tail.log)
    assert tail.asked == [["tail", "-n", "7", "/var/log/arcbox/dockerd.log"]]
    done = arcbox.run("logs", "web", "-s", "containerd", "--since", "10m")
    assert done.stdout == "".join(lines[2:]).encode()
    assert tail.asked[1] == ["tail", "-n", "+1", "/var/log/arcbox/containerd.log"]
    assert arcbox.run("machine", "logs", "web").stdout == tail.log
    assert tail.asked[2][-1] == "/run/arcbox/agent.log", "the default of a machine that runs"


def test_what_cannot_be_had(arcbox: Arcbox, daemon: StubDaemon, tail: Tail) -> None:
    done = arcbox.run("logs", "web", "--source", "dockerd")
    assert done.returncode == 1
    assert done.stderr.startswith(b"arcbox: machine 'web' has no log of dockerd\n")
    for args, status, words in (
        (("web", "--source", "syslog"), 2, b"there are: agent, dockerd"),
        (("web", "-s", "serial", "--since", "10m"), 2, b"serial console writes none"),
        (("web", "--since", "noon"), 2, b"neither a span of time nor a time"),
        (("--source", "agent"), 2, b"no machine was named"),
        (("ghost",), 1, b"no machine 'ghost'"),
    ):
        done = arcbox.run("logs", *args)
        assert (done.returncode, done.stdout) == (status, b"")
        assert words in done.stderr


def test_the_hosts_logs(arcbox: Arcbox, daemon: StubDaemon) -> None:
    console = arcbox.home / "s" / "console.log"
    console.write_bytes(b"[    0.000000] Linux\n\x1b[0mlogin: ")
    assert arcbox.run("logs", "web", "--source", "serial").stdout == console.read_bytes()
    assert arcbox.run("logs", "web", "-s", "serial", "-n", "1").stdout == b"\x1b[0mlogin: "
    log = arcbox.home / "s" / "daemon.log"
    log.write_bytes(b"2020-01-01 00:00:00,000 INFO a: b\n2037-01-01 00:00:00,000 INFO c: d\n")
    assert arcbox.run("logs", "--source", "daemon").stdout == log.read_bytes()
    assert arcbox.run("logs", "-s", "daemon", "--since", "1h").stdout.endswith(b"c: d\n")
    assert arcbox.run("logs", "-s", "daemon", "--since", "1h").stdout.count(b"\n") == 1


def test_following_goes_on_when_the_machine_comes_back(arcbox: Arcbox, tail: Tail) -> None:
    tail.log = b"2026-11-22 05:00:00,000 INFO a: first\n"
    tail.breaks = 2
    process = arcbox.popen("logs", "-f", "web", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == tail.log
    tail.log += b"2026-11-22 05:00:01,000 INFO a: after the reboot\n"
    assert process.stdout.readline() == tail.log.splitlines(keepends=True)[1]
    os.kill(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, b"")
    assert said.count(b"waiting until the machine runs again") <= 2
    assert b"Traceback" not in said
    assert tail.asked[0][:4] == ["tail", "-n", "+1", "-F"]


def test_an_interrupted_tail_of_a_file_is_silent(arcbox: Arcbox, daemon: StubDaemon) -> None:
    log = arcbox.home / "s" / "daemon.log"
    log.write_bytes(b"a\nb\n")
    process = arcbox.popen(
        *("logs", "-f", "-s", "daemon", "-n", "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"b\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate(timeout=10) == (b"", b"")
    assert process.returncode == 130
