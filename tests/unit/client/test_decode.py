from __future__ import annotations

from datetime import UTC, datetime

from arcboxd.client import decode, views
from arcboxd.domain.guest import ExecSpec, ProcessSignal, StdinData, StdinEnd, TerminalSize
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import common_pb2, machine_pb2


def test_a_machine_that_never_started_has_no_time_of_it() -> None:
    info = machine_pb2.MachineInfo(created=common_pb2.Timestamp(seconds=1, nanos=500_000_000))
    view = decode.details(info, None)
    assert view.created == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert (view.started, view.extra) == (None, None)


def test_events_of_kinds_we_do_not_know_are_none() -> None:
    assert decode.event(host_pb2.Event(subject="x")) is None
    step = host_pb2.Progress(step="s", done=1, total=2, finished=True)
    event = decode.event(host_pb2.Event(subject="x", progress=step))
    assert event == views.ProgressEvent("x", "s", 1, 2, finished=True)


def test_a_guest_that_does_not_say_what_it_uses_uses_no_known_amount() -> None:
    machines = [host_pb2.MachineUsage(id="a", guest_used_bytes=5), host_pb2.MachineUsage(id="b")]
    usage = decode.usage(host_pb2.GetUsageResponse(machines=machines, host_memory_bytes=7))
    assert [m.guest_used_bytes for m in usage.machines] == [5, None]
    assert usage.host_memory_bytes == 7


def test_exec_inputs_begin_with_the_start_and_pull_one_at_a_time() -> None:
    taken = []

    def source() -> object:
        for item in (StdinData(b"a"), TerminalSize(1, 2), ProcessSignal(15), StdinEnd()):
            taken.append(item)
            yield item

    spec = ExecSpec(("cat", "-"), stdin=True, env={"K": "V"})
    messages = decode.exec_inputs("web", spec, source())  # type: ignore[arg-type]
    first = next(messages)
    assert (first.id, list(first.input.start.argv), taken) == ("web", ["cat", "-"], [])
    assert (next(messages).input.stdin, len(taken)) == (b"a", 1)
    assert [m.input.WhichOneof("input") for m in messages] == ["resize", "signal", "close_stdin"]
