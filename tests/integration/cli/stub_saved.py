"""The stub daemon's memory: saved machines, snapshots, clones, templates, and what is used."""
# ruff: noqa: N802 - the methods have the names of their RPCs

from __future__ import annotations

import time
from typing import NoReturn

import grpc

from arcboxd.errors import (
    ArcboxError,
    InvalidArgumentError,
    MachineExistsError,
    MachineNotFoundError,
    MachineStateError,
    PreconditionError,
)
from arcboxd.wire import status
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc

Context = grpc.ServicerContext
CREATED = 1_700_000_000
NS = 10**9
KEYS = ("0123456789abcdef0123456789abcdef", "fedcba98765432100123456789abcdef")


def fail(context: Context, error: ArcboxError) -> NoReturn:
    wire = status.to_status(error)
    context.set_trailing_metadata(wire.trailing_metadata)
    context.abort(wire.code, wire.details)
    raise AssertionError


class Inventory:
    """Which machines there are, and in what state."""

    def __init__(self) -> None:
        self.names = {"id-web": "web", "id-db": "db"}
        self.states = {"id-web": "running", "id-db": "stopped"}

    def known(self, ref: str, context: Context) -> str:
        for machine_id, name in self.names.items():
            if ref in {name, machine_id}:
                return machine_id
        fail(context, MachineNotFoundError(f"no machine {ref!r}", hint="arcbox ls --all"))


def _template(key: str, created: int, *, current: bool) -> host_pb2.Template:
    return host_pb2.Template(
        key=key,
        distro="debian",
        version="bookworm",
        arch="x86_64",
        cpus=2,
        memory=2 << 30,
        disk_size=64 << 30,
        allocated_bytes=3 << 29,
        machines=3,
        staged=1,
        created_unix_nanos=created * NS,
        current=current,
        runtime=current,
    )


