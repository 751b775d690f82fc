"""Every file and socket name under the state directory and the cache, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SUN_PATH_MAX = 107
"""Bytes of a unix socket's path, without the final NUL (unix(7), sun_path)."""


@dataclass(frozen=True)
class MachinePaths:
    """The files of one machine: ``machines/ID``."""

    directory: Path

    @property
    def record(self) -> Path:
        """Hold a copy of the record, from which the database can be rebuilt."""
        return self.directory / "machine.json"

    @property
    def disk(self) -> Path:
        """Name the root disk: a qcow2 overlay on a base image."""
        return self.directory / "root.qcow2"

    @property
    def base_image(self) -> Path:
        """Hold the base image below the root disk: a second name of the cache's own file."""
        return self.directory / "base.img"

    @property
    def template_disk(self) -> Path:
        """Hold the template's disk between root disk and base image: a second name of its file."""
        return self.directory / "template.qcow2"

    @property
    def console_log(self) -> Path:
        """Collect what the guest's kernel and init write on the serial console."""
        return self.directory / "console.log"

    @property
    def qemu_log(self) -> Path:
        """Collect QEMU's own standard output and error."""
        return self.directory / "qemu.log"

    @property
    def qmp_socket(self) -> Path:
        """Name QEMU's monitor."""
        return self.directory / "qmp.sock"

    @property
    def stub_socket(self) -> Path:
        """Name QEMU's stub for debuggers, for the moments in which there is one."""
        return self.directory / "gdb.sock"

    @property
    def link_socket(self) -> Path:
        """Name the host's end of the virtio-serial port."""
        return self.directory / "link.sock"

    @property
    def agent_socket(self) -> Path:
        """Serve AgentService for any gRPC client."""
        return self.directory / "agent.sock"

    @property
    def docker_socket(self) -> Path:
        """Serve Docker's API; there while the machine is recorded, whether it runs or not."""
        return self.directory / "docker.sock"

    @property
    def runtime_marker(self) -> Path:
        """Tell, by being there, that the machine has its container runtime whenever it runs."""
        return self.directory / "runtime"

    @property
    def ssh_key(self) -> Path:
        """Hold the private key that the machine's user accepts."""
        return self.directory / "ssh_key"

    @property
    def ssh_host_key(self) -> Path:
        """Hold the guest's own private host key, made on the host."""
        return self.directory / "ssh_host_ed25519_key"

    @property
    def ssh_known_hosts(self) -> Path:
        """Trust the host key, so that the first connection asks nothing."""
        return self.directory / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """Let ``ssh -F`` and ``scp -F`` reach the machine by its name."""
        return self.directory / "ssh_config"

    @property
    def suspended(self) -> Path:
        """Hold the memory of the suspended machine: `SavedPaths`; appears whole, by a rename."""
        return self.directory / "suspend"

    @property
    def suspending(self) -> Path:
        """Hold the same while it is written."""
        return self.directory / "suspend.new"

    @property
    def suspend_used(self) -> Path:
        """Hold the same once the guest goes on, until it is deleted: its disks fit it no more."""
        return self.directory / "suspend.used"

    @property
    def boot(self) -> Path:
        """Hold names of the files that a resumed machine booted from, by a cold start long ago."""
        return self.directory / "boot"

    @property
    def snapshots(self) -> Path:
        """Hold one directory a snapshot: `SnapshotPaths`."""
        return self.directory / "snapshots"

    @property
    def ports(self) -> Path:
        """Hold the user's own forwards."""
        return self.directory / "ports.json"

    @property
    def kubernetes_marker(self) -> Path:
        """Tell, by being there, that the machine has its cluster whenever it runs."""
        return self.directory / "kubernetes"

    @property
    def kubernetes_port(self) -> Path:
        """Keep the port of the host at which the machine's cluster is reached."""
        return self.directory / "kubernetes_port"

    @property
    def shares(self) -> Path:
        """Hold a link to each directory of the host that is plugged into the machine, by slot."""
        return self.directory / "shares"

    @property
    def restoring(self) -> Path:
        """Name the snapshot that the machine is being brought back to; a crash leaves it."""
        return self.directory / "restoring.json"


