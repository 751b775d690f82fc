"""A daemon of a few lines, for what the command line does with a daemon's answers."""
# ruff: noqa: N802 - the methods have the names of their RPCs

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from arcboxd.errors import MachineNotFoundError, NoRoomError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import common_pb2, machine_pb2, machine_pb2_grpc
from tests.integration.cli.stub_change import ChangeHost
from tests.integration.cli.stub_docker import DockerHost
from tests.integration.cli.stub_images import ImageHost
from tests.integration.cli.stub_kubernetes import KubernetesHost
from tests.integration.cli.stub_mounts import MountHost
from tests.integration.cli.stub_ports import PortCalls
from tests.integration.cli.stub_saved import CREATED, Context, Inventory, SavedHost, fail


class Machines(machine_pb2_grpc.MachineServiceServicer):
    def __init__(self, inventory: Inventory) -> None:
        self.calls: list[tuple[str, object]] = []
        self.inventory = inventory

    def Create(
        self, request: machine_pb2.CreateMachineRequest, context: Context
    ) -> machine_pb2.CreateMachineResponse:
        self.calls.append(("create", request))
        if request.name == "toobig":
            time.sleep(0.1)
            fail(context, NoRoomError("no room for the disk of 'toobig'", hint="free some"))
        self.inventory.names[f"id-{request.name}"] = request.name
        return machine_pb2.CreateMachineResponse(id=f"id-{request.name}")

    def Start(self, request: machine_pb2.StartMachineRequest, context: Context) -> common_pb2.Empty:
        self.inventory.known(request.id, context)
        self.calls.append(("start", request))
        time.sleep(0.2)
        return common_pb2.Empty()

    def Stop(self, request: machine_pb2.StopMachineRequest, context: Context) -> common_pb2.Empty:
        self.inventory.known(request.id, context)
        self.calls.append(("stop", request))
        return common_pb2.Empty()

    def Remove(
        self, request: machine_pb2.RemoveMachineRequest, context: Context
    ) -> common_pb2.Empty:
        self.inventory.known(request.id, context)
        self.calls.append(("remove", request))
        return common_pb2.Empty()

    def List(
        self, request: machine_pb2.ListMachinesRequest, context: Context
    ) -> machine_pb2.ListMachinesResponse:
        web = machine_pb2.MachineSummary(
            id="id-web",
            name="web",
            state=self.inventory.states["id-web"],
            cpus=2,
            memory=1 << 31,
            disk_size=20 << 30,
            ip_address="10.0.2.15",
            created=CREATED,
        )
        db = machine_pb2.MachineSummary(id="id-db", name="db", state="stopped", created=CREATED)
        return machine_pb2.ListMachinesResponse(machines=[web, db] if request.all else [web])

    def Inspect(
        self, request: machine_pb2.InspectMachineRequest, context: Context
    ) -> machine_pb2.MachineInfo:
        return machine_pb2.MachineInfo(
            id=self.inventory.known(request.id, context),
            name="web",
            state="running",
            hardware=machine_pb2.MachineHardware(cpus=2, memory=1 << 31, arch="x86_64"),
            created=common_pb2.Timestamp(seconds=CREATED),
        )

    def Ping(
        self, request: machine_pb2.MachineAgentRequest, context: Context
    ) -> machine_pb2.MachinePingResponse:
        self.inventory.known(request.id, context)
        return machine_pb2.MachinePingResponse(message="pong", version="0.1.0")

    def GetSystemInfo(
        self, request: machine_pb2.MachineAgentRequest, context: Context
    ) -> machine_pb2.MachineSystemInfo:
        # A guest may try to drive the user's terminal.
        return machine_pb2.MachineSystemInfo(hostname="\x1b[2Jevil", total_memory=1 << 30)

    def Exec(
        self, request: machine_pb2.MachineExecRequest, context: Context
    ) -> Iterator[machine_pb2.MachineExecOutput]:
        raise NotImplementedError

    def SSHInfo(
        self, request: machine_pb2.SSHInfoRequest, context: Context
    ) -> machine_pb2.SSHInfoResponse:
        return machine_pb2.SSHInfoResponse(command="ssh -p 2222 'me@127.0.0.1'")


