"""Our exceptions as gRPC statuses, and back: the one translator between the two.

A reason and a hint travel as ``google.rpc.ErrorInfo`` in the trailing metadata, so that a client
can raise the same exception again. Source: google/rpc/error_details.proto, grpcio-status.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from arcboxd import errors
from arcboxd.errors import ArcboxError, ErrorKind

DOMAIN = "arcbox"
DETAILS_KEY = "grpc-status-details-bin"
TEXT_LIMIT_BYTES = 1800
"""Of a message: it travels twice, percent-encoded once, and gRPC peers refuse 8 KiB of metadata."""

CODES: Mapping[ErrorKind, grpc.StatusCode] = {
    ErrorKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorKind.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorKind.WRONG_STATE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorKind.BUSY: grpc.StatusCode.ABORTED,
    ErrorKind.NO_ROOM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.TOO_LATE: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.CORRUPT: grpc.StatusCode.DATA_LOSS,
    ErrorKind.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
}


# Only those of errors.py: what travels must be known on both sides.
BY_REASON: Mapping[str, type[ArcboxError]] = {
    cls("").reason: cls for cls in (ArcboxError, *vars(errors).values())
    if isinstance(cls, type) and issubclass(cls, ArcboxError)
}  # fmt: skip

_BY_CODE: Mapping[grpc.StatusCode, type[ArcboxError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: errors.MachineNotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.MachineExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.PreconditionError,
    grpc.StatusCode.ABORTED: errors.MachineBusyError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.NoRoomError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TooLateError,
    grpc.StatusCode.DATA_LOSS: errors.CorruptError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnsupportedError,
}


@dataclass(frozen=True, slots=True)
class WireStatus:
    """An error as gRPC carries it."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


class _Failed(Protocol):
    """What `grpc.RpcError` is when a call ended with it, synchronous or not."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def to_status(error: ArcboxError) -> WireStatus:
    """Give the status that stands for an error."""
    code = CODES[error.kind]
    message = _clip(error.message)
    info = ErrorInfo(reason=error.reason, domain=DOMAIN)
    if error.hint:
        info.metadata["hint"] = _clip(error.hint)
    packed = AnyMessage()
    packed.Pack(info)
    status = Status(code=_number(code), message=message, details=[packed])
    return WireStatus(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def unexpected(message: str = "the daemon failed in a way it should not have") -> WireStatus:
    """Give the status for an exception that nobody raised on purpose; the log has the rest."""
    return to_status(ArcboxError(message, hint="its log says more: daemon.log in ~/.arcbox"))


def from_rpc_error(
    error: grpc.RpcError, *, unreachable: type[ArcboxError] = errors.DaemonUnreachableError
) -> ArcboxError:
    """Give the exception that a status stands for.

    Args:
        error: What a call raised, from `grpc` or `grpc.aio`.
        unreachable: What a lost or refused connection becomes: it depends on who was called.
    """
    call: _Failed = error  # type: ignore[assignment] # grpc's types do not say that it is a call too
    code, message = call.code(), _clip(call.details() or "")
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            if (known := _from_details(value, code)) is not None:
                return known
            break
    if code is grpc.StatusCode.UNAVAILABLE:
        return unreachable(message or "it does not answer")
    if (cls := _BY_CODE.get(code)) is not None:
        return cls(message or f"the call ended with {code.name}")
    return ArcboxError(message or f"the call ended with {code.name}")


def from_reason(kind: str, reason: str, message: str, hint: str) -> ArcboxError:
    """Give the exception that an agent's own answer stands for: one of the same kind at least."""
    cls = BY_REASON.get(reason)
    if cls is None or cls.kind.value != kind:
        codes = {known.value: code for known, code in CODES.items()}
        cls = _BY_CODE.get(codes.get(kind, grpc.StatusCode.INTERNAL), ArcboxError)
    return cls(_clip(message), hint=_clip(hint))


def _from_details(value: bytes, code: grpc.StatusCode) -> ArcboxError | None:
    info = ErrorInfo()
    try:
        status = Status.FromString(value)
        if not any(packed.Unpack(info) for packed in status.details):
            return None
    except DecodeError:
        return None
    cls = BY_REASON.get(info.reason)
    if info.domain != DOMAIN or cls is None or CODES[cls.kind] is not code:
        return None
    return cls(_clip(status.message), hint=_clip(info.metadata.get("hint", "")))


def _number(code: grpc.StatusCode) -> int:
    return int(code.value[0])


def _clip(text: str) -> str:
    raw = text.encode(errors="replace")
    if len(raw) <= TEXT_LIMIT_BYTES:
        return text
    # The end of a message is the end of a console: both ends say most.
    half = TEXT_LIMIT_BYTES // 2
    head, tail = raw[:half].decode(errors="ignore"), raw[-half:].decode(errors="ignore")
    return f"{head} … {tail}"
