"""Stand-ins for the parts below the use cases; the hypervisor's machines are real processes."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from arcboxd.assets.kubernetes_bundle import FetchFn
from arcboxd.daemon.parts import Parts
from arcboxd.domain.guest import (
    ExecData,
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecSpec,
    Identity,
    Pong,
    StdinData,
    StdinEnd,
    SystemInfo,
)
from arcboxd.domain.image import BaseImage, BootAssets, NewImage, ProgressFn
from arcboxd.domain.kubernetes import KubernetesStatus, KubernetesStopped
from arcboxd.domain.machine import Machine, ProcessIdentity
from arcboxd.domain.ports import GuestEvent
from arcboxd.domain.runtime import SERVICES, RuntimeAnswer, RuntimeStatus, ServiceStatus
from arcboxd.errors import (
    AgentUnreachableError,
    HypervisorError,
    InvalidArgumentError,
    LinkError,
    MissingToolError,
    NoRoomError,
    PreconditionError,
    TooLateError,
)
from arcboxd.hypervisor.base import (
    Accelerator,
    Forward,
    Hardware,
    PageRanges,
    SavedState,
    ShareSlot,
    VmConfig,
)
from arcboxd.kubernetes.distribution import Pin
from arcboxd.link.stream import Stream
from arcboxd.machines import disk_snapshots
from arcboxd.paths import MachinePaths
from arcboxd.process import ProcessHandle, spawn_detached
from tests.cluster_guest import Cluster
from tests.docker_guest import LinkedGuest
from tests.port_guest import PortGuest

STATE = b"the state of a machine"
INFO = SystemInfo(
    kernel_version="6.1.0-fake",
    os_name="Debian GNU/Linux",
    os_version="12",
    arch="x86_64",
    total_memory_bytes=1 << 30,
    available_memory_bytes=1 << 29,
    cpu_count=2,
    load_average=(0.5, 0.25, 0.125),
    hostname="fake",
    uptime_s=7,
    ip_addresses=("10.0.2.15",),
)


@dataclass
class FakeRuntime:
    """The container runtime of every machine, and its disk."""

    bundle: Path | None = Path("/dev/null")
    """None: it is not built yet."""
    built: int = 0
    build_gate: asyncio.Event | None = None
    build_fails: Exception | None = None
    ready: set[str] = field(default_factory=set)
    asked: list[tuple[str, bool]] = field(default_factory=list)
    failure: str = ""
    """Why it does not start; empty: it does, once there is a disk."""
    patient: bool = True
    """Wait for the disk."""
    needs_disk: bool = True
    gate: asyncio.Event | None = None
    dockerd: Path | None = None
    """What answers behind the guest's Docker socket, while the runtime is ready."""
    links: list[LinkedGuest] = field(default_factory=list)


@dataclass
class World:
    """What the fakes do, and what was done to them; a test changes it as it goes."""

    agent_answers: bool = True
    agent_ready: bool = True
    shutdown_ends: bool = True
    powerdown_ends: bool = True
    monitor_answers: bool = True
    dies_at_start: bool = False
    dies_at_restore: bool = False
    sshd: bool = True
    missing: str = ""
    """The program that the host lacks."""
    ports_taken: int = 0
    """How many launches fail because another program was quicker to take the port."""
    console: str = "[    0.000000] Linux version 6.1.0-fake\n"
    vms: dict[str, FakeVm] = field(default_factory=dict)
    agents: dict[str, FakeAgent] = field(default_factory=dict)
    configs: list[VmConfig] = field(default_factory=list)
    identities: list[Identity] = field(default_factory=list)
    frozen: list[int] = field(default_factory=list)
    """What each connection was told of the session that its guest was frozen in."""
    specs: list[ExecSpec] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    resets_allowed: int = 0
    begun: list[str] = field(default_factory=list)
    saves_fail: Exception | None = None
    save_gate: asyncio.Event | None = None
    save_begun: asyncio.Event = field(default_factory=asyncio.Event)
    resumes_fail: int = 0
    """How many times the monitor refuses to let a machine go on."""
    steps: list[str] = field(default_factory=list)
    """What was done to machines that matters in its order."""
    launched: dict[str, VmConfig] = field(default_factory=dict)
    clocks_set: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    """What guests have."""
    runtime: FakeRuntime = field(default_factory=FakeRuntime)
    cluster: Cluster = field(default_factory=Cluster)
    shares: dict[str, dict[ShareSlot, Path]] = field(default_factory=dict)
    """What is plugged into each machine, by its name."""
    mounted: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each guest has mounted: the tag, by the path."""
    mounts_fail: set[str] = field(default_factory=set)
    mounts_busy: set[str] = field(default_factory=set)
    forwards: dict[str, list[Forward]] = field(default_factory=dict)
    """What each machine's process forwards, by its name; it outlives a daemon."""
    guests: dict[str, PortGuest] = field(default_factory=lambda: defaultdict(PortGuest))
    restored: list[SavedState] = field(default_factory=list)
    own_pages: PageRanges = ((4096, 8192),)
    resized: dict[str, int] = field(default_factory=dict)
    board: str = "fake-1"
    exec_closed: int = 0
    sent_bytes: int = 0
    image_gate: asyncio.Event | None = None
    image_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    images_fail: Exception | None = None


