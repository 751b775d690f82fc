"""Values to messages and back; only here is it known what an empty field stands for. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from arcboxd.domain.guest import (
    ExecData,
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecSpec,
    Identity,
    Pong,
    ProcessSignal,
    StdinData,
    StdinEnd,
    SystemInfo,
    TerminalSize,
)
from arcboxd.domain.machine import (
    GUEST_ADDRESS,
    GUEST_DNS,
    GUEST_GATEWAY,
    GUEST_PREFIX_BITS,
    DirectoryMount,
    Machine,
    MachineState,
)
from arcboxd.paths import MachinePaths
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, common_pb2, machine_pb2

CHUNK_BYTES = 64 << 10
"""The most output that one message carries."""
_TEXT = 256
_ITEMS = 64
_NS = 1_000_000_000
_HAS_ADDRESS = frozenset({MachineState.RUNNING, MachineState.STOPPING})


def summary(machine: Machine) -> machine_pb2.MachineSummary:
    """Give a line of a list."""
    spec = machine.spec
    return machine_pb2.MachineSummary(
        id=machine.id,
        name=spec.name,
        state=machine.state.value,
        cpus=spec.cpus,
        memory=spec.memory_bytes,
        disk_size=spec.disk_bytes,
        ip_address=_address(machine),
        created=machine.created_unix_ns // _NS,
    )


class Summaries:
    """Makes lists, each line encoded once for as long as its machine does not change.

    Measured with 1,000 machines on a 2-core host: a List takes 6 ms without this, and 2 ms with it.
    """

    def __init__(self) -> None:
        """Know no machine yet."""
        self._encoded: dict[str, tuple[Machine, bytes]] = {}

    def response(self, machines: Iterable[Machine]) -> machine_pb2.ListMachinesResponse:
        """Give the list of these machines."""
        encoded: dict[str, tuple[Machine, bytes]] = {}
        for machine in machines:
            known = self._encoded.get(machine.id)
            if known is None or known[0] is not machine:
                line = machine_pb2.ListMachinesResponse(machines=[summary(machine)])
                known = machine, line.SerializeToString()
            encoded[machine.id] = known
        self._encoded = encoded
        # Encoded messages one after the other are one message with the items of all.
        # Source: protobuf.dev/programming-guides/encoding, "Last One Wins".
        data = b"".join(line for _, line in encoded.values())
        return machine_pb2.ListMachinesResponse.FromString(data)


def machine_info(machine: Machine, paths: MachinePaths) -> machine_pb2.MachineInfo:
    """Give all that the contract knows of a machine."""
    spec = machine.spec
    return machine_pb2.MachineInfo(
        id=machine.id,
        name=spec.name,
        state=machine.state.value,
        hardware=machine_pb2.MachineHardware(
            cpus=spec.cpus, memory=spec.memory_bytes, arch=spec.arch
        ),
        network=machine_pb2.MachineNetwork(
            ip_address=_address(machine),
            gateway=GUEST_GATEWAY,
            mac_address=machine.mac,
            dns_servers=[GUEST_DNS],
        ),
        storage=machine_pb2.MachineStorage(
            disk_size=spec.disk_bytes, disk_format="qcow2", disk_path=str(paths.disk)
        ),
        os=machine_pb2.MachineOS(
            distro=spec.distro, version=spec.version, kernel=machine.kernel_version
        ),
        mounts=map(directory_mount_message, spec.mounts),
        created=_timestamp(machine.created_unix_ns),
        started_at=_timestamp(machine.started_unix_ns) if machine.started_unix_ns else None,
    )


def directory_mount(message: machine_pb2.DirectoryMount) -> DirectoryMount:
    """Read which directory is wanted where."""
    return DirectoryMount(message.host_path, message.guest_path, message.readonly)


def directory_mount_message(mount: DirectoryMount) -> machine_pb2.DirectoryMount:
    """Say which directory is where."""
    return machine_pb2.DirectoryMount(
        host_path=mount.host_path, guest_path=mount.guest_path, readonly=mount.readonly
    )


def machine_extra(
    machine: Machine, paths: MachinePaths, allocated_bytes: int
) -> host_pb2.MachineExtra:
    """Give what the contract has no field for."""
    return host_pb2.MachineExtra(
        accelerator=machine.accelerator,
        detail=machine.detail,
        pid=machine.process.pid if machine.process else 0,
        directory=str(paths.directory),
        console_log=str(paths.console_log),
        agent_socket=str(paths.agent_socket),
        ssh_port=machine.ssh_port,
        disk_allocated_bytes=allocated_bytes,
        boot=machine.boot.value if machine.boot else "",
        boot_reason=machine.boot_reason,
        docker_socket=str(paths.docker_socket),
    )


def machine_ping(pong: Pong) -> machine_pb2.MachinePingResponse:
    """Pass an agent's answer on."""
    return machine_pb2.MachinePingResponse(message=pong.message, version=pong.version)


def machine_system_info(info: SystemInfo) -> machine_pb2.MachineSystemInfo:
    """Pass on what a guest says of itself."""
    return machine_pb2.MachineSystemInfo(
        kernel_version=info.kernel_version,
        os_name=info.os_name,
        os_version=info.os_version,
        arch=info.arch,
        total_memory=info.total_memory_bytes,
        available_memory=info.available_memory_bytes,
        cpu_count=info.cpu_count,
        load_average=info.load_average,
        hostname=info.hostname,
        uptime=info.uptime_s,
        ip_addresses=info.ip_addresses,
    )


def machine_exec_spec(request: machine_pb2.MachineExecRequest) -> ExecSpec:
    """Read what to run from the contract's request, which has no standard input."""
    return ExecSpec(
        argv=tuple(request.cmd),
        working_dir=request.working_dir,
        user=request.user,
        env=dict(request.env),
        tty=request.tty,
    )


