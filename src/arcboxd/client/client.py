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
from arcboxd.domain.kubernetes import Kubeconfig, KubernetesStatus, KubernetesStopped
from arcboxd.domain.machine import DirectoryMount, NewMachine
from arcboxd.domain.runtime import RuntimeAnswer, RuntimeStatus
from arcboxd.errors import UnsupportedError
from arcboxd.wire import convert, kubernetes, runtime
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import machine_pb2, machine_pb2_grpc

QUICK_S = 30.0
"""For what the daemon answers by itself, or with one question to an agent."""
LONG_S = 3600.0
"""For what may build an image, boot, or write memory or disks: the daemon bounds each."""
TEMPLATE_SUBJECT = "template"
"""Of `Client.watch`: the progress of `Client.prepare_template`, which is of no machine."""
IMAGE_SUBJECT = "image"
"""The same of `Client.pull_image` and `Client.import_image`."""

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

    def create(self, new: NewMachine) -> str:
        """Record a new, stopped machine, and give its id."""
        return _call(self._machine.Create, decode.create_request(new), LONG_S).id

    def start(self, ref: str) -> None:
        """Start a machine, or resume a suspended one; returns once its agent answers."""
        _call(self._machine.Start, machine_pb2.StartMachineRequest(id=ref), LONG_S)

    def wait_booted(self, ref: str) -> tuple[str, ...]:
        """Wait until a machine's init has started all; name the services that failed."""
        request = host_pb2.MachineWaitBootedRequest(id=ref)
        return tuple(_call(self._host.WaitBooted, request, LONG_S).failed)

    def stop(self, ref: str, *, force: bool = False) -> None:
        """Stop a machine: gracefully if its guest agrees, at once with ``force``."""
        _call(self._machine.Stop, machine_pb2.StopMachineRequest(id=ref, force=force), LONG_S)

    def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a machine, with ``force`` even a running one, with ``volumes`` its data disks."""
        request = machine_pb2.RemoveMachineRequest(id=ref, force=force, volumes=volumes)
        _call(self._machine.Remove, request, LONG_S)

    def set_machine(
        self, ref: str, *, cpus: int = 0, memory_bytes: int = 0, disk_bytes: int = 0
    ) -> None:
        """Change what a stopped machine is made of; 0 is as it is. A disk only grows."""
        request = host_pb2.SetMachineRequest(
            id=ref, cpus=cpus, memory=memory_bytes, disk_size=disk_bytes
        )
        _call(self._host.SetMachine, request, LONG_S)

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

    def add_mount(self, ref: str, mount: DirectoryMount) -> views.Mount:
        """Mount a directory of the host: at once if the machine runs. Idempotent."""
        message = convert.directory_mount_message(mount)
        request = host_pb2.AddMountRequest(id=ref, mount=message)
        return decode.mount(_call(self._host.AddMount, request, LONG_S))

    def remove_mount(self, ref: str, guest_path: str) -> None:
        """Take a directory of the host from a machine: at once if it runs."""
        request = host_pb2.RemoveMountRequest(id=ref, guest_path=guest_path)
        _call(self._host.RemoveMount, request, LONG_S)

    def list_mounts(self, ref: str) -> tuple[views.Mount, ...]:
        """List a machine's mounts, and what has become of each."""
        request = host_pb2.ListMountsRequest(id=ref)
        return tuple(map(decode.mount, _call(self._host.ListMounts, request, QUICK_S).mounts))

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

    def add_port(self, ref: str, new: views.NewPort) -> views.Port:
        """Forward a port of the host to a machine, for as long as it exists. Idempotent."""
        request = host_pb2.AddPortRequest(
            id=ref,
            protocol=new.protocol,
            host_address=new.host_address,
            host_port=new.host_port,
            guest_address=new.guest_address,
            guest_port=new.guest_port,
        )
        return decode.port(_call(self._host.AddPort, request, QUICK_S))

    def remove_port(self, ref: str, protocol: str, host_address: str, host_port: int) -> None:
        """Remove forwards of the user's own; an empty address stands for any."""
        request = host_pb2.RemovePortRequest(
            id=ref, protocol=protocol, host_address=host_address, host_port=host_port
        )
        _call(self._host.RemovePort, request, QUICK_S)

    def list_ports(self, ref: str = "") -> tuple[views.Port, ...]:
        """List the forwards to a machine, or to all machines."""
        answer = _call(self._host.ListPorts, host_pb2.ListPortsRequest(id=ref), QUICK_S)
        return tuple(map(decode.port, answer.ports))

    def pull_image(self, distro: str = "", version: str = "", arch: str = "") -> views.Image:
        """Build or fetch an image, or a newer one where its source has one."""
        request = host_pb2.PullImageRequest(distro=distro, version=version, arch=arch)
        return decode.image(_call(self._host.PullImage, request, LONG_S))

    def import_image(self, new: views.NewImage) -> views.Image:
        """Make an image of a file on the daemon's host."""
        return decode.image(_call(self._host.ImportImage, decode.import_request(new), LONG_S))

    def list_images(self) -> tuple[views.Image, ...]:
        """List the images that are there, oldest first."""
        answer = _call(self._host.ListImages, host_pb2.ListImagesRequest(), QUICK_S)
        return tuple(map(decode.image, answer.images))

    def remove_image(self, ref: str) -> int:
        """Remove an image by its key, a prefix of it, or NAME:VERSION; give the bytes freed."""
        request = host_pb2.RemoveImageRequest(key=ref)
        return _call(self._host.RemoveImage, request, LONG_S).freed_bytes

    def prune_images(self) -> views.PrunedImages:
        """Remove the images and boot files that no new machine would get, and nothing rests on."""
        answer = _call(self._host.PruneImages, host_pb2.PruneImagesRequest(), LONG_S)
        return views.PrunedImages(tuple(answer.keys), answer.freed_bytes, tuple(answer.boot_files))

    def update_boot_files(self, arch: str = "") -> views.BootFiles:
        """Make what machines boot from of newer packages, where there are any."""
        request = host_pb2.UpdateBootFilesRequest(arch=arch)
        answer = _call(self._host.UpdateBootFiles, request, LONG_S)
        return views.BootFiles(answer.kernel_version, answer.changed)

    def verify_image(self, ref: str) -> tuple[str, ...]:
        """Name the files of an image that are not what was built; none: all is well."""
        request = host_pb2.VerifyImageRequest(key=ref)
        return tuple(_call(self._host.VerifyImage, request, LONG_S).damaged)

    def ensure_runtime(self, ref: str = "", *, start_if_needed: bool = True) -> RuntimeAnswer:
        """Have a machine's container runtime ready, starting what is needed, or only look.

        An empty ``ref`` stands for the default machine, which is made if need be.
        """
        request = host_pb2.EnsureMachineRuntimeRequest(id=ref, start_if_needed=start_if_needed)
        return runtime.answer(_call(self._host.EnsureRuntime, request, LONG_S))

    def runtime_status(self, ref: str = "") -> RuntimeStatus:
        """Tell how a machine's container runtime is; the default machine's for an empty ``ref``."""
        request = host_pb2.MachineRuntimeStatusRequest(id=ref)
        return runtime.status(_call(self._host.GetRuntimeStatus, request, QUICK_S))

    def start_kubernetes(self, ref: str = "") -> KubernetesStatus:
        """Start a machine's cluster; the default machine's for an empty ``ref``, as below."""
        request = host_pb2.StartKubernetesRequest(id=ref)
        return kubernetes.started(_call(self._host.StartKubernetes, request, LONG_S))

    def stop_kubernetes(self, ref: str = "") -> KubernetesStopped:
        """Stop a machine's cluster and keep its data."""
        request = host_pb2.StopKubernetesRequest(id=ref)
        return kubernetes.stopped(_call(self._host.StopKubernetes, request, LONG_S))

    def delete_kubernetes(self, ref: str = "") -> str:
        """Remove a machine's cluster and all its data; give what was done."""
        request = host_pb2.DeleteKubernetesRequest(id=ref)
        return _call(self._host.DeleteKubernetes, request, LONG_S).detail

    def kubernetes_status(self, ref: str = "") -> KubernetesStatus:
        """Tell how a machine's cluster is."""
        request = host_pb2.GetKubernetesStatusRequest(id=ref)
        return kubernetes.status(_call(self._host.GetKubernetesStatus, request, QUICK_S))

    def kubeconfig(self, ref: str = "") -> Kubeconfig:
        """Give what reaches a machine's cluster, with the names that the host gave."""
        request = host_pb2.GetKubeconfigRequest(id=ref)
        return kubernetes.kubeconfig(_call(self._host.GetKubeconfig, request, QUICK_S))

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
        mounts: Sequence[host_pb2.Mount] = ()
        try:
            request = host_pb2.InspectExtraRequest(id=info.id)
            extra = _call(self._host.InspectExtra, request, QUICK_S)
            if info.mounts:
                wanted = host_pb2.ListMountsRequest(id=info.id)
                mounts = _call(self._host.ListMounts, wanted, QUICK_S).mounts
        except UnsupportedError:
            extra = None
        return decode.details(info, extra, mounts)

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
