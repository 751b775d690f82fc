"""Asks an HTTP server of this machine for its health, with TLS where it wants that.

Source: RFC 9112; the `ssl` module's notes on memory BIOs.
"""

# Imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
import functools
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import TypeVar

    _T = TypeVar("_T")

_READ_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 16 * 1024
_DETAIL_CHARACTERS = 300
_SILENCE = "it does not answer"


async def probe(url: str, timeout_s: float) -> str:
    """Ask for a page; return nothing when it is there (status 200), else why not.

    Who answers is not checked: whoever could pose as the server is root in here.
    """
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode()
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                if parts.scheme == "https":
                    answer = await _over_tls(reader, writer, request)
                else:
                    writer.write(request)
                    answer = await reader.read(_MAX_ANSWER_BYTES)
            finally:
                writer.transport.abort()
    except TimeoutError:
        return _SILENCE
    except OSError as error:  # ssl's own are such, too
        return f"it does not answer: {error.strerror or error}"
    return _verdict(answer)


def _verdict(answer: bytes) -> str:
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    status, _, _ = head.partition("\r\n")
    words = status.split(" ", 2)
    if not words[0].startswith("HTTP/") or len(words) < 2:  # noqa: PLR2004
        return _SILENCE
    if words[1] == "200":
        return ""
    # Kubernetes lists its checks, most of which passed: "[+]ping ok", "[-]etcd failed: ...".
    failed = [line for line in body.splitlines() if line.startswith("[-]")]
    detail = ", ".join(failed) or body.strip()
    return f"it says {' '.join(words[1:])}: {detail[:_DETAIL_CHARACTERS]}".rstrip(": ")


async def _over_tls(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> bytes:
    """Send a request and give the answer's beginning.

    By hand: asyncio's own TLS is off for good where `ssl` could not be imported with it.
    """
    # `arcbox_agent.startup` has kept asyncio and grpclib from loading it in every agent.
    if sys.modules.get("ssl", ...) is None:
        del sys.modules["ssl"]
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = _context().wrap_bio(incoming, outgoing)

    async def do(step: Callable[[], _T]) -> _T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                if not (data := await reader.read(_READ_BYTES)):
                    raise OSError(_SILENCE) from None
                incoming.write(data)
            finally:
                writer.write(outgoing.read())

    await do(tls.do_handshake)
    await do(lambda: tls.write(request))
    return await do(lambda: tls.read(_MAX_ANSWER_BYTES))


@functools.cache
def _context() -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