@dataclass(frozen=True)
class SavedPaths:
    """The files of a saved memory, and second names of what its machine booted from."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """Tell what a process that goes on from it is made of; written last."""
        return self.directory / "manifest.json"

    @property
    def state(self) -> Path:
        """Hold RAM, processors and devices, as the hypervisor wrote them."""
        return self.directory / "state"

    @property
    def kernel(self) -> Path:
        """Name the kernel, which a reboot of the guest loads again."""
        return self.directory / "kernel"

    @property
    def initramfs(self) -> Path:
        """Name the initramfs."""
        return self.directory / "initramfs"

    @property
    def modules_disk(self) -> Path:
        """Name the disk of kernel modules, which the guest has mounted."""
        return self.directory / "modules"

    @property
    def agent_disk(self) -> Path:
        """Name the agent's disk, which the guest has mounted."""
        return self.directory / "agent"

    @property
    def runtime_disk(self) -> Path:
        """Name the container runtime's disk, if the guest has it."""
        return self.directory / "runtime"

    @property
    def kubernetes_disk(self) -> Path:
        """Name the disk with Kubernetes, if the guest has it."""
        return self.directory / "kubernetes"


@dataclass(frozen=True)
class SnapshotPaths:
    """The files of one snapshot: ``machines/ID/snapshots/NAME``; the disks hold their own part."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """Tell what the snapshot is of; written last."""
        return self.directory / "manifest.json"

    @property
    def memory(self) -> Path:
        """Hold the memory of a machine that was not stopped: `SavedPaths`."""
        return self.directory / "memory"


@dataclass(frozen=True)
class TemplatePaths:
    """The files of one template: ``templates/KEY``."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """Tell what the template is of, and its files' sizes; written last."""
        return self.directory / "manifest.json"

    @property
    def memory(self) -> Path:
        """Hold the guest's RAM, which clones map copy-on-write."""
        return self.directory / "ram"

    @property
    def state(self) -> Path:
        """Hold the processors' and devices' state."""
        return self.directory / "state"

    @property
    def base_image(self) -> Path:
        """Hold the base image below the disk: a second name of the cache's own file."""
        return self.directory / "base.img"

    @property
    def disk(self) -> Path:
        """Hold what the first boot wrote: a qcow2 layer on the base image, never written again."""
        return self.directory / "root.qcow2"


@dataclass(frozen=True)
class Paths:
    """The state directory and the cache."""

    home: Path
    cache: Path

    @property
    def config(self) -> Path:
        """Hold the user's settings."""
        return self.home / "config.toml"

    @property
    def database(self) -> Path:
        """Hold the machines' records."""
        return self.home / "state.db"

    @property
    def run(self) -> Path:
        """Hold what lives as long as a daemon; mode 0700."""
        return self.home / "run"

    @property
    def socket(self) -> Path:
        """Serve MachineService; mode 0600."""
        return self.run / "arcbox.sock"

    @property
    def docker_socket(self) -> Path:
        """Serve Docker's API of the default machine; mode 0600."""
        return self.run / "docker.sock"

    @property
    def docker_contexts(self) -> Path:
        """Keep which docker context was selected before each of ours."""
        return self.home / "docker_contexts.json"

    @property
    def kubernetes(self) -> Path:
        """Hold which Kubernetes machines get; the user's, and absent unless they want another."""
        return self.home / "kubernetes.toml"

    @property
    def kubernetes_contexts(self) -> Path:
        """Keep which context of kubectl's was selected before each of ours."""
        return self.home / "kubernetes_contexts.json"

    @property
    def lock(self) -> Path:
        """Be held by the daemon that owns the state directory; names its pid."""
        return self.run / "daemon.lock"

    @property
    def daemon_log(self) -> Path:
        """Collect the daemon's log."""
        return self.home / "daemon.log"

    @property
    def machines(self) -> Path:
        """Hold one directory a machine."""
        return self.home / "machines"

    @property
    def volumes(self) -> Path:
        """Hold data disks, which outlive a machine unless its removal names them."""
        return self.home / "volumes"

    @property
    def templates(self) -> Path:
        """Hold one directory a template."""
        return self.home / "templates"

    @property
    def work(self) -> Path:
        """Hold a directory for each process that is no machine's yet; none outlives its daemon."""
        return self.home / "work"

    @property
    def assets(self) -> Path:
        """Hold built kernels, initramfs and bundles, one directory a key."""
        return self.cache / "assets"

    @property
    def images(self) -> Path:
        """Hold base images, one directory a key."""
        return self.cache / "images"

    def machine(self, machine_id: str) -> MachinePaths:
        """Name the files of one machine."""
        return MachinePaths(self.machines / machine_id)

    @classmethod
    def of(cls, home: Path | None = None, environ: dict[str, str] | None = None) -> Paths:
        """Resolve them from an argument, else ``$ARCBOX_HOME`` and ``$XDG_CACHE_HOME``."""
        env = dict(os.environ) if environ is None else environ
        user = Path(env.get("HOME") or Path.home())
        state = home or Path(env.get("ARCBOX_HOME") or user / ".arcbox")
        cache = Path(env.get("XDG_CACHE_HOME") or user / ".cache") / "arcboxd"
        return cls(state.absolute(), cache.absolute())
