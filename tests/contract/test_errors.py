"""Every exception has a status, and comes back from it as what it was."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from arcboxd import errors
from arcboxd.errors import ArcboxError, ErrorKind
from arcboxd.process import CommandError
from arcboxd.wire.status import BY_REASON, CODES, TEXT_LIMIT_BYTES, from_rpc_error, to_status

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ArcboxError)
]

TABLE = {
    "InvalidArgumentError": "INVALID_ARGUMENT",
    "UserNotFoundError": "INVALID_ARGUMENT",
    "UnsupportedError": "UNIMPLEMENTED",
    "MachineNotFoundError": "NOT_FOUND",
    "TemplateNotFoundError": "NOT_FOUND",
    "ImageNotFoundError": "NOT_FOUND",
    "UnsafeImageError": "INVALID_ARGUMENT",
    "MachineExistsError": "ALREADY_EXISTS",
    "SnapshotNotFoundError": "NOT_FOUND",
    "PortNotFoundError": "NOT_FOUND",
    "PortExistsError": "ALREADY_EXISTS",
    "SnapshotExistsError": "ALREADY_EXISTS",
    "MountNotFoundError": "NOT_FOUND",
    "MountExistsError": "ALREADY_EXISTS",
    "DaemonRunningError": "ALREADY_EXISTS",
    "MachineStateError": "FAILED_PRECONDITION",
    "PreconditionError": "FAILED_PRECONDITION",
    "MissingToolError": "FAILED_PRECONDITION",
    "MachineBusyError": "ABORTED",
    "NoRoomError": "RESOURCE_EXHAUSTED",
    "AgentUnreachableError": "UNAVAILABLE",
    "DaemonUnreachableError": "UNAVAILABLE",
    "LinkError": "UNAVAILABLE",
    "ImageServerError": "UNAVAILABLE",
    "TooLateError": "DEADLINE_EXCEEDED",
    "CorruptError": "DATA_LOSS",
    "ArcboxError": "INTERNAL",
    "AssetBuildError": "INTERNAL",
    "HypervisorError": "INTERNAL",
    "StoreError": "INTERNAL",
}


class Failed(grpc.RpcError):
    """What a client of gRPC catches."""

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str | None = "words",
        metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        self._parts = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str | None:
        return self._parts[1]

    def trailing_metadata(self) -> tuple[Any, ...]:
        return self._parts[2]


def _there_and_back(error: ArcboxError) -> ArcboxError:
    status = to_status(error)
    return from_rpc_error(Failed(status.code, status.details, status.trailing_metadata))


def test_the_table_is_complete() -> None:
    assert {cls.__name__ for cls in CLASSES} == set(TABLE)
    assert set(CODES) == set(ErrorKind)
    assert set(BY_REASON.values()) == set(CLASSES)
    assert len(BY_REASON) == len(CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_comes_back_as_itself(cls: type[ArcboxError]) -> None:
    error = cls("machine 'dév' is busy", hint="try later")
    assert to_status(error).code.name == TABLE[cls.__name__]
    back = _there_and_back(error)
    assert type(back) is cls
    assert (back.message, back.hint) == (error.message, error.hint)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
@pytest.mark.parametrize(
    "metadata",
    [(), (("grpc-status-details-bin", b"\xff\xff"),), (("grpc-status-details-bin", b""),)],
)
def test_any_status_becomes_an_error(
    code: grpc.StatusCode, metadata: tuple[tuple[str, str | bytes], ...]
) -> None:
    error = from_rpc_error(Failed(code, None, metadata))
    assert isinstance(error, ArcboxError)
    assert error.message


def test_unavailable_depends_on_who_was_called() -> None:
    failed = Failed(grpc.StatusCode.UNAVAILABLE)
    assert type(from_rpc_error(failed)) is errors.DaemonUnreachableError
    agent = from_rpc_error(failed, unreachable=errors.AgentUnreachableError)
    assert type(agent) is errors.AgentUnreachableError


def test_a_reason_that_contradicts_its_code_is_not_believed() -> None:
    status = to_status(errors.MachineNotFoundError("no"))
    back = from_rpc_error(Failed(grpc.StatusCode.INTERNAL, "no", status.trailing_metadata))
    assert type(back) is ArcboxError


def test_long_messages_are_cut_to_what_metadata_carries() -> None:
    back = _there_and_back(errors.HypervisorError("beginning" + "é" * 10_000 + "end"))
    assert len(back.message.encode()) <= TEXT_LIMIT_BYTES + 10
    assert back.message.startswith("beginning")
    assert back.message.endswith("end")


def test_an_error_of_a_class_of_another_module_keeps_its_kind() -> None:
    back = _there_and_back(CommandError("qemu-img failed", status=1, stderr="x"))
    assert back.kind is ErrorKind.INTERNAL
    assert back.message == "qemu-img failed"
