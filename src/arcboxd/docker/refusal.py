"""What a client of Docker's API is told when there is no Docker to reach."""

from __future__ import annotations

import asyncio
import json
import socket

from arcboxd.errors import ArcboxError

_TIMEOUT_S = 5.0
_HEAD_BYTES = 1 << 16
_HEAD_END = b"\r\n\r\n"


async def refuse(sock: socket.socket, error: ArcboxError) -> None:
    """Answer a request by 503 and the error, as Docker's own errors are; then close the socket.

    Source: https://docs.docker.com/reference/api/engine/ ("ErrorResponse").
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            head = b""
            while _HEAD_END not in head and len(head) < _HEAD_BYTES:
                if not (data := await loop.sock_recv(sock, _HEAD_BYTES)):
                    break
                head += data
            if not head:
                return
            await loop.sock_sendall(sock, response(head, error))
            sock.shutdown(socket.SHUT_WR)
            # A client that still sends would take its own failure to do so for the answer.
            while await loop.sock_recv(sock, _HEAD_BYTES):
                pass
    except (OSError, TimeoutError):
        return
    finally:
        sock.close()


def response(head: bytes, error: ArcboxError) -> bytes:
    """Give the answer to a request that begins so."""
    sentence = error.message + (f" - {error.hint}" if error.hint else "")
    body = json.dumps({"message": sentence}).encode() + b"\n"
    lines = (
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    answer = "\r\n".join(lines).encode() + _HEAD_END
    return answer if head.startswith(b"HEAD ") else answer + body
