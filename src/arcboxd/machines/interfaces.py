"""What the use cases need of others, each given by the daemon's composition root."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from arcboxd.domain.guest import ExecInput, ExecOutput, ExecSpec, Identity, Pong, SystemInfo
from arcboxd.domain.image import BaseImage, BootAssets, ProgressFn
from arcboxd.domain.machine import Machine
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

    async def sync_clock(self) -> None:
        """Set the guest's clock, which stood still while the machine was halted. Never raises."""
        ...

    async def shutdown(self, grace_s: int) -> None:
        """Ask for an orderly shutdown, which goes on after the answer.

        Raises:
            AgentUnreachableError: No session, or it broke.
        """
        ...

    async def close(self) -> None:
        """End the session and whatever serves it. Idempotent."""
        ...


class AgentConnector(Protocol):
    """Makes the link to a machine's agent, keeps it up, and serves ``agent.sock``."""

    async def connect(
        self, machine: Machine, paths: MachinePaths, identity: Identity | None
    ) -> GuestAgent:
        """Begin to hold a session; gives ``identity``, if any, to the agent at each one's start."""
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