class FakeVm:
    """A `sleep` that stands for QEMU."""

    def __init__(self, world: World, handle: ProcessHandle, config: VmConfig) -> None:
        self._world = world
        self._handle = handle
        self._forwards = world.forwards.setdefault(config.name, list(config.forwards))
        self._paths = config.paths
        self.name = config.name
        self.detached = False

    @property
    def process(self) -> ProcessIdentity:
        return self._handle.identity

    async def wait_exit(self) -> None:
        await self._handle.wait()

    async def pause(self) -> None:
        self._world.steps.append("pause")
        self._handle.signal(signal.SIGSTOP)

    async def resume(self) -> None:
        if self._world.resumes_fail:
            self._world.resumes_fail -= 1
            raise HypervisorError("the monitor does not answer")
        self._world.steps.append("resume")
        self._handle.signal(signal.SIGCONT)

    async def save(self, path: Path, *, memory_in_file: bool, timeout_s: float) -> SavedState:
        self._world.steps.append("save")
        path.write_bytes(STATE[:3])
        self._world.save_begun.set()
        if self._world.save_gate is not None:
            await self._world.save_gate.wait()
        if self._world.saves_fail is not None:
            raise self._world.saves_fail
        path.write_bytes(STATE)
        return SavedState(path, memory_in_file, self._world.board)

    async def hardware(self) -> Hardware:
        config = self._world.launched[self.name]
        return Hardware(
            machine_type=self._world.board,
            kernel=config.assets.kernel,
            initramfs=config.assets.initramfs,
            modules_disk=config.assets.modules_disk,
            agent_disk=config.assets.agent_disk,
            data_disks=tuple(disk.name for disk in config.data_disks),
            balloon=config.balloon,
            runtime_disk=config.runtime_disk,
            kubernetes_disk=config.kubernetes_disk,
            pluggable=config.pluggable,
        )

    async def snapshot_disks(self, tag: str) -> None:
        self._world.steps.append("snapshot")
        await disk_snapshots.make(self._disks(), tag)

    async def drop_disk_snapshots(self, tag: str) -> None:
        if not self._world.monitor_answers:
            raise HypervisorError("the monitor does not answer")
        await disk_snapshots.drop(self._disks(), tag)

    def _disks(self) -> list[Path]:
        # Of its own state directory, which may be a copy of the one that it was launched in.
        volumes = self._paths.directory.parents[1] / "volumes" / self._paths.directory.name
        data = self._world.launched[self.name].data_disks
        return [self._paths.disk, *(volumes / disk.path.name for disk in data)]

    async def plug_runtime(self, disk: Path) -> None:
        config = self._world.launched[self.name]
        self._world.launched[self.name] = replace(config, runtime_disk=disk)

    async def plug_kubernetes(self, disk: Path) -> None:
        config = self._world.launched[self.name]
        self._world.launched[self.name] = replace(config, kubernetes_disk=disk)

    async def plug_share(self, slot: ShareSlot, directory: Path) -> None:
        if not self._world.monitor_answers:
            raise HypervisorError("the monitor does not answer")
        self._world.shares.setdefault(self.name, {})[slot] = directory

    async def unplug_share(self, slot: ShareSlot, timeout_s: float) -> None:
        self._world.shares.get(self.name, {}).pop(slot, None)

    async def shares(self) -> tuple[ShareSlot, ...]:
        return tuple(sorted(self._world.shares.get(self.name, {})))

    def rehome(self, paths: MachinePaths) -> None:
        for name in ("template_disk", "disk", "console_log", "qemu_log"):
            getattr(self._paths, name).rename(getattr(paths, name))
        self._paths = paths

    async def own_pages(self) -> PageRanges:
        return self._world.own_pages

    async def resize_disk(self, size_bytes: int) -> None:
        self._world.resized[self.name] = size_bytes

    async def allow_reset(self) -> None:
        self._world.resets_allowed += 1

    async def powerdown(self) -> None:
        if not self._world.monitor_answers:
            raise HypervisorError("the monitor does not answer")
        if self._world.powerdown_ends:
            self.die()

    async def kill(self) -> None:
        self.die()
        await self._handle.wait()

    def die(self) -> None:
        self._world.runtime.ready.discard(self.name)
        self._handle.signal(signal.SIGKILL)

    async def forwards(self) -> tuple[Forward, ...]:
        if not self._world.monitor_answers:
            raise HypervisorError("the monitor does not answer")
        return tuple(self._forwards)

    async def add_forward(self, forward: Forward) -> None:
        if not self._world.monitor_answers:
            raise HypervisorError("the monitor does not answer")
        assert forward not in self._forwards
        self._forwards.append(forward)

    async def remove_forward(self, forward: Forward) -> None:
        if not self._world.monitor_answers:
            raise HypervisorError("the monitor does not answer")
        self._forwards.remove(forward)

    async def detach(self) -> None:
        self.detached = True
        self._handle.release()


