"""`arcbox set` as a user types it."""

from __future__ import annotations

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon


def test_what_is_given_is_changed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("set", "web", "--cpus", "3", "--disk", "80G")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"web\n", b"")
    assert daemon.host.changes == [host_pb2.SetMachineRequest(id="web", cpus=3, disk_size=80 << 30)]


def test_nothing_to_change_is_a_usage_error(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("set", "web")
    assert done.returncode == 2
    assert b"nothing to change" in done.stderr
    assert not daemon.host.changes
