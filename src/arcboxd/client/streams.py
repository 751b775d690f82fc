"""The calls that go on for a while: a process in a guest, and the daemon's events."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

import grpc

from arcboxd.client import decode, views
from arcboxd.domain.guest import ExecOutput
from arcboxd.errors import ArcboxError, DaemonUnreachableError, LinkError
from arcboxd.wire import convert, status
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2

_Message_co = TypeVar("_Message_co", covariant=True)


class _Call(Protocol[_Message_co]):
    """What grpc gives for a stream of answers, and its type stubs keep private."""

    def __iter__(self) -> Iterator[_Message_co]: ...

    def cancel(self) -> object: ...

    def code(self) -> grpc.StatusCode: ...

    def initial_metadata(self) -> object: ...


def raised(error: grpc.RpcError) -> ArcboxError:
    """Give the exception that the daemon raised, or the one for losing it."""
    translated = status.from_rpc_error(error)
    if isinstance(translated, DaemonUnreachableError) and not translated.hint:
        return DaemonUnreachableError(
            f"the daemon does not answer any more: {translated.message}",
            hint="machines go on running; arcbox daemon status tells whether it does",
        )
    return translated


class ExecCall:
    """A process that runs in a guest; leaving its context kills one that runs still."""

    def __init__(self, call: _Call[guest_pb2.ExecOutput]) -> None:
        """Take ownership of the call; use `Client.exec`."""
        self._call = call

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancel."""
        self.cancel()

    def cancel(self) -> None:
        """Kill the process and its descendants. Idempotent; nothing happens after the end."""
        self._call.cancel()

    def outputs(self) -> Iterator[ExecOutput]:
        """Give its output as it comes; the last is an `ExecExit`.

        Raises:
            ArcboxError: What the daemon raised.
            LinkError: The stream ended and nobody said how the process did.
        """
        ended = False
        try:
            for message in self._call:
                output = convert.exec_output(message)
                if output is not None:
                    ended = message.WhichOneof("output") == "exit"
                    yield output
        except grpc.RpcError as error:
            raise raised(error) from error
        if not ended:
            raise LinkError("the command's stream ended without an exit status")


class Watch:
    """The daemon's events from now on, until cancelled."""

    def __init__(self, call: _Call[host_pb2.Event]) -> None:
        """Take ownership of the call; use `Client.watch`."""
        self._call = call

    def cancel(self) -> None:
        """End `events`. Idempotent, from any thread."""
        self._call.cancel()

    def wait_subscribed(self) -> None:
        """Return once the daemon took the subscription, or refused it."""
        self._call.initial_metadata()

    def events(self) -> Iterator[views.Event]:
        """Give events as they come, without those of kinds that this version does not know.

        Raises:
            ArcboxError: What the daemon raised; a cancelled call just ends.
        """
        try:
            for message in self._call:
                if (event := decode.event(message)) is not None:
                    yield event
        except grpc.RpcError as error:
            if self._call.code() is grpc.StatusCode.CANCELLED:
                return
            raise raised(error) from error
