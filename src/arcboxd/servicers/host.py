"""HostService: what our own clients need beyond the published contract."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from arcboxd.domain.guest import ExecInput
from arcboxd.domain.machine import MachineState
from arcboxd.errors import InvalidArgumentError, MachineNotFoundError
from arcboxd.machines.events import Event, Lost, PortChanged, Progress, StateChanged
from arcboxd.machines.service import Machines
from arcboxd.servicers.change import ChangeCalls
from arcboxd.servicers.chunks import closing, pieces
from arcboxd.servicers.images import ImageCalls
from arcboxd.servicers.kubernetes import KubernetesCalls
from arcboxd.servicers.mounts import MountCalls
from arcboxd.servicers.ports import PortCalls
from arcboxd.servicers.runtime import RuntimeCalls
from arcboxd.servicers.saved import SavedCalls
from arcboxd.servicers.templates import TemplateCalls
from arcboxd.servicers.translate import Context, streaming, unary
from arcboxd.wire import convert, ports
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2, host_pb2_grpc


class HostService(
    ChangeCalls,
    ImageCalls,
    KubernetesCalls,
    MountCalls,
    PortCalls,
    RuntimeCalls,
    SavedCalls,
    TemplateCalls,
    host_pb2_grpc.HostServiceServicer,
):
    """Serves arcbox.ext.v1.HostService."""

    def __init__(self, machines: Machines, stop: Callable[[], None]) -> None:
        """Serve these machines.

        Args:
            machines: What is served.
            stop: Called to end the daemon.
        """
        self._machines = machines
        self._stop = stop
        self._started_unix_ns = time.time_ns()

    @streaming
    async def Exec(
        self,
        request_iterator: AsyncIterator[host_pb2.MachineExecInput],
        context: Context[host_pb2.MachineExecInput, guest_pb2.ExecOutput],  # noqa: ARG002
    ) -> AsyncGenerator[guest_pb2.ExecOutput, None]:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.input.WhichOneof("input") != "start":
            raise InvalidArgumentError("the first input of Exec must say what to start")
        spec = convert.exec_spec(first.input.start)
        outputs = await self._machines.exec(first.id, spec, _inputs(request_iterator))
        async with closing(outputs):
            async for output in outputs:
                for piece in pieces(output):
                    yield convert.exec_output_message(piece)

    @streaming
    async def Watch(
        self,
        request: host_pb2.WatchRequest,
        context: Context[host_pb2.WatchRequest, host_pb2.Event],
    ) -> AsyncGenerator[host_pb2.Event, None]:
        with self._machines.context.events.subscribe(self._subject(request.subject)) as events:
            # At once, so that a client knows that from now on nothing escapes it.
            await context.send_initial_metadata(())
            async for event in events:
                yield _event(event)

    @unary
    async def GetDaemonInfo(
        self,
        request: host_pb2.DaemonInfoRequest,  # noqa: ARG002
        context: Context[host_pb2.DaemonInfoRequest, host_pb2.DaemonInfo],  # noqa: ARG002
    ) -> host_pb2.DaemonInfo:
        accelerator = self._machines.context.hypervisor.accelerator
        machines = self._machines.list(all_states=True)
        return host_pb2.DaemonInfo(
            version=_version(),
            pid=os.getpid(),
            home=str(self._machines.context.paths.home),
            accelerator=accelerator.name,
            accelerator_reason=accelerator.reason,
            started_unix_nanos=self._started_unix_ns,
            machines=len(machines),
            running=sum(machine.state is MachineState.RUNNING for machine in machines),
        )

    @unary
    async def InspectExtra(
        self,
        request: host_pb2.InspectExtraRequest,
        context: Context[host_pb2.InspectExtraRequest, host_pb2.MachineExtra],  # noqa: ARG002
    ) -> host_pb2.MachineExtra:
        machine = self._machines.inspect(request.id)
        paths = self._machines.context.paths.machine(machine.id)
        allocated_bytes = await asyncio.to_thread(_allocated_bytes, paths.disk)
        return convert.machine_extra(machine, paths, allocated_bytes)

    @unary
    async def StopDaemon(
        self,
        request: host_pb2.StopDaemonRequest,  # noqa: ARG002
        context: Context[host_pb2.StopDaemonRequest, host_pb2.StopDaemonResponse],  # noqa: ARG002
    ) -> host_pb2.StopDaemonResponse:
        self._stop()
        return host_pb2.StopDaemonResponse()

    def _subject(self, wanted: str) -> str:
        """Give the name of the machine that is meant, or what was given: it may come to exist."""
        if not wanted:
            return ""
        try:
            return self._machines.inspect(wanted).spec.name
        except (MachineNotFoundError, InvalidArgumentError):
            return wanted


async def _inputs(messages: AsyncIterator[host_pb2.MachineExecInput]) -> AsyncIterator[ExecInput]:
    async for message in messages:
        if (item := convert.exec_input(message.input)) is not None:
            yield item


def _event(event: Event) -> host_pb2.Event:
    message = host_pb2.Event(
        sequence=event.sequence, unix_nanos=event.unix_ns, subject=event.subject
    )
    match event.what:
        case StateChanged(state, detail):
            message.state.CopyFrom(host_pb2.StateChanged(state=state, detail=detail))
        case Progress(step, done, total, finished):
            message.progress.CopyFrom(
                host_pb2.Progress(step=step, done=done, total=total, finished=finished)
            )
        case PortChanged(port):
            message.port.CopyFrom(host_pb2.PortChanged(port=ports.port_message(port)))
        case Lost(count):
            # The protocol has no field for it: a step for people, before a gap in the numbers.
            message.progress.step = f"{count} events were dropped: this reader was too slow"
    return message


def _allocated_bytes(disk: Path) -> int:
    try:
        return disk.stat().st_blocks * 512
    except OSError:
        return 0


def _version() -> str:
    try:
        return version("arcboxd")
    except PackageNotFoundError:
        return "unknown"
