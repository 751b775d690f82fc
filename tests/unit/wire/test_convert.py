"""Values to messages and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd.domain.guest import (
    ExecData,
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecSpec,
    Identity,
    ProcessSignal,
    SshHostKey,
    StdinData,
    StdinEnd,
    TerminalSize,
)
from arcboxd.domain.machine import MachineState
from arcboxd.paths import MachinePaths
from arcboxd.wire import convert
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, machine_pb2
from tests.unit.store.test_store import MACHINE

PATHS = MachinePaths(Path("/m"))


@pytest.mark.parametrize(
    "item", [StdinData(b"x"), StdinData(b""), StdinEnd(), TerminalSize(5, 9), ProcessSignal(15)]
)
def test_inputs(item: ExecInput) -> None:
    assert convert.exec_input(convert.exec_input_message(item)) == item


@pytest.mark.parametrize(
    "output",
    [ExecData("stdout", b"a"), ExecData("stderr", b""), ExecExit(0), ExecExit(127, "not found")],
)
def test_outputs(output: ExecOutput) -> None:
    assert convert.exec_output(convert.exec_output_message(output)) == output


def test_messages_of_a_later_version_are_ignored() -> None:
    assert convert.exec_input(guest_pb2.ExecInput()) is None
    assert convert.exec_output(guest_pb2.ExecOutput()) is None


def test_what_to_run() -> None:
    spec = ExecSpec(("a", ""), "/w", "u", {"K": ""}, tty=True, rows=3, columns=4, stdin=True)
    assert convert.exec_spec(convert.exec_start(spec)) == spec
    assert convert.exec_spec(guest_pb2.ExecStart(argv=["x"])) == ExecSpec(("x",))


def test_a_machine_that_never_started_has_no_time_of_it() -> None:
    info = convert.machine_info(replace(MACHINE, started_unix_ns=0), PATHS)
    assert not info.HasField("started_at")
    info = convert.machine_info(replace(MACHINE, started_unix_ns=3_000_000_007), PATHS)
    assert (info.started_at.seconds, info.started_at.nanos) == (3, 7)


def test_only_what_runs_has_an_address() -> None:
    for state in MachineState:
        message = convert.summary(replace(MACHINE, state=state))
        running = state in {MachineState.RUNNING, MachineState.STOPPING}
        assert bool(message.ip_address) == running


def test_a_cached_list_is_the_list() -> None:
    summaries = convert.Summaries()
    many = [replace(MACHINE, id=f"{n:012x}") for n in range(300)]
    for _ in range(3):
        response = summaries.response(many)
        assert list(response.machines) == [convert.summary(m) for m in many]
        many = [replace(m, detail="x", state=MachineState.STOPPED) for m in many[1:]]
    assert summaries.response([]) == machine_pb2.ListMachinesResponse()


def test_what_a_guest_says_is_bounded() -> None:
    info = convert.system_info(
        agent_pb2.SystemInfo(
            hostname="h" * 100_000,
            load_average=[float(n) for n in range(1000)],
            ip_addresses=["1" * 1000] * 1000,
        )
    )
    assert len(info.hostname) == 256
    assert len(info.load_average) == 3
    assert len(info.ip_addresses) == 64
    assert max(map(len, info.ip_addresses)) == 256
    assert len(convert.pong(agent_pb2.AgentPingResponse(message="m" * 9999)).message) == 256


def test_identity() -> None:
    identity = Identity(
        "ab" * 16,
        "dev",
        "52:54:00:00:00:01",
        "me",
        1000,
        ("k1", "k2"),
        (SshHostKey("ed25519", "p", "q"),),
        7,
    )
    request = convert.configure_request(identity, clock_unix_ns=5, entropy=b"e" * 64)
    assert request.network.address == "10.0.2.15/24"
    assert (request.user.name, request.user.uid) == ("me", 1000)
    assert list(request.user.authorized_keys) == ["k1", "k2"]
    assert request.ssh_host_keys[0].private_key == "p"
    assert (request.clock_unix_nanos, request.disk_bytes, request.hostname) == (5, 7, "dev")
