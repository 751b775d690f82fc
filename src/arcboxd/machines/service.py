"""The use cases in one place, for whatever serves them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial

from arcboxd import aio
from arcboxd.domain.guest import ExecInput, ExecOutput, ExecSpec, Pong, SystemInfo
from arcboxd.domain.image import NewImage
from arcboxd.domain.kubernetes import Kubeconfig, KubernetesStatus, KubernetesStopped
from arcboxd.domain.machine import DirectoryMount, Machine, MachineState, NewMachine
from arcboxd.domain.ports import Port, UserForward
from arcboxd.domain.runtime import RuntimeAnswer, RuntimeStatus
from arcboxd.machines import (
    adopt,
    guest,
    images,
    kubernetes,
    make_template,
    mounts,
    ports,
    runtime,
    snapshot,
    ssh,
    template,
)
from arcboxd.machines.booted import wait_booted
from arcboxd.machines.clone import clone
from arcboxd.machines.context import Context
from arcboxd.machines.create import create
from arcboxd.machines.remove import remove
from arcboxd.machines.resume import resume
from arcboxd.machines.set_machine import set_machine
from arcboxd.machines.start import start
from arcboxd.machines.stop import stop
from arcboxd.machines.suspend import suspend
from arcboxd.machines.usage import Usage, usage

_log = logging.getLogger(__name__)

_UNDO_S = 5.0


class Machines:
    """All machines of a state directory. Each method says its errors where it is written."""

    def __init__(self, context: Context) -> None:
        """Serve nothing yet; `open` does."""
        self.context = context
        context.runtime_wanted = partial(runtime.plug, context)
        context.kubernetes_wanted = partial(kubernetes.supply, context)
        context.on_running.append(partial(runtime.follow, context))
        context.on_running.append(partial(kubernetes.follow, context))

    async def open(self) -> None:
        """Load the records, clean up after a crash, and begin to adopt in the background.

        Raises:
            StoreError: The records cannot be read.
        """
        await self.context.registry.load()
        self.context.templates.load()
        await template.sweep(self.context)
        await adopt.clean_up(self.context)
        adopt.supervise(self.context)

    async def close(self) -> None:
        """Let go of every machine, and leave it running. Idempotent."""
        for task in tuple(self.context.background):
            await aio.cancel(task)
        self.context.background.clear()
        context = self.context
        for shared in (context.plugs, context.runtimes, context.clusters, context.defaults):
            await shared.close()
        try:
            # A start that was cancelled with its call still has to kill and record.
            async with asyncio.timeout(_UNDO_S):
                await self.context.locks.all_free()
        except TimeoutError:
            _log.warning("some operations did not end in time; the next daemon looks after them")
        held, self.context.running = dict(self.context.running), {}
        for machine_id, running in held.items():
            if running.watcher is not None:
                await aio.cancel(running.watcher)
            try:
                async with asyncio.timeout(2.0):
                    await ports.detach(self.context, machine_id, running)
                    await running.agent.close()
                    await running.vm.detach()
            except Exception:  # noqa: BLE001
                _log.exception("machine %s was not let go of in order", machine_id)

    def list(self, *, all_states: bool) -> tuple[Machine, ...]:
        """Give the machines, oldest first: all, or only those that are not just stopped."""
        machines = self.context.registry.all()
        if all_states:
            return machines
        return tuple(m for m in machines if m.state is not MachineState.STOPPED)

    def inspect(self, ref: str) -> Machine:
        """Give one machine."""
        return self.context.registry.find(ref)

    async def create(self, new: NewMachine) -> Machine:
        """Make a new, stopped machine: `arcboxd.machines.create`."""
        return await create(self.context, new)

    async def start(self, ref: str) -> None:
        """Start a machine: `arcboxd.machines.start`."""
        await start(self.context, ref)

    async def stop(self, ref: str, *, force: bool = False) -> None:
        """Stop a machine: `arcboxd.machines.stop`."""
        await stop(self.context, ref, force=force)

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a machine: `arcboxd.machines.remove`."""
        await remove(self.context, ref, force=force, volumes=volumes)

    async def set_machine(
        self, ref: str, *, cpus: int = 0, memory_bytes: int = 0, disk_bytes: int = 0
    ) -> Machine:
        """Change what a stopped machine is made of: `arcboxd.machines.set_machine`."""
        return await set_machine(
            self.context, ref, cpus=cpus, memory_bytes=memory_bytes, disk_bytes=disk_bytes
        )

    def mmap_read_file(
        self, ref: str, path: str, offset: int, length: int
    ) -> AsyncGenerator[bytes, None]:
        """Read a guest's file through a mapping, in pieces: `arcboxd.machines.guest`."""
        return guest.mmap_read_file(self.context, ref, path, offset, length)

    async def wait_booted(self, ref: str) -> Sequence[str]:
        """Wait until a machine has booted, and name what failed: `arcboxd.machines.booted`."""
        return await wait_booted(self.context, ref)

    async def suspend(self, ref: str) -> int:
        """Suspend a machine, and give the saved bytes: `arcboxd.machines.suspend`."""
        return await suspend(self.context, ref)

    async def resume(self, ref: str) -> None:
        """Let a suspended machine go on: `arcboxd.machines.resume`."""
        await resume(self.context, ref)

    async def create_snapshot(self, ref: str, name: str = "") -> snapshot.Snapshot:
        """Take a snapshot of a machine: `arcboxd.machines.snapshot`."""
        return await snapshot.create(self.context, ref, name)

    async def snapshots(self, ref: str) -> Sequence[snapshot.Snapshot]:
        """Give a machine's snapshots, oldest first: `arcboxd.machines.snapshot`."""
        return await snapshot.snapshots(self.context, ref)

    async def restore_snapshot(self, ref: str, name: str, *, force: bool = False) -> None:
        """Bring a machine back to a snapshot: `arcboxd.machines.snapshot`."""
        await snapshot.restore(self.context, ref, name, force=force)

    async def remove_snapshot(self, ref: str, name: str) -> None:
        """Remove a snapshot: `arcboxd.machines.snapshot`."""
        await snapshot.remove(self.context, ref, name)

    async def clone(self, ref: str, name: str) -> Machine:
        """Make a new machine with a copy of another's disks: `arcboxd.machines.clone`."""
        return await clone(self.context, ref, name)

    async def add_mount(self, ref: str, mount: DirectoryMount) -> mounts.MountStatus:
        """Add a mount to a machine: `arcboxd.machines.mounts`."""
        return await mounts.add(self.context, ref, mount)

    async def remove_mount(self, ref: str, guest_path: str) -> None:
        """Take a mount from a machine: `arcboxd.machines.mounts`."""
        await mounts.remove(self.context, ref, guest_path)

    async def list_mounts(self, ref: str) -> Sequence[mounts.MountStatus]:
        """Tell a machine's mounts: `arcboxd.machines.mounts`."""
        return await mounts.mounts(self.context, ref)

    async def prepare_template(
        self, new: NewMachine, *, runtime: bool = False
    ) -> template.TemplateUse:
        """Make a template: `arcboxd.machines.make_template`."""
        made = await make_template.prepare(self.context, new, runtime=runtime)
        return await template.use(self.context, made)

    async def templates(self) -> Sequence[template.TemplateUse]:
        """Give every template, and what uses it: `arcboxd.machines.template`."""
        return await template.uses(self.context)

    async def remove_template(self, ref: str) -> None:
        """Remove a template: `arcboxd.machines.template`."""
        await template.remove(self.context, ref)

    async def prune_templates(self) -> tuple[Sequence[str], int]:
        """Remove the templates that are of no more use: `arcboxd.machines.template`."""
        return await template.prune(self.context)

    async def ensure_runtime(self, ref: str, *, start_if_needed: bool) -> RuntimeAnswer:
        """Have a machine's container runtime ready: `arcboxd.machines.runtime`."""
        return await runtime.ensure(self.context, ref, start_if_needed=start_if_needed)

    async def runtime_status(self, ref: str) -> RuntimeStatus:
        """Tell how a machine's container runtime is: `arcboxd.machines.runtime`."""
        return await runtime.status(self.context, ref)

    async def start_kubernetes(self, ref: str) -> KubernetesStatus:
        """Start a machine's cluster: `arcboxd.machines.kubernetes`."""
        return await kubernetes.start(self.context, ref)

    async def stop_kubernetes(self, ref: str) -> KubernetesStopped:
        """Stop a machine's cluster and keep its data: `arcboxd.machines.kubernetes`."""
        return await kubernetes.stop(self.context, ref)

    async def delete_kubernetes(self, ref: str) -> str:
        """Remove a machine's cluster: `arcboxd.machines.kubernetes`."""
        return await kubernetes.delete(self.context, ref)

    async def kubernetes_status(self, ref: str) -> KubernetesStatus:
        """Tell how a machine's cluster is: `arcboxd.machines.kubernetes`."""
        return await kubernetes.status(self.context, ref)

    async def kubeconfig(self, ref: str) -> Kubeconfig:
        """Give what reaches a machine's cluster: `arcboxd.machines.kubernetes`."""
        return await kubernetes.kubeconfig(self.context, ref)

    async def list_images(self) -> Sequence[images.ImageUse]:
        """Give every base image, and what uses it: `arcboxd.machines.images`."""
        return await images.uses(self.context)

    async def pull_image(self, distro: str, version: str, arch: str) -> images.ImageUse:
        """Build or fetch a base image: `arcboxd.machines.images`."""
        return await images.pull(self.context, distro, version, arch)

    async def import_image(self, new: NewImage) -> images.ImageUse:
        """Make a base image of a file: `arcboxd.machines.images`."""
        return await images.import_file(self.context, new)

    async def remove_image(self, ref: str) -> int:
        """Remove a base image, and give the bytes freed: `arcboxd.machines.images`."""
        return await images.remove(self.context, ref)

    async def prune_images(self) -> images.Pruned:
        """Remove images and boot files that are of no more use: `arcboxd.machines.images`."""
        return await images.prune(self.context)

    async def update_boot_files(self, arch: str) -> tuple[str, bool]:
        """Make boot files of newer packages: `arcboxd.machines.images`."""
        return await images.update(self.context, arch)

    async def verify_image(self, ref: str) -> Sequence[str]:
        """Name an image's damaged files: `arcboxd.machines.images`."""
        return await images.verify(self.context, ref)

    async def usage(self, refs: Sequence[str]) -> Usage:
        """Tell what machines use of the host: `arcboxd.machines.usage`."""
        return await usage(self.context, refs)

    async def add_port(self, ref: str, asked: UserForward) -> Port:
        """Forward a port of the host to a machine: `arcboxd.machines.ports`."""
        return await ports.add(self.context, ref, asked)

    async def remove_port(
        self, ref: str, *, protocol: str, host_address: str, host_port: int
    ) -> None:
        """Forget a forward of the user's own: `arcboxd.machines.ports`."""
        await ports.remove(
            self.context, ref, protocol=protocol, host_address=host_address, host_port=host_port
        )

    async def ports(self, ref: str) -> Sequence[Port]:
        """Show the forwards of a machine, or of all: `arcboxd.machines.ports`."""
        return await ports.ports(self.context, ref)

    async def ping(self, ref: str) -> Pong:
        """Ask a machine's agent for an answer."""
        return await guest.ping(self.context, ref)

    async def system_info(self, ref: str) -> SystemInfo:
        """Read what a machine's guest says of itself."""
        return await guest.system_info(self.context, ref)

    async def exec(
        self, ref: str, spec: ExecSpec, inputs: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecOutput]:
        """Begin a process in a machine: `arcboxd.machines.guest`."""
        return await guest.exec_(self.context, ref, spec, inputs)

    async def ssh_info(self, ref: str) -> ssh.SshInfo:
        """Tell how to reach a machine by SSH: `arcboxd.machines.ssh`."""
        return await ssh.ssh_info(self.context, ref)