class Host(ChangeHost, ImageHost, KubernetesHost, MountHost, PortCalls, DockerHost, SavedHost):
    def __init__(self, inventory: Inventory, home: Path) -> None:
        super().__init__(inventory)
        self.home = home
        self.ended = threading.Event()
        self.started: list[guest_pb2.ExecStart] = []
        self.received = 0

    def Exec(
        self, request_iterator: Iterator[host_pb2.MachineExecInput], context: Context
    ) -> Iterator[guest_pb2.ExecOutput]:
        first = next(request_iterator)
        if first.id != "web":
            fail(context, MachineNotFoundError(f"no machine {first.id!r}", hint="arcbox ls --all"))
        start = first.input.start
        self.started.append(start)
        context.add_callback(self.ended.set)
        inputs = (message.input for message in request_iterator)
        yield from getattr(self, f"_{start.argv[0]}")(start, inputs)

    def Watch(self, request: host_pb2.WatchRequest, context: Context) -> Iterator[host_pb2.Event]:
        context.send_initial_metadata(())
        for done in (1, 2):
            step = host_pb2.Progress(step="building the image", done=done, total=2)
            yield host_pb2.Event(subject=request.subject, progress=step)
        finished = host_pb2.Progress(step="building the image", finished=True)
        yield host_pb2.Event(subject=request.subject, progress=finished)
        while context.is_active():
            time.sleep(0.02)

    def GetDaemonInfo(
        self, request: host_pb2.DaemonInfoRequest, context: Context
    ) -> host_pb2.DaemonInfo:
        return host_pb2.DaemonInfo(
            version="0.1.0", pid=1, home=str(self.home), accelerator="tcg", machines=2, running=1
        )

    def InspectExtra(
        self, request: host_pb2.InspectExtraRequest, context: Context
    ) -> host_pb2.MachineExtra:
        return host_pb2.MachineExtra(
            accelerator="tcg",
            ssh_port=2222,
            boot="template",
            boot_reason="0123456789ab fits",
            console_log=str(self.home / "console.log"),
            docker_socket=str(self.home / "machines" / "id-web" / "docker.sock"),
        )

    def StopDaemon(
        self, request: host_pb2.StopDaemonRequest, context: Context
    ) -> host_pb2.StopDaemonResponse:
        return host_pb2.StopDaemonResponse()

    # What the stub's guest can run, by argv[0].

    def _cat(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        for item in inputs:
            if item.HasField("close_stdin"):
                break
            yield guest_pb2.ExecOutput(stdout=item.stdin)
        yield exited(0)

    def _both(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        yield guest_pb2.ExecOutput(stdout=b"out\xff\0")
        yield guest_pb2.ExecOutput(stderr=b"err\xfe")
        yield exited(int(start.argv[1]))

    def _nothing(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        yield exited(127, "no such program: nothing")

    def _lost(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        yield guest_pb2.ExecOutput(stdout=b"half")

    def _flood(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        while not self.ended.is_set():
            yield guest_pb2.ExecOutput(stdout=b"x" * 65536)

    def _trap(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        yield guest_pb2.ExecOutput(stdout=b"ready\n")
        number = next(inputs).signal
        yield guest_pb2.ExecOutput(stdout=f"signal {number}\n".encode())
        if start.argv[1:] == ["stubborn"]:
            self.ended.wait(10)
        yield exited(128 + number)

    def _sink(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        yield guest_pb2.ExecOutput(stdout=b"ready\n")
        self.ended.wait(10)

    def _terminal(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        yield text(f"{start.rows}x{start.columns} {start.env['TERM']}")
        for item in inputs:
            if item.HasField("resize"):
                yield text(f"{item.resize.rows}x{item.resize.columns}")
            else:
                yield text(f"{item.stdin!r}")
                if item.stdin == b"q":
                    break
        yield exited(7)


def text(line: str) -> guest_pb2.ExecOutput:
    return guest_pb2.ExecOutput(stdout=f"<{line}>\r\n".encode())


def exited(code: int, reason: str = "") -> guest_pb2.ExecOutput:
    return guest_pb2.ExecOutput(exit=guest_pb2.ExecExit(code=code, reason=reason))


class StubDaemon:
    """Listens where the real one would."""

    def __init__(self, home: Path) -> None:
        self.inventory = Inventory()
        self.machines = Machines(self.inventory)
        self.host = Host(self.inventory, home)
        (home / "run").mkdir(parents=True)
        self._server = grpc.server(ThreadPoolExecutor(8))
        machine_pb2_grpc.add_MachineServiceServicer_to_server(self.machines, self._server)
        host_pb2_grpc.add_HostServiceServicer_to_server(self.host, self._server)
        self._server.add_insecure_port(f"unix:{home}/run/arcbox.sock")
        self._server.start()

    def close(self) -> None:
        self.host.ended.set()
        self._server.stop(None).wait()
