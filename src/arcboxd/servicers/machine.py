"""MachineService, as the published contract has it: decode, delegate, encode."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from arcboxd.domain.machine import NewMachine
from arcboxd.machines.guest import no_input
from arcboxd.machines.service import Machines
from arcboxd.servicers.chunks import closing, pieces
from arcboxd.servicers.translate import Context, streaming, unary
from arcboxd.wire import convert
from arcboxd.wire.pb.arcbox.v1 import common_pb2, machine_pb2, machine_pb2_grpc


class MachineService(machine_pb2_grpc.MachineServiceServicer):
    """Serves arcbox.v1.MachineService."""

    def __init__(self, machines: Machines) -> None:
        """Serve these machines."""
        self._machines = machines
        self._summaries = convert.Summaries()

    @unary
    async def Create(
        self,
        request: machine_pb2.CreateMachineRequest,
        context: Context[machine_pb2.CreateMachineRequest, machine_pb2.CreateMachineResponse],  # noqa: ARG002
    ) -> machine_pb2.CreateMachineResponse:
        machine = await self._machines.create(
            NewMachine(
                name=request.name,
                cpus=request.cpus,
                memory_bytes=request.memory,
                disk_bytes=request.disk_size,
                distro=request.distro,
                version=request.version,
                arch=request.arch,
                mounts=tuple(map(convert.directory_mount, request.mounts)),
                ssh_public_key=request.ssh_public_key,
                kernel=request.kernel,
                cmdline=request.cmdline,
            )
        )
        return machine_pb2.CreateMachineResponse(id=machine.id)

    @unary
    async def Start(
        self,
        request: machine_pb2.StartMachineRequest,
        context: Context[machine_pb2.StartMachineRequest, common_pb2.Empty],  # noqa: ARG002
    ) -> common_pb2.Empty:
        await self._machines.start(request.id)
        return common_pb2.Empty()

    @unary
    async def Stop(
        self,
        request: machine_pb2.StopMachineRequest,
        context: Context[machine_pb2.StopMachineRequest, common_pb2.Empty],  # noqa: ARG002
    ) -> common_pb2.Empty:
        await self._machines.stop(request.id, force=request.force)
        return common_pb2.Empty()

    @unary
    async def Remove(
        self,
        request: machine_pb2.RemoveMachineRequest,
        context: Context[machine_pb2.RemoveMachineRequest, common_pb2.Empty],  # noqa: ARG002
    ) -> common_pb2.Empty:
        await self._machines.remove(request.id, force=request.force, volumes=request.volumes)
        return common_pb2.Empty()

    @unary
    async def List(
        self,
        request: machine_pb2.ListMachinesRequest,
        context: Context[machine_pb2.ListMachinesRequest, machine_pb2.ListMachinesResponse],  # noqa: ARG002
    ) -> machine_pb2.ListMachinesResponse:
        machines = self._machines.list(all_states=request.all)
        return self._summaries.response(machines)

    @unary
    async def Inspect(
        self,
        request: machine_pb2.InspectMachineRequest,
        context: Context[machine_pb2.InspectMachineRequest, machine_pb2.MachineInfo],  # noqa: ARG002
    ) -> machine_pb2.MachineInfo:
        machine = self._machines.inspect(request.id)
        return convert.machine_info(machine, self._machines.context.paths.machine(machine.id))

    @unary
    async def Ping(
        self,
        request: machine_pb2.MachineAgentRequest,
        context: Context[machine_pb2.MachineAgentRequest, machine_pb2.MachinePingResponse],  # noqa: ARG002
    ) -> machine_pb2.MachinePingResponse:
        return convert.machine_ping(await self._machines.ping(request.id))

    @unary
    async def GetSystemInfo(
        self,
        request: machine_pb2.MachineAgentRequest,
        context: Context[machine_pb2.MachineAgentRequest, machine_pb2.MachineSystemInfo],  # noqa: ARG002
    ) -> machine_pb2.MachineSystemInfo:
        return convert.machine_system_info(await self._machines.system_info(request.id))

    @streaming
    async def Exec(
        self,
        request: machine_pb2.MachineExecRequest,
        context: Context[machine_pb2.MachineExecRequest, machine_pb2.MachineExecOutput],  # noqa: ARG002
    ) -> AsyncGenerator[machine_pb2.MachineExecOutput, None]:
        spec = convert.machine_exec_spec(request)
        outputs = await self._machines.exec(request.id, spec, no_input())
        async with closing(outputs):
            async for output in outputs:
                for piece in pieces(output):
                    yield convert.machine_exec_output(piece)

    @unary
    async def SSHInfo(
        self,
        request: machine_pb2.SSHInfoRequest,
        context: Context[machine_pb2.SSHInfoRequest, machine_pb2.SSHInfoResponse],  # noqa: ARG002
    ) -> machine_pb2.SSHInfoResponse:
        info = await self._machines.ssh_info(request.id)
        return machine_pb2.SSHInfoResponse(
            host=info.host,
            port=info.port,
            user=info.user,
            identity_file=str(info.identity_file),
            command=info.command,
        )
