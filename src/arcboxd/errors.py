"""The exceptions of the project, each of one kind; the edges translate kinds, nothing else does.

A message names what was tried and on what; ``hint`` says what to do next. Both are for people.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class ErrorKind(Enum):
    """What a caller can do about an error; `wire.status` gives each its gRPC status."""

    INVALID = "invalid"
    NOT_FOUND = "not found"
    EXISTS = "exists"
    WRONG_STATE = "wrong state"
    BUSY = "busy"
    NO_ROOM = "no room"
    UNREACHABLE = "unreachable"
    TOO_LATE = "too late"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"


class ArcboxError(Exception):
    """Base of every error that we raise on purpose."""

    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep a sentence of what went wrong, and one of what to do next."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def reason(self) -> str:
        """Name the error for programs: the class name in capitals, such as MACHINE_NOT_FOUND."""
        name = type(self).__name__.removesuffix("Error")
        return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(name)).upper()


class InvalidArgumentError(ArcboxError):
    """A value of the request can never be accepted."""

    kind = ErrorKind.INVALID


class UnsupportedError(ArcboxError):
    """The request is well formed, but this version or host cannot do it."""

    kind = ErrorKind.UNSUPPORTED


class MachineNotFoundError(ArcboxError):
    """No machine has that id or name."""

    kind = ErrorKind.NOT_FOUND


class TemplateNotFoundError(ArcboxError):
    """No template has that key."""

    kind = ErrorKind.NOT_FOUND


class ImageNotFoundError(ArcboxError):
    """No image has that name, or no source has it."""

    kind = ErrorKind.NOT_FOUND


class UnsafeImageError(ArcboxError):
    """An image holds what could harm the host, and was not opened."""

    kind = ErrorKind.INVALID


class MachineExistsError(ArcboxError):
    """The name is taken."""

    kind = ErrorKind.EXISTS


class SnapshotNotFoundError(ArcboxError):
    """The machine has no snapshot of that name."""

    kind = ErrorKind.NOT_FOUND


class SnapshotExistsError(ArcboxError):
    """The machine has a snapshot of that name."""

    kind = ErrorKind.EXISTS


class MountNotFoundError(ArcboxError):
    """The machine has no mount there."""

    kind = ErrorKind.NOT_FOUND


class MountExistsError(ArcboxError):
    """The machine has a mount there, or in the way."""

    kind = ErrorKind.EXISTS


class PortNotFoundError(ArcboxError):
    """The user has forwarded no such port to the machine."""

    kind = ErrorKind.NOT_FOUND


class PortExistsError(ArcboxError):
    """The machine has that port of the host for something else."""

    kind = ErrorKind.EXISTS


class MachineStateError(ArcboxError):
    """The machine's state does not allow the operation."""

    kind = ErrorKind.WRONG_STATE


class MachineBusyError(ArcboxError):
    """Another operation holds the machine."""

    kind = ErrorKind.BUSY


class PreconditionError(ArcboxError):
    """Something besides the machine's state is not as the operation needs it."""

    kind = ErrorKind.WRONG_STATE


class NoRoomError(ArcboxError):
    """Disk, memory or another bounded resource is used up."""

    kind = ErrorKind.NO_ROOM


class AgentUnreachableError(ArcboxError):
    """The agent in the guest does not answer."""

    kind = ErrorKind.UNREACHABLE


class DaemonUnreachableError(ArcboxError):
    """The daemon does not answer, or could not be started."""

    kind = ErrorKind.UNREACHABLE


class ImageServerError(ArcboxError):
    """A server of images, or a registry, does not answer, or not as it should."""

    kind = ErrorKind.UNREACHABLE


class TooLateError(ArcboxError):
    """A deadline passed before the work was done."""

    kind = ErrorKind.TOO_LATE


class CorruptError(ArcboxError):
    """Data does not match its digest, its signature or its format."""

    kind = ErrorKind.CORRUPT


class MissingToolError(ArcboxError):
    """A program that the host needs is not installed."""

    kind = ErrorKind.WRONG_STATE


class AssetBuildError(ArcboxError):
    """The kernel, initramfs, a bundle or a base image could not be built."""


class HypervisorError(ArcboxError):
    """QEMU refused, failed or ended when it should not have."""


class LinkError(ArcboxError):
    """The link to a guest's agent broke, or its peer broke the protocol."""

    kind = ErrorKind.UNREACHABLE


class StoreError(ArcboxError):
    """The state on disk cannot be read or written."""


class DaemonRunningError(ArcboxError):
    """Another daemon owns the state directory."""

    kind = ErrorKind.EXISTS


class UserNotFoundError(ArcboxError):
    """The guest has no such user or group."""

    kind = ErrorKind.INVALID
