"""HostService's calls about mounts."""

from __future__ import annotations

from arcboxd.machines.mounts import MountStatus
from arcboxd.machines.service import Machines
from arcboxd.servicers.translate import Context, unary
from arcboxd.wire import convert
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2


class MountCalls:
    """A part of `arcboxd.servicers.host.HostService`."""

    _machines: Machines

    @unary
    async def AddMount(
        self,
        request: host_pb2.AddMountRequest,
        context: Context[host_pb2.AddMountRequest, host_pb2.Mount],  # noqa: ARG002
    ) -> host_pb2.Mount:
        wanted = convert.directory_mount(request.mount)
        return _mount(await self._machines.add_mount(request.id, wanted))

    @unary
    async def RemoveMount(
        self,
        request: host_pb2.RemoveMountRequest,
        context: Context[  # noqa: ARG002
            host_pb2.RemoveMountRequest, host_pb2.RemoveMountResponse
        ],
    ) -> host_pb2.RemoveMountResponse:
        await self._machines.remove_mount(request.id, request.guest_path)
        return host_pb2.RemoveMountResponse()

    @unary
    async def ListMounts(
        self,
        request: host_pb2.ListMountsRequest,
        context: Context[host_pb2.ListMountsRequest, host_pb2.ListMountsResponse],  # noqa: ARG002
    ) -> host_pb2.ListMountsResponse:
        found = await self._machines.list_mounts(request.id)
        return host_pb2.ListMountsResponse(mounts=map(_mount, found))


def _mount(status: MountStatus) -> host_pb2.Mount:
    return host_pb2.Mount(
        host_path=status.mount.host_path,
        guest_path=status.mount.guest_path,
        readonly=status.mount.readonly,
        filesystem=status.filesystem,
        state=status.state,
        detail=status.detail,
    )
