"""HTTP(S) requests for images: bounded in bytes, time and tries, and careful with redirects.

httpx2 does the protocol. It is imported with the first request, in a thread: it takes 0.1 s, and
most daemons never download anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

from arcboxd.errors import (
    ArcboxError,
    ImageNotFoundError,
    ImageServerError,
    InvalidArgumentError,
    PreconditionError,
)

if TYPE_CHECKING:
    import httpx2

REDIRECTS_MAX = 5

_MOVED = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

# They log each address, which may hold a password or a token.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may take, and how often it is asked again."""

    tries: int = 5
    """In a row, without anything gained."""
    backoff_s: float = 1.0
    """Before the second try; doubled for each one after it."""
    pause_max_s: float = 30.0
    """The longest pause, also where the server asks for more."""
    connect_s: float = 15.0
    stall_s: float = 30.0
    stall_bytes: int = 4096
    """What must have come in each ``stall_s`` seconds."""

    def pause_s(self, tried: int, asked_s: float) -> float:
        """Tell how long to wait after the ``tried``-th failure."""
        return min(max(self.backoff_s * 2.0 ** (tried - 1), asked_s), self.pause_max_s)


PATIENCE = Patience()


class BrokenTransferError(Exception):
    """A request came to nothing, but another try may succeed; never leaves this package."""

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        """Keep what went wrong, and how long the server asks to be left alone."""
        super().__init__(message)
        self.wait_s = wait_s


