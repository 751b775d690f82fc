"""HostService's calls about suspended machines, snapshots and clones."""

from __future__ import annotations

from arcboxd.machines import snapshot
from arcboxd.machines.service import Machines
from arcboxd.servicers.translate import Context, unary
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2


class SavedCalls:
    """A part of `arcboxd.servicers.host.HostService`."""

    _machines: Machines

    @unary
    async def Suspend(
        self,
        request: host_pb2.SuspendRequest,
        context: Context[host_pb2.SuspendRequest, host_pb2.SuspendResponse],  # noqa: ARG002
    ) -> host_pb2.SuspendResponse:
        return host_pb2.SuspendResponse(saved_bytes=await self._machines.suspend(request.id))

    @unary
    async def Resume(
        self,
        request: host_pb2.ResumeRequest,
        context: Context[host_pb2.ResumeRequest, host_pb2.ResumeResponse],  # noqa: ARG002
    ) -> host_pb2.ResumeResponse:
        await self._machines.resume(request.id)
        return host_pb2.ResumeResponse()

    @unary
    async def CreateSnapshot(
        self,
        request: host_pb2.CreateSnapshotRequest,
        context: Context[host_pb2.CreateSnapshotRequest, host_pb2.Snapshot],  # noqa: ARG002
    ) -> host_pb2.Snapshot:
        return _snapshot(await self._machines.create_snapshot(request.id, request.name))

    @unary
    async def ListSnapshots(
        self,
        request: host_pb2.ListSnapshotsRequest,
        context: Context[  # noqa: ARG002
            host_pb2.ListSnapshotsRequest, host_pb2.ListSnapshotsResponse
        ],
    ) -> host_pb2.ListSnapshotsResponse:
        found = await self._machines.snapshots(request.id)
        return host_pb2.ListSnapshotsResponse(snapshots=map(_snapshot, found))

    @unary
    async def RestoreSnapshot(
        self,
        request: host_pb2.RestoreSnapshotRequest,
        context: Context[  # noqa: ARG002
            host_pb2.RestoreSnapshotRequest, host_pb2.RestoreSnapshotResponse
        ],
    ) -> host_pb2.RestoreSnapshotResponse:
        await self._machines.restore_snapshot(request.id, request.name, force=request.force)
        return host_pb2.RestoreSnapshotResponse()

    @unary
    async def RemoveSnapshot(
        self,
        request: host_pb2.RemoveSnapshotRequest,
        context: Context[  # noqa: ARG002
            host_pb2.RemoveSnapshotRequest, host_pb2.RemoveSnapshotResponse
        ],
    ) -> host_pb2.RemoveSnapshotResponse:
        await self._machines.remove_snapshot(request.id, request.name)
        return host_pb2.RemoveSnapshotResponse()

    @unary
    async def CloneMachine(
        self,
        request: host_pb2.CloneMachineRequest,
        context: Context[host_pb2.CloneMachineRequest, host_pb2.CloneMachineResponse],  # noqa: ARG002
    ) -> host_pb2.CloneMachineResponse:
        machine = await self._machines.clone(request.id, request.name)
        return host_pb2.CloneMachineResponse(id=machine.id)


def _snapshot(found: snapshot.Snapshot) -> host_pb2.Snapshot:
    return host_pb2.Snapshot(
        name=found.name,
        created_unix_nanos=found.created_unix_ns,
        memory=found.memory,
        saved_bytes=found.saved_bytes,
    )