class FakeHypervisor:
    """Launches `sleep`, and adopts exactly the process that it is told."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.accelerator = Accelerator("tcg", "it is a fake", 1.0)

    def accelerator_for(self, _arch: str) -> Accelerator:
        return self.accelerator

    def check(self, _arch: str) -> None:
        if self._world.missing:
            raise MissingToolError(f"the program {self._world.missing!r} is not installed")

    async def fingerprint(self, config: VmConfig) -> str:
        parts = (config.assets.key, config.cpus, config.memory_bytes, config.runtime_disk)
        return f"{self._world.board} {' '.join(map(str, parts))}"

    async def launch(self, config: VmConfig, state: SavedState | None = None) -> FakeVm:
        if self._world.ports_taken:
            self._world.ports_taken -= 1
            raise NoRoomError(f"port {config.forwards[0].host_port} is taken")
        if state is not None:
            if state.path.read_bytes() != STATE:
                raise HypervisorError("QEMU could not move the machine's state: it is corrupt")
            self._world.restored.append(state)
        self._world.configs.append(config)
        if config.memory_file is not None and config.memory_file.shared:
            config.memory_file.path.write_bytes(b"\1" * 4096)
        config.paths.console_log.write_text(self._world.console)
        handle = spawn_detached(["sleep", "1000"], log=config.paths.qemu_log)
        self._world.pids.add(handle.identity.pid)
        self._world.launched[config.name] = config
        self._world.forwards.pop(config.name, None)
        vm = self._world.vms[config.name] = FakeVm(self._world, handle, config)
        if state is not None:
            handle.signal(signal.SIGSTOP)
        if self._world.dies_at_start or (state and self._world.dies_at_restore):
            vm.die()
            await handle.wait()
        return vm

    async def adopt(self, config: VmConfig, process: ProcessIdentity) -> FakeVm | None:
        if (handle := ProcessHandle.hold(process)) is None:
            return None
        if not self._world.monitor_answers:
            handle.release()
            raise HypervisorError("the monitor does not answer")
        vm = self._world.vms[config.name] = FakeVm(self._world, handle, config)
        return vm


class FakeAgent:
    """An agent in this process: its Exec knows a few programs."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self.closed = False
        self.on_sessions: list[Callable[[], None]] = []
        self._link: LinkedGuest | None = None
        self.mark = 4711

    def _check(self) -> None:
        if self.closed or not self._world.agent_answers:
            raise AgentUnreachableError(f"the agent of machine {self._name!r} does not answer")

    async def wait_ready(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not self._world.agent_ready:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise TooLateError("not ready") from error

    async def ping(self, message: str) -> Pong:
        self._check()
        return Pong(message, "fake-1")

    async def system_info(self) -> SystemInfo:
        self._check()
        return INFO

    async def exec(  # noqa: C901, PLR0912
        self, spec: ExecSpec, inputs: AsyncIterator[ExecInput]
    ) -> AsyncGenerator[ExecOutput, None]:
        self._check()
        self._world.specs.append(spec)
        try:
            match spec.argv[0]:
                case "cat":
                    async for item in inputs:
                        if isinstance(item, StdinData):
                            yield ExecData("stdout", item.data)
                        elif isinstance(item, StdinEnd):
                            break
                    yield ExecExit(0)
                case "flood":
                    while True:
                        self._world.sent_bytes += 200_000
                        yield ExecData("stdout", b"x" * 200_000)
                        await asyncio.sleep(0)
                case "sleep":
                    yield ExecData("stdout", b"begun")
                    await asyncio.sleep(3600)
                case "false":
                    yield ExecData("stderr", b"no\n")
                    yield ExecExit(1)
                case "refused":
                    raise InvalidArgumentError("the guest refuses")
                case "broken":
                    raise RuntimeError("a bug")
                case "missing":
                    yield ExecExit(127, "missing: not found")
                case _:
                    yield ExecData("stdout", " ".join(spec.argv).encode())
                    yield ExecExit(0)
        finally:
            self._world.exec_closed += 1

    async def wait_for_port(self, port: int, timeout_s: float) -> bool:
        self._check()
        return self._world.sshd

    async def wait_booted(self, timeout_s: float) -> list[str]:
        self._check()
        return ["cups.service"]

    async def watch(self) -> AsyncGenerator[GuestEvent, None]:
        self._check()
        async with aclosing(self._world.guests[self._name].watch()) as events:
            async for event in events:
                yield event

    async def mmap_read_file(self, path: str, offset: int, length: int) -> bytes:
        self._check()
        return self._world.files[path][offset : offset + length]

    async def begin(self) -> None:
        self._check()
        self._world.begun.append(self._name)

    async def settle(self, timeout_s: float) -> None:
        self._check()

    async def open_stream(self, target: str) -> Stream:
        if self.closed or not self._world.agent_answers:
            raise LinkError(f"there is no link to the agent of machine {self._name!r}")
        if self._link is None:
            runtime = self._world.runtime
            self._link = LinkedGuest(lambda: runtime.dockerd if self.runtime_ready else None)
            runtime.links.append(self._link)
        return await self._link.open_stream(target)

    @property
    def runtime_ready(self) -> bool:
        return self._name in self._world.runtime.ready

    async def ensure_runtime(self, *, start_if_needed: bool, timeout_s: float) -> RuntimeAnswer:
        self._check()
        runtime = self._world.runtime
        runtime.asked.append((self._name, start_if_needed))
        status = "reused"
        if not self.runtime_ready and start_if_needed:
            if runtime.gate is not None:
                await runtime.gate.wait()
            deadline = asyncio.get_running_loop().time() + min(timeout_s, 60)
            while runtime.patient and self._world.launched[self._name].runtime_disk is None:
                await asyncio.sleep(0.01)
                if asyncio.get_running_loop().time() > deadline:
                    raise AgentUnreachableError("the agent did not answer in time")
            disk = self._world.launched[self._name].runtime_disk
            if not runtime.failure and (disk is not None or not runtime.needs_disk):
                runtime.ready.add(self._name)
            status = "started"
        if not self.runtime_ready:
            return RuntimeAnswer(False, "", runtime.failure or "dockerd is not running", "failed")
        return RuntimeAnswer(True, "unix:///var/run/docker.sock", "", status)

    async def runtime_status(self) -> RuntimeStatus:
        self._check()
        ready = self.runtime_ready
        services = tuple(
            ServiceStatus(name, "ready" if ready else "not_ready", "1.0" if ready else "")
            for name in SERVICES
        )
        return RuntimeStatus(ready, ready, "unix:///var/run/docker.sock", "", services)

    async def start_kubernetes(self, timeout_s: float) -> KubernetesStatus:
        self._check()
        return self._world.cluster.start()

    async def set_kubernetes_address(self, endpoint: str, context: str) -> None:
        self._check()
        self._world.cluster.addresses[self._name] = (endpoint, context)

    async def stop_kubernetes(self, timeout_s: float) -> KubernetesStopped:
        self._check()
        return self._world.cluster.stop()

    async def delete_kubernetes(self, timeout_s: float) -> str:
        self._check()
        return self._world.cluster.delete()

    async def kubernetes_status(self) -> KubernetesStatus:
        self._check()
        return self._world.cluster.status()

    async def kubeconfig(self) -> str:
        self._check()
        return self._world.cluster.kubeconfig()

    async def sync_clock(self) -> None:
        self._world.clocks_set += 1

    async def mount(self, tag: str, filesystem: str, path: str, *, readonly: bool) -> None:
        self._check()
        if tag not in {slot.tag for slot in self._world.shares.get(self._name, {})}:
            raise AgentUnreachableError(f"there is no device {tag!r}")
        if path in self._world.mounts_fail:
            raise PreconditionError(f"{path} cannot be mounted in the guest")
        self._world.mounted.setdefault(self._name, {})[path] = f"{tag}{':ro' * readonly}"

    async def unmount(self, path: str) -> None:
        self._check()
        if path in self._world.mounts_busy:
            raise PreconditionError(f"{path} is in use in the guest by vi (7)")
        self._world.mounted.get(self._name, {}).pop(path, None)

    def on_session(self, call: Callable[[], None]) -> None:
        self.on_sessions.append(call)

    def new_session(self) -> None:
        """Do as after the guest's reboot."""
        self._world.runtime.ready.discard(self._name)
        for call in self.on_sessions:
            call()

    async def shutdown(self, grace_s: int) -> None:
        self._check()
        if self._world.shutdown_ends:
            self._world.vms[self._name].die()

    async def close(self) -> None:
        if not self.closed:
            self._world.steps.append("close")
            self._world.guests[self._name].lose()
        if self._link is not None:
            self._link.close()
        self.closed = True


class FakeConnector:
    """Gives every machine a `FakeAgent`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def connect(
        self,
        machine: Machine,
        paths: MachinePaths,
        identity: Identity | None,
        *,
        frozen: int = 0,
    ) -> FakeAgent:
        self._world.frozen.append(frozen)
        if identity is not None:
            self._world.identities.append(identity)
        agent = self._world.agents[machine.spec.name] = FakeAgent(self._world, machine.spec.name)
        return agent


class FakeAssets:
    """Boot files that nothing reads."""

    def __init__(self, world: World) -> None:
        self._world = world

    def find_runtime(self, arch: str) -> Path | None:
        return self._world.runtime.bundle

    async def runtime(self, arch: str, progress: ProgressFn) -> Path:
        runtime = self._world.runtime
        progress("building the container runtime", 0, 1)
        runtime.built += 1
        if runtime.build_gate is not None:
            await runtime.build_gate.wait()
        if runtime.build_fails is not None:
            raise runtime.build_fails
        progress("building the container runtime", 1, 1)
        runtime.bundle = Path("/dev/null")
        return runtime.bundle

    def find_kubernetes(self, arch: str, pin: Pin) -> Path | None:
        return Path("/dev/null")

    async def refresh(self, arch: str, progress: ProgressFn) -> tuple[BootAssets, bool]:
        return await self.ensure(arch, progress), True

    async def prune(self) -> tuple[list[str], int]:
        return ["agent-0"], 1 << 20

    async def kubernetes(self, arch: str, pin: Pin, fetch: FetchFn, progress: ProgressFn) -> Path:
        return Path("/dev/null")

    async def ensure(self, arch: str, progress: ProgressFn) -> BootAssets:
        nothing = Path("/dev/null")
        return BootAssets("assets-1", nothing, nothing, nothing, nothing, "6.1.0-fake")


class FakeImages:
    """An empty raw image, on which qemu-img makes real overlays."""

    def __init__(self, world: World, cache: Path) -> None:
        self._world = world
        self._path = cache / "base.raw"

    def resolve(self, distro: str, version: str, arch: str) -> tuple[str, str]:
        if distro != "debian" or version not in {"", "12", "bookworm"}:
            raise InvalidArgumentError(f"there is no image of {distro!r} {version!r}")
        return distro, "12"

    async def ensure(self, distro: str, version: str, arch: str, progress: ProgressFn) -> BaseImage:
        self._world.image_wanted.set()
        progress("building the Debian image", 1, 2)
        if self._world.image_gate is not None:
            await self._world.image_gate.wait()
        if self._world.images_fail is not None:
            raise self._world.images_fail
        progress("building the Debian image", 2, 2)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.truncate(4 << 30)
        return BaseImage("image-1", self._path, "raw", 4 << 30, distro, version, arch)

    async def find(self, distro: str, version: str, arch: str) -> BaseImage | None:
        return BaseImage("image-1", self._path, "raw", 4 << 30, distro, version, arch)

    async def get(self, key: str) -> BaseImage | None:
        return await self.find("debian", "12", "x86_64") if key == "image-1" else None

    async def pull(self, distro: str, version: str, arch: str, progress: ProgressFn) -> BaseImage:
        distro, version = self.resolve(distro, version, arch)
        return await self.ensure(distro, version, arch or "x86_64", progress)

    async def import_file(self, new: NewImage, progress: ProgressFn) -> BaseImage:
        raise InvalidArgumentError(f"{new.path} is no image")

    async def remove(self, image: BaseImage) -> int:
        self._path.unlink()
        return 4096

    async def verify(self, image: BaseImage) -> list[str]:
        return [] if self._path.stat().st_size == image.virtual_bytes else [self._path.name]

    async def list(self) -> list[BaseImage]:
        found = await self.find("debian", "12", "x86_64")
        return [found] if found is not None and self._path.exists() else []


def parts(world: World, cache: Path) -> Parts:
    """Give a daemon's parts, all of one world."""
    return Parts(
        FakeHypervisor(world), FakeConnector(world), FakeAssets(world), FakeImages(world, cache)
    )
