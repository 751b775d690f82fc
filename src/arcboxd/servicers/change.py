"""HostService's calls that change one machine, wait for it, or read a file of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from arcboxd.machines.service import Machines
from arcboxd.servicers.translate import Context, streaming, unary
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2


class ChangeCalls:
    """A part of `arcboxd.servicers.host.HostService`."""

    _machines: Machines

    @unary
    async def SetMachine(
        self,
        request: host_pb2.SetMachineRequest,
        context: Context[host_pb2.SetMachineRequest, host_pb2.SetMachineResponse],  # noqa: ARG002
    ) -> host_pb2.SetMachineResponse:
        await self._machines.set_machine(
            request.id,
            cpus=request.cpus,
            memory_bytes=request.memory,
            disk_bytes=request.disk_size,
        )
        return host_pb2.SetMachineResponse()

    @unary
    async def WaitBooted(
        self,
        request: host_pb2.MachineWaitBootedRequest,
        context: Context[  # noqa: ARG002
            host_pb2.MachineWaitBootedRequest, host_pb2.MachineWaitBootedResponse
        ],
    ) -> host_pb2.MachineWaitBootedResponse:
        failed = await self._machines.wait_booted(request.id)
        return host_pb2.MachineWaitBootedResponse(failed=failed)

    @streaming
    async def MmapReadFile(
        self,
        request: host_pb2.MachineMmapReadFileRequest,
        context: Context[  # noqa: ARG002
            host_pb2.MachineMmapReadFileRequest, agent_pb2.MmapReadFileResponse
        ],
    ) -> AsyncGenerator[agent_pb2.MmapReadFileResponse, None]:
        file = request.file
        pieces = self._machines.mmap_read_file(request.id, file.path, file.offset, file.length)
        async for data in pieces:
            yield agent_pb2.MmapReadFileResponse(data=data, bytes_read=len(data))
