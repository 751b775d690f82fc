"""What every use case works with: the machines, what runs, and the parts given from outside."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from arcboxd import aio
from arcboxd.domain.image import ProgressFn
from arcboxd.domain.kubernetes import KubernetesStatus
from arcboxd.domain.machine import Machine, MachineState
from arcboxd.domain.runtime import RuntimeAnswer
from arcboxd.errors import MachineStateError
from arcboxd.hypervisor.base import Hypervisor, Vm
from arcboxd.machines.events import EventBus
from arcboxd.machines.interfaces import AgentConnector, Assets, GuestAgent, Images
from arcboxd.machines.locks import Locks
from arcboxd.machines.registry import Registry
from arcboxd.machines.shared import Shared
from arcboxd.machines.staged import Pool
from arcboxd.machines.template_store import TemplateStore
from arcboxd.paths import Paths
from arcboxd.ports.plan import Wanted
from arcboxd.ports.table import PortTable
from arcboxd.settings import Settings, host_cpus

if TYPE_CHECKING:
    from arcboxd.machines.kubernetes_services import ServicePorts

_log = logging.getLogger(__name__)

_LEAST_RESTORES = 2
_FIRST_COMMAND_S = 0.2
"""What a start leaves to the command that whoever asked for it is likely to run next."""


@dataclass(slots=True)
class Shares:
    """What has become of a running machine's mounts; `arcboxd.machines.shares` keeps it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    mounted: set[str] = field(default_factory=set)
    """Their paths in the guest."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why one is not mounted, by its path in the guest."""
    withheld: bool = False
    """None may be there now."""


@dataclass(slots=True)
class Running:
    """A machine's process and its agent, while this daemon holds them."""

    vm: Vm
    agent: GuestAgent
    watcher: asyncio.Task[None] | None = None
    follower: asyncio.Task[None] | None = None
    """Keeps the machine's forwards as its guest says."""
    shares: Shares = field(default_factory=Shares)


@dataclass(slots=True)
class Context:
    """Everything a use case needs; one a daemon."""

    settings: Settings
    paths: Paths
    hypervisor: Hypervisor
    connector: AgentConnector
    assets: Assets
    images: Images
    registry: Registry
    events: EventBus
    templates: TemplateStore
    staged: Pool = field(default_factory=Pool)
    locks: Locks = field(default_factory=Locks)
    restores: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(max(_LEAST_RESTORES, host_cpus()))
    )
    """Starts from templates at a time: more of them only keep each other from the processors."""
    begins: asyncio.Lock = field(default_factory=asyncio.Lock)
    template_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: dict[str, Running] = field(default_factory=dict)
    on_running: list[Callable[[str, Running], None]] = field(default_factory=list)
    """Called with each machine that runs, once this daemon holds it: started, resumed, adopted."""
    plugs: Shared[None] = field(default_factory=Shared)
    runtimes: Shared[RuntimeAnswer] = field(default_factory=Shared)
    clusters: Shared[KubernetesStatus] = field(default_factory=Shared)
    defaults: Shared[Machine] = field(default_factory=Shared)
    background: set[asyncio.Task[None]] = field(default_factory=set)
    now_ns: Callable[[], int] = time.time_ns
    runtime_wanted: Callable[[str], Awaitable[None]] | None = None
    """Called with a machine's id when its guest waits for the container runtime's disk."""
    kubernetes_wanted: Callable[[str], Awaitable[None]] | None = None
    """Likewise, when it waits for Kubernetes."""
    kubernetes_ports: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a port of the host is chosen for a machine's cluster."""
    service_ports: dict[str, ServicePorts] = field(default_factory=dict)
    """What `arcboxd.machines.kubernetes_services` follows, by the machine's id."""
    ports: PortTable = field(init=False)

    def __post_init__(self) -> None:
        """Make what tells others of itself."""
        self.ports = PortTable(self.events.port, self._ssh_holder)

    def _ssh_holder(self, wanted: Wanted) -> str:
        """Name the machine whose SSH has a port."""
        if wanted.protocol == "tcp":
            for machine in self.registry.all():
                if machine.ssh_port == wanted.host_port and machine.id in self.running:
                    return f"machine {machine.spec.name!r} (ssh)"
        return ""

    def scaled(self, seconds: float, machine: Machine) -> float:
        """Stretch a time that was chosen for kvm to what the accelerator of a machine needs."""
        return seconds * self.hypervisor.accelerator_for(machine.spec.arch).timeout_scale

    async def others_first(self, machine: Machine, *, most_s: float) -> None:
        """Wait until no machine starts, or has just started and runs its first command.

        Args:
            machine: What is to be done next is done for it.
            most_s: For so many seconds at most, however many others start.
        """
        try:
            async with asyncio.timeout(most_s):
                while True:
                    await self.locks.free_of("start")
                    await asyncio.sleep(_FIRST_COMMAND_S)
                    if not self.locks.count("start"):
                        return
        except TimeoutError:
            _log.debug(
                "what follows the start of %s does not wait for others any more", machine.spec.name
            )

    def in_background(self, work: Coroutine[object, object, None], name: str) -> None:
        """Run work beside the calls; it is cancelled when the daemon ends."""
        task = aio.spawn(work, name=name)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    def works_on(self, name: str) -> bool:
        """Tell whether work of that name runs in the background."""
        return any(task.get_name() == name and not task.done() for task in self.background)

    def reporter(self, machine: Machine) -> ProgressFn:
        """Give a function that tells progress as an event of this machine."""

        def report(step: str, done: int, total: int) -> None:
            finished = 0 < total <= done
            self.events.progress(machine.spec.name, step, done, total, finished=finished)

        return report

    async def running_machine(self, ref: str, verb: str) -> tuple[Machine, Running]:
        """Give a machine that runs, waiting while this daemon still takes it over.

        Raises:
            InvalidArgumentError: The reference cannot name one machine.
            MachineNotFoundError: It names none.
            MachineStateError: The machine does not run.
        """
        machine_id = self.registry.find(ref).id
        await self.locks.settled(machine_id)
        machine = self.registry.get(machine_id)
        running = self.running.get(machine_id)
        if running is None or machine.state not in {MachineState.RUNNING, MachineState.STOPPING}:
            name = machine.spec.name
            hints = {
                MachineState.STOPPED: f"start it with: arcbox start {name}",
                MachineState.SUSPENDED: f"let it go on with: arcbox resume {name}",
            }
            raise MachineStateError(
                f"cannot {verb} machine {name!r}: it is {machine.state}",
                hint=hints.get(machine.state, f"see why with: arcbox inspect {name}"),
            )
        return machine, running

    def stable(self, machine: Machine, verb: str) -> Running | None:
        """Give the process of a held machine that runs; None if it is stopped or suspended.

        Raises:
            MachineStateError: It is in none of these states.
        """
        running = self.running.get(machine.id)
        if machine.state is MachineState.RUNNING and running is not None:
            return running
        if machine.state in {MachineState.STOPPED, MachineState.SUSPENDED}:
            return None
        raise MachineStateError(
            f"cannot {verb} machine {machine.spec.name!r}: it is {machine.state}",
            hint=f"see why with: arcbox inspect {machine.spec.name}",
        )
