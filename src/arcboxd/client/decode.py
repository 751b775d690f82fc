"""Messages into views and back. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from arcboxd.client import views
from arcboxd.domain.guest import ExecInput, ExecSpec, SystemInfo
from arcboxd.domain.machine import NewMachine
from arcboxd.wire import convert
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2


def _unix(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def create_request(new: NewMachine) -> machine_pb2.CreateMachineRequest:
    """Ask for a machine."""
    return machine_pb2.CreateMachineRequest(
        name=new.name,
        cpus=new.cpus,
        memory=new.memory_bytes,
        disk_size=new.disk_bytes,
        distro=new.distro,
        version=new.version,
        arch=new.arch,
        mounts=map(convert.directory_mount_message, new.mounts),
        ssh_public_key=new.ssh_public_key,
        kernel=new.kernel,
        cmdline=new.cmdline,
    )


def template_request(new: views.NewTemplate) -> host_pb2.PrepareTemplateRequest:
    """Ask for a template."""
    return host_pb2.PrepareTemplateRequest(
        distro=new.distro,
        version=new.version,
        arch=new.arch,
        cpus=new.cpus,
        memory=new.memory_bytes,
        disk_size=new.disk_bytes,
        runtime=new.runtime,
    )


def summary(message: machine_pb2.MachineSummary) -> views.MachineSummary:
    """Read a line of a list."""
    return views.MachineSummary(
        id=message.id,
        name=message.name,
        state=message.state,
        cpus=message.cpus,
        memory_bytes=message.memory,
        disk_bytes=message.disk_size,
        address=message.ip_address,
        created=_unix(message.created),
    )


def details(
    info: machine_pb2.MachineInfo,
    extra: host_pb2.MachineExtra | None,
    mounts: Iterable[host_pb2.Mount] = (),
) -> views.MachineDetails:
    """Read everything about a machine."""

    def moment(field: str) -> datetime | None:
        stamp = info.started_at if field == "started_at" else info.created
        present = info.HasField("started_at" if field == "started_at" else "created")
        return _unix(stamp.seconds + stamp.nanos / 1e9) if present else None

    return views.MachineDetails(
        id=info.id,
        name=info.name,
        state=info.state,
        cpus=info.hardware.cpus,
        memory_bytes=info.hardware.memory,
        arch=info.hardware.arch,
        distro=info.os.distro,
        version=info.os.version,
        kernel=info.os.kernel,
        disk_bytes=info.storage.disk_size,
        disk_format=info.storage.disk_format,
        disk_path=info.storage.disk_path,
        address=info.network.ip_address,
        gateway=info.network.gateway,
        mac_address=info.network.mac_address,
        dns_servers=tuple(info.network.dns_servers),
        created=moment("created"),
        started=moment("started_at"),
        mounts=tuple(map(mount, mounts))
        or tuple(views.Mount(m.host_path, m.guest_path, m.readonly) for m in info.mounts),
        extra=None if extra is None else _extra(extra),
    )


def _extra(message: host_pb2.MachineExtra) -> views.MachineExtra:
    return views.MachineExtra(
        accelerator=message.accelerator,
        detail=message.detail,
        pid=message.pid,
        directory=message.directory,
        console_log=message.console_log,
        agent_socket=message.agent_socket,
        ssh_port=message.ssh_port,
        disk_allocated_bytes=message.disk_allocated_bytes,
        boot=message.boot,
        boot_reason=message.boot_reason,
        docker_socket=message.docker_socket,
    )


def mount(message: host_pb2.Mount) -> views.Mount:
    """Read a mount."""
    return views.Mount(
        host_path=message.host_path,
        guest_path=message.guest_path,
        readonly=message.readonly,
        filesystem=message.filesystem,
        state=message.state,
        detail=message.detail,
    )


def snapshot(message: host_pb2.Snapshot) -> views.Snapshot:
    """Read a snapshot."""
    return views.Snapshot(
        name=message.name,
        created=_unix(message.created_unix_nanos / 1e9),
        memory=message.memory,
        saved_bytes=message.saved_bytes,
    )


def template(message: host_pb2.Template) -> views.Template:
    """Read a template."""
    return views.Template(
        key=message.key,
        distro=message.distro,
        version=message.version,
        arch=message.arch,
        cpus=message.cpus,
        memory_bytes=message.memory,
        disk_bytes=message.disk_size,
        allocated_bytes=message.allocated_bytes,
        machines=message.machines,
        staged=message.staged,
        created=_unix(message.created_unix_nanos / 1e9),
        current=message.current,
        runtime=message.runtime,
    )


def port(message: host_pb2.Port) -> views.Port:
    """Read a forward."""
    return views.Port(
        machine=message.machine,
        protocol=message.protocol,
        host_address=message.host_address,
        host_port=message.host_port,
        guest_address=message.guest_address,
        guest_port=message.guest_port,
        source=message.source,
        state=message.state,
        detail=message.detail,
    )


def image(message: host_pb2.Image) -> views.Image:
    """Read a base image."""
    return views.Image(
        key=message.key,
        source=message.source,
        distro=message.distro,
        version=message.version,
        arch=message.arch,
        init=message.init,
        apparent_bytes=message.apparent_bytes,
        allocated_bytes=message.allocated_bytes,
        created=_unix(message.created_unix_nanos / 1e9),
        machines=tuple(message.machines),
        templates=message.templates,
    )


def import_request(new: views.NewImage) -> host_pb2.ImportImageRequest:
    """Ask for an image of a file."""
    return host_pb2.ImportImageRequest(
        path=str(new.path),
        name=new.name,
        version=new.version,
        arch=new.arch,
        sha256=new.sha256,
    )


def usage(message: host_pb2.GetUsageResponse) -> views.Usage:
    """Read what machines use of the host."""
    return views.Usage(
        machines=tuple(map(_machine_usage, message.machines)),
        host_memory_bytes=message.host_memory_bytes,
        host_available_bytes=message.host_available_bytes,
    )


def _machine_usage(message: host_pb2.MachineUsage) -> views.MachineUsage:
    return views.MachineUsage(
        id=message.id,
        name=message.name,
        own_bytes=message.own_bytes,
        shared_bytes=message.shared_bytes,
        swapped_bytes=message.swapped_bytes,
        memory_bytes=message.memory_bytes,
        guest_used_bytes=message.guest_used_bytes or None,
        cpu_seconds=message.cpu_seconds,
    )


def system_info(message: machine_pb2.MachineSystemInfo) -> SystemInfo:
    """Read what a guest says of itself."""
    return SystemInfo(
        kernel_version=message.kernel_version,
        os_name=message.os_name,
        os_version=message.os_version,
        arch=message.arch,
        total_memory_bytes=message.total_memory,
        available_memory_bytes=message.available_memory,
        cpu_count=message.cpu_count,
        load_average=tuple(message.load_average),
        hostname=message.hostname,
        uptime_s=message.uptime,
        ip_addresses=tuple(message.ip_addresses),
    )


def daemon_info(message: host_pb2.DaemonInfo) -> views.DaemonInfo:
    """Read what the daemon says of itself."""
    return views.DaemonInfo(
        version=message.version,
        pid=message.pid,
        home=Path(message.home),
        accelerator=message.accelerator,
        accelerator_reason=message.accelerator_reason,
        started=_unix(message.started_unix_nanos / 1e9),
        machines=message.machines,
        running=message.running,
    )


def event(message: host_pb2.Event) -> views.Event | None:
    """Read an event; None for a kind that this version does not know."""
    match message.WhichOneof("what"):
        case "state":
            return views.StateEvent(message.subject, message.state.state, message.state.detail)
        case "progress":
            p = message.progress
            return views.ProgressEvent(message.subject, p.step, p.done, p.total, p.finished)
        case "port":
            return views.PortEvent(message.subject, port(message.port.port))
        case _:
            return None


def exec_inputs(
    ref: str, spec: ExecSpec, inputs: Iterator[ExecInput]
) -> Iterator[host_pb2.MachineExecInput]:
    """Begin with what to run, and go on with what follows; pulled one at a time."""
    start = guest_pb2.ExecInput(start=convert.exec_start(spec))
    yield host_pb2.MachineExecInput(id=ref, input=start)
    for item in inputs:
        yield host_pb2.MachineExecInput(input=convert.exec_input_message(item))