def machine_exec_output(output: ExecOutput) -> machine_pb2.MachineExecOutput:
    """Give a piece of output, or the end, as the contract has it."""
    match output:
        case ExecData(stream, data):
            return machine_pb2.MachineExecOutput(stream=stream, data=data)
        case ExecExit(code, reason):
            # The contract has no field for the reason: it is said where a shell would say it.
            return machine_pb2.MachineExecOutput(
                stream="stderr" if reason else "",
                data=f"arcbox: {reason}\n".encode() if reason else b"",
                exit_code=code,
                done=True,
            )
        case _:
            assert_never(output)


def exec_spec(start: guest_pb2.ExecStart) -> ExecSpec:
    """Read what to run."""
    return ExecSpec(
        argv=tuple(start.argv),
        working_dir=start.working_dir,
        user=start.user,
        env=dict(start.env),
        tty=start.tty,
        rows=start.rows or 24,
        columns=start.columns or 80,
        stdin=start.stdin,
    )


def exec_start(spec: ExecSpec) -> guest_pb2.ExecStart:
    """Say what to run."""
    return guest_pb2.ExecStart(
        argv=spec.argv,
        working_dir=spec.working_dir,
        user=spec.user,
        env=spec.env,
        tty=spec.tty,
        rows=spec.rows,
        columns=spec.columns,
        stdin=spec.stdin,
    )


def exec_input(message: guest_pb2.ExecInput) -> ExecInput | None:
    """Read what follows the start; None for a kind that this version does not know."""
    match message.WhichOneof("input"):
        case "stdin":
            return StdinData(message.stdin)
        case "close_stdin":
            return StdinEnd()
        case "resize":
            return TerminalSize(message.resize.rows, message.resize.columns)
        case "signal":
            return ProcessSignal(message.signal)
        case _:
            return None


def exec_input_message(item: ExecInput) -> guest_pb2.ExecInput:
    """Say what follows the start."""
    match item:
        case StdinData(data):
            return guest_pb2.ExecInput(stdin=data)
        case StdinEnd():
            return guest_pb2.ExecInput(close_stdin=guest_pb2.CloseStdin())
        case TerminalSize(rows, columns):
            return guest_pb2.ExecInput(resize=guest_pb2.Resize(rows=rows, columns=columns))
        case ProcessSignal(number):
            return guest_pb2.ExecInput(signal=number)
        case _:
            assert_never(item)


def exec_output(message: guest_pb2.ExecOutput) -> ExecOutput | None:
    """Read a piece of output; None for a kind that this version does not know."""
    match message.WhichOneof("output"):
        case "stdout":
            return ExecData("stdout", message.stdout)
        case "stderr":
            return ExecData("stderr", message.stderr)
        case "exit":
            return ExecExit(message.exit.code, message.exit.reason[:_TEXT])
        case _:
            return None


def exec_output_message(output: ExecOutput) -> guest_pb2.ExecOutput:
    """Give a piece of output, or the end."""
    match output:
        case ExecData("stderr", data):
            return guest_pb2.ExecOutput(stderr=data)
        case ExecData(_, data):
            return guest_pb2.ExecOutput(stdout=data)
        case ExecExit(code, reason):
            return guest_pb2.ExecOutput(exit=guest_pb2.ExecExit(code=code, reason=reason))
        case _:
            assert_never(output)


def pong(message: agent_pb2.AgentPingResponse) -> Pong:
    """Read an agent's answer, clipped."""
    return Pong(message.message[:_TEXT], message.version[:_TEXT])


def system_info(message: agent_pb2.SystemInfo) -> SystemInfo:
    """Read what a guest says of itself, every text and list clipped."""
    return SystemInfo(
        kernel_version=message.kernel_version[:_TEXT],
        os_name=message.os_name[:_TEXT],
        os_version=message.os_version[:_TEXT],
        arch=message.arch[:_TEXT],
        total_memory_bytes=message.total_memory,
        available_memory_bytes=message.available_memory,
        cpu_count=message.cpu_count,
        load_average=tuple(message.load_average[:3]),
        hostname=message.hostname[:_TEXT],
        uptime_s=message.uptime,
        ip_addresses=tuple(text[:_TEXT] for text in message.ip_addresses[:_ITEMS]),
    )


def configure_request(
    identity: Identity, *, clock_unix_ns: int, entropy: bytes
) -> guest_pb2.ConfigureRequest:
    """Tell an agent which machine it is in."""
    return guest_pb2.ConfigureRequest(
        machine_id=identity.machine_id,
        hostname=identity.hostname,
        clock_unix_nanos=clock_unix_ns,
        entropy=entropy,
        user=guest_pb2.User(
            name=identity.user_name,
            uid=identity.user_uid,
            authorized_keys=identity.authorized_keys,
        ),
        ssh_host_keys=[
            guest_pb2.SshHostKey(
                type=key.type, private_key=key.private_key, public_key=key.public_key
            )
            for key in identity.ssh_host_keys
        ],
        disk_bytes=identity.disk_bytes,
        network=guest_pb2.Network(
            address=f"{GUEST_ADDRESS}/{GUEST_PREFIX_BITS}",
            gateway=GUEST_GATEWAY,
            dns_servers=[GUEST_DNS],
            mac=identity.mac,
        ),
    )


def _address(machine: Machine) -> str:
    return GUEST_ADDRESS if machine.state in _HAS_ADDRESS else ""


def _timestamp(unix_ns: int) -> common_pb2.Timestamp:
    return common_pb2.Timestamp(seconds=unix_ns // _NS, nanos=unix_ns % _NS)
