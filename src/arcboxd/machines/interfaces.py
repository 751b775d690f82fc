"""What the use cases need of others, each given by the daemon's composition root."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

from arcboxd.assets.kubernetes_bundle import FetchFn
from arcboxd.domain.guest import ExecInput, ExecOutput, ExecSpec, Identity, Pong, SystemInfo
from arcboxd.domain.image import BaseImage, BootAssets, NewImage, ProgressFn
from arcboxd.domain.kubernetes import KubernetesStatus, KubernetesStopped
from arcboxd.domain.machine import Machine
from arcboxd.domain.ports import GuestEvent
from arcboxd.domain.runtime import RuntimeAnswer, RuntimeStatus
from arcboxd.kubernetes.distribution import Pin
from arcboxd.link.stream import Stream
from arcboxd.paths import MachinePaths


class GuestAgent(Protocol):
    """The agent of one machine, over its link. Safe to use from many tasks at once."""

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once a session with the agent stands and it was given its identity.

        Raises:
            TooLateError: That took longer than ``timeout_s`` seconds.
        """
        ...

    async def ping(self, message: str) -> Pong:
        """Ask for an answer.

        Raises:
            AgentUnreachableError: No session, or it broke.
        """
        ...

    async def system_info(self) -> SystemInfo:
        """Read what the guest says of itself.

        Raises:
            AgentUnreachableError: No session, or it broke.
        """
        ...

    def exec(self, spec: ExecSpec, inputs: AsyncIterator[ExecInput]) -> AsyncIterator[ExecOutput]:
        """Run a process; the last output is an `ExecExit`. Closing the iterator kills the process.

        Raises:
            AgentUnreachableError: No session, or it broke.
            InvalidArgumentError: The guest refuses the request.
        """
        ...

    async def wait_for_port(self, port: int, timeout_s: float) -> bool:
        """Tell whether something listens on a TCP port of the guest within the time."""
        ...

    async def wait_booted(self, timeout_s: float) -> Sequence[str]:
        """Wait until init has started all that it starts at boot; name the services that failed.

        Raises:
            AgentUnreachableError: It does not answer.
            TooLateError: It was not done in time; the message says what it is at.
        """
        ...

    def watch(self) -> AsyncGenerator[GuestEvent, None]:
        """Give what the guest tells: all that there is, `Synced`, then each change.

        There is one such call at a time; it ends with the session.

        Raises:
            AgentUnreachableError: No session, or it broke.
        """
        ...

    async def mmap_read_file(self, path: str, offset: int, length: int) -> bytes:
        """Read at most 3 MiB of a file through a shared mapping; less past its end.

        Raises:
            AgentUnreachableError: No session, or it broke.
            ArcboxError: The guest cannot read it, and says why.
        """
        ...

    async def settle(self, timeout_s: float) -> None:
        """Bring the system to rest, and take from it what no two machines may share.

        Raises:
            AgentUnreachableError: No session, or it broke.
            UnsupportedError: This distribution cannot be prepared.
            TooLateError: It did not come to rest in ``timeout_s`` seconds.
        """
        ...

    async def begin(self) -> None:
        """Let a clone begin what it has held back: its journal and its SSH server.

        Raises:
            AgentUnreachableError: No session, or it broke.
        """
        ...

    async def open_stream(self, target: str) -> Stream:
        """Open a stream to what the guest has: ``unix:PATH`` or ``tcp:ADDRESS:PORT``.

        Raises:
            LinkError: There is no session, the guest refused, or it did not answer in time.
        """
        ...

    async def ensure_runtime(self, *, start_if_needed: bool, timeout_s: float) -> RuntimeAnswer:
        """Have the container runtime ready, or only look.

        Raises:
            AgentUnreachableError: No session, it broke, or no answer came in ``timeout_s`` seconds.
            UnsupportedError: The agent is of a version that could not do this.
        """
        ...

    async def runtime_status(self) -> RuntimeStatus:
        """Tell how the container runtime is.

        Raises:
            AgentUnreachableError: No session, or it broke.
            UnsupportedError: The agent is of a version that could not do this.
        """
        ...

    async def start_kubernetes(self, timeout_s: float) -> KubernetesStatus:
        """Start the cluster, and answer in time with how it is by then. Idempotent.

        Raises:
            AgentUnreachableError: No session, it broke, or no answer came in ``timeout_s`` seconds.
            UnsupportedError: The agent is of a version that could not do this; as the next four.
        """
        ...

    async def set_kubernetes_address(self, endpoint: str, context: str) -> None:
        """Tell where the host reaches the cluster, and what its kubeconfig calls it."""
        ...

    async def stop_kubernetes(self, timeout_s: float) -> KubernetesStopped:
        """Stop the cluster and keep its data. Idempotent."""
        ...

    async def delete_kubernetes(self, timeout_s: float) -> str:
        """Stop the cluster and remove all that it was; give what was done. Idempotent."""
        ...

    async def kubernetes_status(self) -> KubernetesStatus:
        """Tell how the cluster is."""
        ...

    async def kubeconfig(self) -> str:
        """Give the guest's kubeconfig: whatever it says, to be trusted in nothing."""
        ...

    async def sync_clock(self) -> None:
        """Set the guest's clock, which stood still while the machine was halted. Never raises."""
        ...

    async def mount(self, tag: str, filesystem: str, path: str, *, readonly: bool) -> None:
        """Mount a share that is plugged in, once the guest has found it. Idempotent.

        Raises:
            AgentUnreachableError: No session, it broke, or the guest did not find it in time.
            PreconditionError: The guest cannot mount it.
        """
        ...

    async def unmount(self, path: str) -> None:
        """Unmount a share; one that is not mounted is no error.

        Raises:
            AgentUnreachableError: No session, or it broke.
            PreconditionError: It is in use; says by whom.
        """
        ...

    def on_session(self, call: Callable[[], None]) -> None:
        """Have a function called at each further session, once the agent has its identity."""
        ...

    async def shutdown(self, grace_s: int) -> None:
        """Ask for an orderly shutdown, which goes on after the answer.

        Raises:
            AgentUnreachableError: No session, or it broke.
        """
        ...

    @property
    def mark(self) -> int:
        """What lets a host go on at once with a guest that is frozen now; 0 if nothing does.

        No call may be under way then.
        """
        ...

    async def close(self) -> None:
        """End the session and whatever serves it. Idempotent."""
        ...


