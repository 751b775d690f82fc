"""The client: one method an RPC, values in and out, our own exceptions.

It is synchronous. Measured on a 2-core host: importing grpc costs 100 ms with either interface (it
imports grpc.aio itself), an event loop another 2 ms and a second set of calls for every front.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

# Its C core writes warnings of its own to stderr, in the middle of a guest's output.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from arcboxd.client import decode, views
from arcboxd.client.streams import ExecCall, Watch, raised
from arcboxd.domain.guest import ExecInput, ExecSpec, Pong, SystemInfo
from arcboxd.errors import UnsupportedError
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import machine_pb2, machine_pb2_grpc

QUICK_S = 30.0
"""For what the daemon answers by itself, or with one question to an agent."""
LONG_S = 3600.0
"""For what may build an image, boot, or write memory or disks: the daemon bounds each."""
TEMPLATE_SUBJECT = "template"
"""Of `Client.watch`: the progress of `Client.prepare_template`, which is of no machine."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Client:
    """A connection to a daemon. Safe to use from many threads; close it, or use it as a context.

    Every method raises the exception that the daemon raised, `DaemonUnreachableError` when there is
    no daemon, and `TooLateError` past its deadline. A machine is named by its id, a unique prefix
    of it, or its name.
    """

    def __init__(self, socket: Path) -> None:
        """Prepare a connection, which the first call makes."""
        # Percent signs and spaces in a unix: target are URI syntax.
        self._channel = grpc.insecure_channel(
            f"unix:{quote(str(socket))}", options=[("grpc.enable_http_proxy", 0)]
        )

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Cancel what is under way and disconnect. Idempotent."""
        self._channel.close()

    @cached_property
    def _machine(self) -> machine_pb2_grpc.MachineServiceStub:
        return machine_pb2_grpc.MachineServiceStub(self._channel)

    @cached_property
    def _host(self) -> host_pb2_grpc.HostServiceStub:
        return host_pb2_grpc.HostServiceStub(self._channel)

    def create(self, new: views.NewMachine) -> str:
        """Record a new, stopped machine, and give its id."""
        return _call(self._machine.Create, decode.create_request(new), LONG_S).id

    def start(self, ref: str) -> None:
        """Start a machine, or resume a suspended one; returns once its agent answers."""
        _call(self._machine.Start, machine_pb2.StartMachineRequest(id=ref), LONG_S)

    def stop(self, ref: str, *, force: bool = False) -> None:
        """Stop a machine: gracefully if its guest agrees, at once with ``force``."""
        _call(self._machine.Stop, machine_pb2.StopMachineRequest(id=ref, force=force), LONG_S)

    def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a machine, with ``force`` even a running one, with ``volumes`` its data disks."""
        request = machine_pb2.RemoveMachineRequest(id=ref, force=force, volumes=volumes)
        _call(self._machine.Remove, request, LONG_S)

    def suspend(self, ref: str) -> int:
        """Write a running machine's memory to disk and end its process; give the bytes written.

        Idempotent.
        """
        return _call(self._host.Suspend, host_pb2.SuspendRequest(id=ref), LONG_S).saved_bytes

    def resume(self, ref: str) -> None:
        """Let a suspended machine go on; returns once its agent answers. Idempotent."""
        _call(self._host.Resume, host_pb2.ResumeRequest(id=ref), LONG_S)

    def create_snapshot(self, ref: str, name: str = "") -> views.Snapshot:
        """Keep a machine's disks, and its memory unless it is stopped; "" leaves the name open."""
        request = host_pb2.CreateSnapshotRequest(id=ref, name=name)
        return decode.snapshot(_call(self._host.CreateSnapshot, request, LONG_S))

    def list_snapshots(self, ref: str) -> tuple[views.Snapshot, ...]:
        """List a machine's snapshots, oldest first."""
        request = host_pb2.ListSnapshotsRequest(id=ref)
        answer = _call(self._host.ListSnapshots, request, QUICK_S)
        return tuple(map(decode.snapshot, answer.snapshots))

    def restore_snapshot(self, ref: str, name: str, *, force: bool = False) -> None:
        """Bring a machine back to a snapshot: to suspended if that has memory, else to stopped.

        Args:
            ref: The machine.
            name: The snapshot.
            force: End a running machine first, losing what it does.
        """
        request = host_pb2.RestoreSnapshotRequest(id=ref, name=name, force=force)
        _call(self._host.RestoreSnapshot, request, LONG_S)

    def remove_snapshot(self, ref: str, name: str) -> None:
        """Remove a snapshot; the machine stays as it is."""
        request = host_pb2.RemoveSnapshotRequest(id=ref, name=name)
        _call(self._host.RemoveSnapshot, request, LONG_S)

    def clone(self, ref: str, name: str) -> str:
        """Make a stopped machine with a copy of another's disks, and give its id."""
        request = host_pb2.CloneMachineRequest(id=ref, name=name)
        return _call(self._host.CloneMachine, request, LONG_S).id

    def prepare_template(self, new: views.NewTemplate) -> views.Template:
        """Boot an image once, so that machines of that shape start without booting."""
        request = decode.template_request(new)
        return decode.template(_call(self._host.PrepareTemplate, request, LONG_S))

    def list_templates(self) -> tuple[views.Template, ...]:
        """List the templates, oldest first."""
        answer = _call(self._host.ListTemplates, host_pb2.ListTemplatesRequest(), QUICK_S)
        return tuple(map(decode.template, answer.templates))

    def remove_template(self, key: str) -> None:
        """Remove a template, named by its key or a unique prefix of it."""
        _call(self._host.RemoveTemplate, host_pb2.RemoveTemplateRequest(key=key), LONG_S)

    def prune_templates(self) -> views.Pruned:
        """Remove the templates that are of no use to any machine, present or new."""
        answer = _call(self._host.PruneTemplates, host_pb2.PruneTemplatesRequest(), LONG_S)
        return views.Pruned(tuple(answer.keys), answer.freed_bytes)

    def usage(self, refs: Sequence[str] = ()) -> views.Usage:
        """Tell what machines use of the host now; without ``refs`` every one with a process."""
        return decode.usage(_call(self._host.GetUsage, host_pb2.GetUsageRequest(ids=refs), QUICK_S))

    def list(self, *, all_states: bool = False) -> tuple[views.MachineSummary, ...]:
        """List machines, stopped ones only with ``all_states``."""
        request = machine_pb2.ListMachinesRequest(all=all_states)
        return tuple(map(decode.summary, _call(self._machine.List, request, QUICK_S).machines))

    def inspect(self, ref: str) -> views.MachineDetails:
        """Tell all that is known of a machine."""
        info = _call(self._machine.Inspect, machine_pb2.InspectMachineRequest(id=ref), QUICK_S)
        extra: host_pb2.MachineExtra | None
        try:
            request = host_pb2.InspectExtraRequest(id=info.id)
            extra = _call(self._host.InspectExtra, request, QUICK_S)
        except UnsupportedError:
            extra = None
        return decode.details(info, extra)

    def ping(self, ref: str) -> Pong:
        """Ask a machine's agent for an answer."""
        answer = _call(self._machine.Ping, machine_pb2.MachineAgentRequest(id=ref), QUICK_S)
        return Pong(answer.message, answer.version)

    def system_info(self, ref: str) -> SystemInfo:
        """Read what a machine's guest says of itself."""
        request = machine_pb2.MachineAgentRequest(id=ref)
        return decode.system_info(_call(self._machine.GetSystemInfo, request, QUICK_S))

    def ssh_info(self, ref: str) -> views.SshInfo:
        """Tell how ssh reaches a machine."""
        m = _call(self._machine.SSHInfo, machine_pb2.SSHInfoRequest(id=ref), LONG_S)
        return views.SshInfo(m.host, m.port, m.user, m.identity_file, m.command)

    def exec(self, ref: str, spec: ExecSpec, inputs: Iterable[ExecInput] = ()) -> ExecCall:
        """Run a process in a machine.

        Args:
            ref: The machine.
            spec: What to run.
            inputs: Pulled one at a time from another thread, each only when the one before was
                taken: a source that waits for its next item is held back by a slow guest.
        """
        messages: Iterator[host_pb2.MachineExecInput]
        messages = decode.exec_inputs(ref, spec, iter(inputs))
        return ExecCall(self._host.Exec(messages))

    def watch(self, subject: str = "") -> Watch:
        """Follow events of one machine, which need not exist yet, or of all."""
        return Watch(self._host.Watch(host_pb2.WatchRequest(subject=subject)))

    def daemon_info(self, *, timeout_s: float = QUICK_S) -> views.DaemonInfo:
        """Ask the daemon about itself."""
        request = host_pb2.DaemonInfoRequest()
        return decode.daemon_info(_call(self._host.GetDaemonInfo, request, timeout_s))

    def stop_daemon(self) -> None:
        """End the daemon; machines go on running."""
        _call(self._host.StopDaemon, host_pb2.StopDaemonRequest(), QUICK_S)


def _call(
    method: grpc.UnaryUnaryMultiCallable[_Request, _Response], request: _Request, timeout_s: float
) -> _Response:
    try:
        return method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise raised(error) from error