class SavedHost(host_pb2_grpc.HostServiceServicer):
    """These RPCs of the host; the others are the stub's own."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.requests: list[object] = []
        self.snapshots: dict[str, dict[str, host_pb2.Snapshot]] = {}
        self.templates = {
            KEYS[0]: _template(KEYS[0], CREATED, current=False),
            KEYS[1]: _template(KEYS[1], int(time.time()) - 7300, current=True),
        }
        self.polls = 0
        self.lost = False

    def _change(self, ref: str, context: Context, before: str, after: str) -> None:
        machine_id = self.inventory.known(ref, context)
        if self.inventory.states[machine_id] not in {before, after}:
            name, state = self.inventory.names[machine_id], self.inventory.states[machine_id]
            error = MachineStateError(f"machine {name!r} is {state}", hint=f"arcbox start {name}")
            fail(context, error)
        self.inventory.states[machine_id] = after

    def Suspend(
        self, request: host_pb2.SuspendRequest, context: Context
    ) -> host_pb2.SuspendResponse:
        self._change(request.id, context, "running", "suspended")
        time.sleep(0.2)
        return host_pb2.SuspendResponse(saved_bytes=1 << 30)

    def Resume(self, request: host_pb2.ResumeRequest, context: Context) -> host_pb2.ResumeResponse:
        self._change(request.id, context, "suspended", "running")
        return host_pb2.ResumeResponse()

    def _of(self, ref: str, context: Context) -> dict[str, host_pb2.Snapshot]:
        return self.snapshots.setdefault(self.inventory.known(ref, context), {})

    def _existing(self, ref: str, name: str, context: Context) -> host_pb2.Snapshot:
        if name not in (kept := self._of(ref, context)):
            hint = f"arcbox snapshot ls {ref}"
            error = PreconditionError(f"machine {ref!r} has no snapshot {name!r}", hint=hint)
            fail(context, error)
        return kept[name]

    def CreateSnapshot(
        self, request: host_pb2.CreateSnapshotRequest, context: Context
    ) -> host_pb2.Snapshot:
        name = request.name or "20231114-221320"
        if name in (kept := self._of(request.id, context)):
            fail(context, MachineExistsError(f"machine {request.id!r} has a snapshot {name!r}"))
        if name != name.lower():
            fail(context, InvalidArgumentError(f"the name {name!r} is not of a-z, 0-9 and '-'"))
        memory = self.inventory.states[self.inventory.known(request.id, context)] != "stopped"
        kept[name] = host_pb2.Snapshot(
            name=name,
            created_unix_nanos=(CREATED + len(kept)) * NS,
            memory=memory,
            saved_bytes=(3 << 29) * memory,
        )
        return kept[name]

    def ListSnapshots(
        self, request: host_pb2.ListSnapshotsRequest, context: Context
    ) -> host_pb2.ListSnapshotsResponse:
        return host_pb2.ListSnapshotsResponse(snapshots=self._of(request.id, context).values())

    def RestoreSnapshot(
        self, request: host_pb2.RestoreSnapshotRequest, context: Context
    ) -> host_pb2.RestoreSnapshotResponse:
        snapshot = self._existing(request.id, request.name, context)
        machine_id = self.inventory.known(request.id, context)
        if self.inventory.states[machine_id] == "running" and not request.force:
            error = MachineStateError(f"machine {request.id!r} is running", hint="add --force")
            fail(context, error)
        self.inventory.states[machine_id] = "suspended" if snapshot.memory else "stopped"
        return host_pb2.RestoreSnapshotResponse()

    def RemoveSnapshot(
        self, request: host_pb2.RemoveSnapshotRequest, context: Context
    ) -> host_pb2.RemoveSnapshotResponse:
        self._existing(request.id, request.name, context)
        del self._of(request.id, context)[request.name]
        return host_pb2.RemoveSnapshotResponse()

    def CloneMachine(
        self, request: host_pb2.CloneMachineRequest, context: Context
    ) -> host_pb2.CloneMachineResponse:
        self.inventory.known(request.id, context)
        if request.name in self.inventory.names.values():
            fail(context, MachineExistsError(f"there is a machine {request.name!r} already"))
        machine_id = f"id-{request.name}"
        self.inventory.names[machine_id] = request.name
        self.inventory.states[machine_id] = "stopped"
        return host_pb2.CloneMachineResponse(id=machine_id)

    def PrepareTemplate(
        self, request: host_pb2.PrepareTemplateRequest, context: Context
    ) -> host_pb2.Template:
        self.requests.append(request)
        time.sleep(0.2)
        if request.distro == "void":
            fail(context, InvalidArgumentError("there is no image of 'void'", hint="try debian"))
        return self.templates[KEYS[1]]

    def ListTemplates(
        self, request: host_pb2.ListTemplatesRequest, context: Context
    ) -> host_pb2.ListTemplatesResponse:
        return host_pb2.ListTemplatesResponse(templates=self.templates.values())

    def RemoveTemplate(
        self, request: host_pb2.RemoveTemplateRequest, context: Context
    ) -> host_pb2.RemoveTemplateResponse:
        found = [key for key in self.templates if key.startswith(request.key)]
        if len(found) != 1:
            error = PreconditionError(f"no template {request.key!r}", hint="arcbox template ls")
            fail(context, error)
        del self.templates[found[0]]
        return host_pb2.RemoveTemplateResponse()

    def PruneTemplates(
        self, request: host_pb2.PruneTemplatesRequest, context: Context
    ) -> host_pb2.PruneTemplatesResponse:
        old = [key for key, template in self.templates.items() if not template.current]
        freed = sum(self.templates.pop(key).allocated_bytes for key in old)
        return host_pb2.PruneTemplatesResponse(keys=old, freed_bytes=freed)

    def GetUsage(
        self, request: host_pb2.GetUsageRequest, context: Context
    ) -> host_pb2.GetUsageResponse:
        if self.lost:
            fail(context, PreconditionError("the memory of machines cannot be read"))
        self.polls += 1
        web = host_pb2.MachineUsage(
            id="id-web",
            name="web",
            own_bytes=512 << 20,
            shared_bytes=1 << 30,
            memory_bytes=2 << 30,
            guest_used_bytes=700 << 20,
            # Far more than can pass in between: one that any clock tells from none.
            cpu_seconds=1000.0 * self.polls,
        )
        mute = host_pb2.MachineUsage(id="id-mute", name="mute", memory_bytes=1 << 30)
        return host_pb2.GetUsageResponse(
            machines=[web, mute], host_memory_bytes=16 << 30, host_available_bytes=9 << 30
        )
