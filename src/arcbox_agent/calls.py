"""The daemon's calls over the link, answered without HTTP/2 and gRPC. See `arcboxd.link.call`."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from arcboxd.errors import ArcboxError, InvalidArgumentError, LinkError
from arcboxd.link.call import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Protocol, TypeVar

    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message

    from arcboxd.link.stream import Stream

    _In_co = TypeVar("_In_co", covariant=True)
    _Out_contra = TypeVar("_Out_contra", contravariant=True)

    class MessageStream(Protocol[_In_co, _Out_contra]):
        """What a streaming method is given, whether by gRPC or over the link."""

        async def recv_message(self) -> _In_co | None:
            """Give the next request; None after the last."""

        async def send_message(self, message: _Out_contra) -> None:
            """Send a response."""


_log = logging.getLogger(__name__)


class Method:
    """A method of a service: who implements it, and what it takes."""

    __slots__ = ("implementation", "request", "response", "streaming")

    def __init__(
        self,
        implementation: Callable[..., Awaitable[Message]],
        request: type[Message],
        response: type[Message],
        *,
        streaming: bool,
    ) -> None:
        """Keep these."""
        self.implementation = implementation
        self.request = request
        self.response = response
        self.streaming = streaming


def methods(services: Iterable[tuple[object, ServiceDescriptor]]) -> dict[str, Method]:
    """Give the methods of services by their paths.

    Raises:
        TypeError: A servicer lacks a method of its service.
    """
    found = {}
    for servicer, service in services:
        for method in service.methods:
            implementation = getattr(servicer, method.name, None)
            if implementation is None:
                raise TypeError(f"{type(servicer).__name__} has no method {method.name}")
            found[f"/{service.full_name}/{method.name}"] = Method(
                implementation,
                GetMessageClass(method.input_type),
                GetMessageClass(method.output_type),
                streaming=method.client_streaming or method.server_streaming,
            )
    return found


class _Messages:
    """The messages of one call."""

    __slots__ = ("_call", "_request")

    def __init__(self, call: Call, request: type[Message]) -> None:
        self._call = call
        self._request = request

    async def recv_message(self) -> Message | None:
        data = await self._call.receive()
        return None if data is None else self._request.FromString(data)

    async def send_message(self, message: Message) -> None:
        await self._call.send(message.SerializeToString())


class Calls:
    """Serves methods to the streams of the link."""

    def __init__(self, served: dict[str, Method]) -> None:
        """Serve these, by their paths."""
        self._methods = served

    def accept(self, path: str) -> Callable[[Stream], Awaitable[None]]:
        """Give the handler of a call.

        Raises:
            LinkError: There is no such method.
        """
        method = self._methods.get(path)
        if method is None:
            raise LinkError(f"the agent has no method {path!r}")
        return lambda stream: _serve(method, stream)


async def _serve(method: Method, stream: Stream) -> None:
    task = asyncio.current_task()
    if task is not None:
        stream.on_failed = task.cancel  # the caller gave up
    call = Call(stream)
    messages = _Messages(call, method.request)
    try:
        if method.streaming:
            await method.implementation(messages)
        elif (request := await messages.recv_message()) is not None:
            await messages.send_message(await method.implementation(request))
        else:
            await call.fail(InvalidArgumentError("The call ended before its request was sent."))
    except LinkError:
        raise
    except ArcboxError as error:
        await call.fail(error)
    except DecodeError as error:
        await call.fail(ArcboxError(f"The request cannot be decoded: {error}"))
    except Exception as error:  # noqa: BLE001  the caller is told
        _log.exception("a call failed")
        await call.fail(ArcboxError(f"The agent failed: {type(error).__name__}: {error}"))
    finally:
        stream.on_failed = None
