"""The API server of a machine's cluster, asked for its Services: once all, then each change.

httpx2 does the protocol; it is imported with the first request, in a thread, for it takes 0.1 s.
What answers is a guest: every answer is bounded in bytes and time, and proves by its certificate
that it is the cluster before it is told anything.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import logging
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Self

from arcboxd.errors import CorruptError
from arcboxd.kubernetes import service_objects
from arcboxd.kubernetes.kubeconfig import Credentials
from arcboxd.kubernetes.service_objects import PAGE_ITEMS, Change, ListAnewError, Page, Service

if TYPE_CHECKING:
    import httpx2

SERVICES_MAX = 5000
WATCH_S = 300
"""How long one watch lasts; the next one goes on where it ended."""

_PATH = "/api/v1/services"
_PAGES_MAX = 20
_PAGE_BYTES = 8 << 20
_LINE_BYTES = 1 << 20
_OK = 200
_TEXT_MAX = 200

_log = logging.getLogger(__name__)

# They log each address, and part of it is the guest's.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class ServiceClient:
    """A connection to an API server; an async context manager, closed at its end.

    Raises:
        CorruptError: On entering, if nothing can be proved with the credentials.
    """

    def __init__(self, server: str, found: Credentials, *, timeout_s: float) -> None:
        """Prepare; nothing is connected yet.

        Args:
            server: ``https://127.0.0.1:PORT``.
            found: How the cluster and its user prove themselves.
            timeout_s: How long the server may take to answer.
        """
        self._server = server
        self._credentials = found
        self._timeout_s = timeout_s
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(importlib.import_module, "httpx2")
        context = await asyncio.to_thread(tls_context, self._credentials)
        import httpx2  # noqa: PLC0415

        headers = {"User-Agent": "arcboxd", "Accept": "application/json"}
        headers["Accept-Encoding"] = "identity"
        if self._credentials.token:
            headers["Authorization"] = f"Bearer {self._credentials.token}"
        self._client = await self._stack.enter_async_context(
            httpx2.AsyncClient(
                base_url=self._server,
                headers=headers,
                verify=context,
                timeout=httpx2.Timeout(self._timeout_s),
                trust_env=False,
                follow_redirects=False,
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def services(self) -> tuple[list[Service], str]:
        """Give the Services, at most 5,000 of them, and from where to watch for what comes after.

        Raises:
            ListAnewError: It could not be reached, broke off, is in trouble, or one of the two does
                not accept what the other proves itself with.
            CorruptError: The answer makes no sense, or is too large.
        """
        page = await self._page({})
        found = list(page.services)
        for _ in range(_PAGES_MAX - 1):
            if not page.rest or len(found) >= SERVICES_MAX:
                break
            page = await self._page({"continue": page.rest})
            found += page.services
        if page.rest or len(found) > SERVICES_MAX:
            _log.warning("of a cluster's services only the first %d are seen", len(found))
        return found[:SERVICES_MAX], page.version

    async def _page(self, query: Mapping[str, str]) -> Page:
        body, query = bytearray(), {"limit": str(PAGE_ITEMS), **query}
        with _translated():
            async with (
                asyncio.timeout(self._timeout_s),
                self._open(query, self._timeout_s) as response,
                aclosing(response.aiter_raw()) as chunks,
            ):
                async for chunk in chunks:
                    body += chunk
                    if len(body) > _PAGE_BYTES:
                        raise CorruptError(f"its services are more than {_PAGE_BYTES} bytes")
        return service_objects.page(bytes(body))

    async def watch(self, version: str) -> AsyncGenerator[Change, None]:
        """Give each change that comes after a version, until the server ends the watch in order.

        Raises:
            ListAnewError: As `services`; or what comes after that version is not known any more.
            CorruptError: What it tells makes no sense.
        """
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        with _translated():
            async with (
                self._open(query, WATCH_S + self._timeout_s) as response,
                aclosing(_lines(response)) as lines,
            ):
                async for line in lines:
                    yield service_objects.change(line)

    @contextlib.asynccontextmanager
    async def _open(
        self, query: Mapping[str, str], read_s: float
    ) -> AsyncIterator[httpx2.Response]:
        import httpx2  # noqa: PLC0415

        timeout = httpx2.Timeout(self._timeout_s, read=read_s)
        request = self._client.build_request("GET", _PATH, params=dict(query), timeout=timeout)
        # httpx2's own hold for each read: a header that drips would pass them all.
        async with asyncio.timeout(self._timeout_s):
            response = await self._client.send(request, stream=True)
        try:
            if response.status_code != _OK:
                raise ListAnewError(f"HTTP status {response.status_code}")
            yield response
        finally:
            await response.aclose()


def tls_context(found: Credentials) -> ssl.SSLContext:
    """Trust the cluster's own authority and no other, and prove who asks.

    Raises:
        CorruptError: A certificate or the key is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=base64.b64decode(found.authority).decode("ascii"))
        if found.certificate:
            _load_pair(context, base64.b64decode(found.certificate), base64.b64decode(found.key))
    except (ssl.SSLError, ValueError) as error:
        raise CorruptError("the cluster's certificates cannot be used") from error
    return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load what OpenSSL takes from files only, without one that another could read."""
    descriptor = os.memfd_create("arcbox-cluster")
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(certificate + b"\n" + key)
        # Without a password OpenSSL would ask the terminal for the one of an encrypted key.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")


async def _lines(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """Give the body's lines; one that is cut off at the end is none."""
    rest = bytearray()
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            *whole, last = chunk.split(b"\n")
            for part in whole:
                line, rest = bytes(rest + part), bytearray()
                _check_line(line)
                if line.strip():
                    yield line
            rest += last
            _check_line(rest)


def _check_line(line: bytes | bytearray) -> None:
    if len(line) > _LINE_BYTES:
        raise CorruptError(f"what the watch tells is more than {_LINE_BYTES} bytes")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    import httpx2  # noqa: PLC0415

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OSError) as error:
        text = str(error)[:_TEXT_MAX] or type(error).__name__
        raise ListAnewError(repr(text)) from error
