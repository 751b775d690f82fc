"""gRPC in the guest: a cap on messages, errors to statuses.

Imported when the first client of gRPC comes: that takes long under emulation, and the daemon's own
calls do without (`arcbox_agent.calls`). grpclib's generated stubs say nothing that the descriptors
do not say.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import Buffer, H2Protocol
from grpclib.server import Handler as ConnectionHandler
from h2.config import H2Configuration

from arcboxd.errors import ArcboxError, ErrorKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message
    from grpclib.protocol import Stream as H2Stream
    from grpclib.server import Stream

    from arcbox_agent.calls import Method

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""The largest request; grpclib itself has no limit."""

_log = logging.getLogger(__name__)

_STATUS = {
    ErrorKind.INVALID: Status.INVALID_ARGUMENT,
    ErrorKind.NOT_FOUND: Status.NOT_FOUND,
    ErrorKind.EXISTS: Status.ALREADY_EXISTS,
    ErrorKind.WRONG_STATE: Status.FAILED_PRECONDITION,
    ErrorKind.BUSY: Status.ABORTED,
    ErrorKind.NO_ROOM: Status.RESOURCE_EXHAUSTED,
    ErrorKind.UNREACHABLE: Status.UNAVAILABLE,
    ErrorKind.TOO_LATE: Status.DEADLINE_EXCEEDED,
    ErrorKind.CORRUPT: Status.DATA_LOSS,
    ErrorKind.UNSUPPORTED: Status.UNIMPLEMENTED,
    ErrorKind.INTERNAL: Status.INTERNAL,
}


class _CappedBuffer(Buffer):
    """A stream's input that refuses a message by its length prefix, before any of it is kept."""

    async def read(self, size: int) -> bytes:
        if size > MAX_MESSAGE_BYTES:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED,
                f"The message has {size} bytes; the agent takes {MAX_MESSAGE_BYTES} at most.",
            )
        return await super().read(size)


class _ConnectionHandler(ConnectionHandler):
    """grpclib's own, with the cap put into each stream before its first byte arrives."""

    def accept(
        self, stream: H2Stream, headers: list[tuple[str, str]], release_stream: Callable[[], object]
    ) -> None:
        stream.buffer.__class__ = _CappedBuffer
        super().accept(stream, headers, release_stream)


class Server:
    """The gRPC server as a maker of protocols, whatever the bytes come through."""

    def __init__(self, served: dict[str, Method]) -> None:
        """Serve these, by their paths."""
        self._handlers = {path: _handler(method) for path, method in served.items()}
        self._codec = ProtoCodec()
        self._dispatch = _DispatchServerEvents()
        self._config = Configuration().__for_server__()
        # As grpclib's own server has it: the checks cost time and the peer is our daemon.
        self._h2_config = H2Configuration(
            client_side=False,
            header_encoding="ascii",
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )

    def protocol(self) -> H2Protocol:
        """Make the protocol of one new connection."""
        handler = _ConnectionHandler(self._handlers, self._codec, None, self._dispatch)
        return H2Protocol(handler, self._config, self._h2_config)


def _handler(method: Method) -> Handler:
    """Make grpclib's handler. Our exceptions become statuses."""
    # How many messages there are each way is for clients to know; the server only reads and writes.
    cardinality = Cardinality.STREAM_STREAM if method.streaming else Cardinality.UNARY_UNARY
    handle: Callable[[Stream[Message, Message]], Awaitable[object]]
    handle = method.implementation if method.streaming else _unary(method.implementation)
    return Handler(_translated(handle), cardinality, method.request, method.response)


def _unary(
    implementation: Callable[[Message], Awaitable[Message]],
) -> Callable[[Stream[Message, Message]], Awaitable[None]]:
    async def handle(stream: Stream[Message, Message]) -> None:
        request = await stream.recv_message()
        if request is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "The call ended before its request was sent.")
        await stream.send_message(await implementation(request))

    return handle


def _translated(
    handle: Callable[[Stream[Message, Message]], Awaitable[object]],
) -> Callable[[Stream[Message, Message]], Awaitable[None]]:
    async def call(stream: Stream[Message, Message]) -> None:
        try:
            await handle(stream)
        except ArcboxError as error:
            hint = f" {error.hint}" if error.hint else ""
            raise GRPCError(_STATUS[error.kind], error.message + hint) from error
        except DecodeError as error:
            raise GRPCError(Status.INTERNAL, f"The request cannot be decoded: {error}") from error
        except (GRPCError, StreamTerminatedError):
            raise
        except Exception as error:
            _log.exception("a call failed")
            message = f"The agent failed: {type(error).__name__}: {error}"
            raise GRPCError(Status.INTERNAL, message) from error

    return call