class Opener(Protocol):
    """Whatever opens addresses: `Web`, or a registry that adds its token."""

    def open(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[httpx2.Response]:
        """Ask for ``url`` and give the answer before its body."""
        ...


class Web:
    """Connections to HTTP(S) servers, by the proxies that the environment names.

    An async context manager: at its end the connections are closed.

    Raises:
        PreconditionError: On entering, if such a proxy is of a kind that we cannot use.
    """

    def __init__(self, patience: Patience = PATIENCE) -> None:
        """Prepare; nothing is connected yet."""
        self._patience = patience
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(importlib.import_module, "httpx2")
        context = await asyncio.to_thread(ssl.create_default_context)
        import httpx2  # noqa: PLC0415

        patience = self._patience
        timeout = httpx2.Timeout(patience.stall_s, connect=patience.connect_s)
        try:
            client = httpx2.AsyncClient(
                headers={"User-Agent": "arcboxd"},
                verify=context,
                timeout=timeout,
                follow_redirects=False,
            )
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            raise PreconditionError(
                "the proxy that the daemon's environment names cannot be used",
                hint="set HTTPS_PROXY and ALL_PROXY to an http:// address, or not at all",
            ) from error
        self._client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def open(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """Ask for ``url``, follow its redirects, and give the answer before its body.

        An ``Authorization`` header goes no further than the server that it was given for.

        Raises:
            BrokenTransferError: The server could not be reached, or says that it is in trouble.
            ImageServerError: It redirects to where we do not go, or cannot prove who it is.
            InvalidArgumentError: It is no http or https address.
        """
        response = await self._follow(url, dict(headers))
        try:
            if response.status_code in _TRANSIENT:
                raise BrokenTransferError(
                    f"HTTP status {response.status_code}", wait_s=_asked_pause_s(response)
                )
            yield response
        finally:
            with contextlib.suppress(BrokenTransferError), _translated(url):
                await response.aclose()

    async def _follow(self, url: str, headers: dict[str, str]) -> httpx2.Response:
        for _ in range(REDIRECTS_MAX + 1):
            response = await self._send(url, headers)
            if response.status_code not in _MOVED:
                return response
            await response.aclose()
            target = _redirected(response)
            if origin_of(target) != origin_of(url):
                headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
            url = target
        raise ImageServerError(f"{shown(url)} redirects more than {REDIRECTS_MAX} times")

    async def _send(self, url: str, headers: Mapping[str, str]) -> httpx2.Response:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidArgumentError(f"{shown(url)!r} is no http or https address")
        with _translated(url):
            request = self._client.build_request(
                "GET", url, headers={"Accept-Encoding": "identity", **headers}
            )
            # The timeouts of httpx2 hold for each read: a header that drips would pass them all.
            async with asyncio.timeout(self._patience.connect_s + self._patience.stall_s):
                return await self._client.send(request, stream=True)


async def chunks(response: httpx2.Response, patience: Patience) -> AsyncGenerator[bytes, None]:
    """Give the body as it comes, not decoded.

    Raises:
        BrokenTransferError: It broke off, stalled or came too slowly.
    """
    began, got = time.monotonic(), 0
    with _translated(str(response.url)):
        async for chunk in response.aiter_raw():
            yield chunk
            got += len(chunk)
            if (now := time.monotonic()) - began > patience.stall_s:
                if got < patience.stall_bytes:
                    raise BrokenTransferError(f"only {got} bytes in {now - began:.1f} s")
                began, got = now, 0


async def read(
    opener: Opener,
    url: str,
    *,
    limit_bytes: int,
    what: str,
    headers: Mapping[str, str] | None = None,
    patience: Patience = PATIENCE,
    hint: str = "",
) -> bytes:
    """Read a small document, with as many tries as ``patience`` has.

    Raises:
        ImageNotFoundError: There is none.
        ImageServerError: The server does not answer, or with more than ``limit_bytes``.
        PreconditionError: The server asks for a login.
    """
    tried = 0
    while True:
        try:
            async with opener.open(url, headers or {}) as response:
                if response.status_code != 200:  # noqa: PLR2004
                    raise refusal(response, what, hint=hint)
                body = bytearray()
                async with contextlib.aclosing(chunks(response, patience)) as parts:
                    async for chunk in parts:
                        body += chunk
                        if len(body) > limit_bytes:
                            raise ImageServerError(
                                f"{what} at {shown(url)} is larger than {limit_bytes} bytes"
                            )
                return bytes(body)
        except BrokenTransferError as error:
            tried += 1
            if tried >= patience.tries:
                raise given_up(url, what, error) from error
            await asyncio.sleep(patience.pause_s(tried, error.wait_s))


def refusal(response: httpx2.Response, what: str, *, hint: str = "") -> ArcboxError:
    """Give the error for a status that no further try will change."""
    status, where = response.status_code, shown(str(response.url))
    if status in {404, 410}:
        return ImageNotFoundError(f"{what} is not at {where}", hint=hint)
    if status in {401, 403, 407}:
        return PreconditionError(f"{where} refuses {what} (HTTP status {status})", hint=hint)
    return ImageServerError(f"{where} answers with HTTP status {status} to a request for {what}")


def given_up(url: str, what: str, error: BrokenTransferError) -> ImageServerError:
    """Give the error for a server that was asked often enough."""
    return ImageServerError(
        f"cannot get {what} from {shown(url)}: {error}",
        hint="check the network, and HTTPS_PROXY if this host needs a proxy; then try again",
    )


def shown(url: str) -> str:
    """Give an address as people may see it: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(an address that cannot be read)"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


def origin_of(url: str) -> tuple[str, str, int]:
    """Give scheme, host and port, which tell one server from another."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port


def _redirected(response: httpx2.Response) -> str:
    import httpx2  # noqa: PLC0415

    here = shown(str(response.url))
    try:
        target = response.url.join(response.headers.get("location", ""))
    except (httpx2.InvalidURL, ValueError) as error:
        raise ImageServerError(f"{here} redirects to an address that cannot be read") from error
    if target.scheme not in {"http", "https"} or not target.host:
        raise ImageServerError(f"{here} redirects to {target.scheme}:, which is not followed")
    if response.url.scheme == "https" and target.scheme == "http":
        raise ImageServerError(f"{here} redirects from https to http, which is not followed")
    return str(target)


def _asked_pause_s(response: httpx2.Response) -> float:
    asked = response.headers.get("retry-after", "")
    return float(asked) if asked.isdecimal() and len(asked) < 6 else 0.0  # noqa: PLR2004


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    import httpx2  # noqa: PLC0415

    try:
        yield
    except httpx2.InvalidURL as error:
        raise InvalidArgumentError(f"{shown(url)!r} is no address") from error
    except httpx2.HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ImageServerError(
                f"{shown(url)} cannot prove who it is: {error}",
                hint="check this host's clock and its ca-certificates package",
            ) from error
        raise BrokenTransferError(str(error) or type(error).__name__) from error
    except TimeoutError as error:
        raise BrokenTransferError("it takes too long to answer") from error
