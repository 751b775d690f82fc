"""Exceptions to statuses, around every method of a servicer: none leaves as a traceback."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

import grpc.aio

from arcboxd.errors import ArcboxError, ErrorKind
from arcboxd.wire.status import to_status, unexpected

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext
_Service = TypeVar("_Service")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Context = TypeVar("_Context", bound=grpc.aio.ServicerContext[Any, Any])


def unary(
    method: Callable[[_Service, _Request, _Context], Awaitable[_Response]],
) -> Callable[[_Service, _Request, _Context], Awaitable[_Response]]:
    """End a call with the status of the error that its method raised."""

    @functools.wraps(method)
    async def translated(self: _Service, request: _Request, context: _Context) -> _Response:
        try:
            return await method(self, request, context)
        except Exception as error:  # noqa: BLE001
            await _abort(context, error, method.__name__)

    return translated


def streaming(
    method: Callable[[_Service, _Request, _Context], AsyncGenerator[_Response, None]],
) -> Callable[[_Service, _Request, _Context], AsyncIterator[_Response]]:
    """Do the same for a method that streams its answer."""

    @functools.wraps(method)
    async def translated(
        self: _Service, request: _Request, context: _Context
    ) -> AsyncIterator[_Response]:
        try:
            # Closed at once and not some time later: to close an Exec kills its process.
            async with aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:  # noqa: BLE001
            await _abort(context, error, method.__name__)

    return translated


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str
) -> NoReturn:
    if isinstance(error, ArcboxError):
        if error.kind is ErrorKind.INTERNAL:
            _log.warning("%s failed: %s", method, error, exc_info=error.__cause__)
        status = to_status(error)
    else:
        _log.error("%s failed unexpectedly", method, exc_info=error)
        status = unexpected()
    await context.abort(status.code, status.details, status.trailing_metadata)