class AgentConnector(Protocol):
    """Makes the link to a machine's agent, keeps it up, and serves ``agent.sock``."""

    async def connect(
        self,
        machine: Machine,
        paths: MachinePaths,
        identity: Identity | None,
        *,
        frozen: int = 0,
    ) -> GuestAgent:
        """Begin to hold a session; gives ``identity``, if any, to the agent at each one's start.

        Args:
            machine: Whose agent it is.
            paths: Its files.
            identity: What the agent is told who it is; None to tell it nothing.
            frozen: The agent's `mark` when it was frozen, if it goes on from there.
        """
        ...


class Assets(Protocol):
    """Builds, once, what machines boot from."""

    async def ensure(self, arch: str, progress: ProgressFn) -> BootAssets:
        """Give the boot files, building what is missing.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            MissingToolError: A program is missing on the host.
        """
        ...

    async def runtime(self, arch: str, progress: ProgressFn) -> Path:
        """Give the container runtime's disk, building it when it is missing.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            MissingToolError: A program is missing on the host.
        """
        ...

    def find_runtime(self, arch: str) -> Path | None:
        """Give the container runtime's disk if it is there."""
        ...

    async def kubernetes(self, arch: str, pin: Pin, fetch: FetchFn, progress: ProgressFn) -> Path:
        """Give a Kubernetes' disk, fetching and building it when it is missing.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            CorruptError: What came is not what the pin says.
            MissingToolError: A program is missing on the host.
        """
        ...

    def find_kubernetes(self, arch: str, pin: Pin) -> Path | None:
        """Give a Kubernetes' disk if it is there."""
        ...

    async def refresh(self, arch: str, progress: ProgressFn) -> tuple[BootAssets, bool]:
        """Make boot files of newer packages; tell whether there were any.

        Raises:
            AssetBuildError: It cannot be known, or a step failed; all is as it was.
            MissingToolError: A program is missing on the host.
            UnsupportedError: This version builds nothing for that architecture.
        """
        ...

    async def prune(self) -> tuple[Sequence[str], int]:
        """Remove what only earlier versions booted; name it, and tell the bytes freed."""
        ...


class Images(Protocol):
    """Builds or fetches, once, what machines have as their root."""

    def resolve(self, distro: str, version: str, arch: str) -> tuple[str, str]:
        """Give the canonical distribution and version, without any I/O.

        Raises:
            InvalidArgumentError: No source has such an image.
        """
        ...

    async def ensure(self, distro: str, version: str, arch: str, progress: ProgressFn) -> BaseImage:
        """Give the base image, building it when it is missing.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            MissingToolError: A program is missing on the host.
        """
        ...

    async def find(self, distro: str, version: str, arch: str) -> BaseImage | None:
        """Give the image that `ensure` would give, if it is there already."""
        ...

    async def get(self, key: str) -> BaseImage | None:
        """Give an image that is there already."""
        ...

    async def list(self) -> Sequence[BaseImage]:
        """List the images that are there, oldest first."""
        ...

    async def pull(self, distro: str, version: str, arch: str, progress: ProgressFn) -> BaseImage:
        """Do as `ensure`, but ask registries and image servers for what is newest."""
        ...

    async def import_file(self, new: NewImage, progress: ProgressFn) -> BaseImage:
        """Make an image of a file.

        Raises:
            CorruptError: The file is damaged, or has another digest.
            InvalidArgumentError: There is no such file, or its name cannot be.
            UnsafeImageError: It has what could harm the host.
            UnsupportedError: It is of a kind, or for an architecture, that is not known.
        """
        ...

    async def remove(self, image: BaseImage) -> int:
        """Remove an image that nothing rests on, and give the bytes that this frees."""
        ...

    async def verify(self, image: BaseImage) -> Sequence[str]:
        """Name the files of an image that are not what was built."""
        ...
