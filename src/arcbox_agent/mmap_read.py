"""MmapReadFile: reads a file through a shared mapping, in a process that may die of it.

A file that is cut short while it is mapped, or whose filesystem fails, makes who touches the
mapping die of SIGBUS. So a child copies from the mapping into memory that it shares with the agent.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import signal
import stat
import struct
from typing import NoReturn

from arcboxd.errors import (
    ArcboxError,
    ErrorKind,
    InvalidArgumentError,
    PreconditionError,
    TooLateError,
)
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

MAX_LENGTH_BYTES = 64 * 1024 * 1024
"""What a caller may ask for at most."""
MAX_ANSWER_BYTES = 3 * 1024 * 1024
"""What one call gives at most: a message of the link holds no more than 4 MiB."""

_READ_S = 20.0
_RESULT = struct.Struct("=iiq")  # errno, whether it is a plain file, bytes read
_CHUNK_BYTES = 256 * 1024


class FileNotThereError(ArcboxError):
    """The guest has no such file."""

    kind = ErrorKind.NOT_FOUND


async def read(request: agent_pb2.MmapReadFileRequest) -> agent_pb2.MmapReadFileResponse:
    """Read a part of a file through a mapping of it.

    Past the end of the file the answer is short. It is also short beyond 3 MiB, which is what a
    message can hold: who wants more asks again from where the answer ends. A length of 0 reads
    nothing. If it is cancelled, the child is killed.

    Raises:
        InvalidArgumentError: The path is not absolute or no plain file, or the length is beyond
            64 MiB.
        FileNotThereError: There is no such file.
        PreconditionError: The file cannot be mapped or read, or was cut short meanwhile.
        TooLateError: Its filesystem did not answer in time.
    """
    path = request.path
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgumentError(f"The path {path[:200]!r} is not absolute.")
    if request.length > MAX_LENGTH_BYTES:
        raise InvalidArgumentError(
            f"At most {MAX_LENGTH_BYTES} bytes can be read at once, not {request.length}."
        )
    length = min(request.length, MAX_ANSWER_BYTES)
    with mmap.mmap(-1, _RESULT.size + length) as shared:
        pid = os.fork()
        if pid == 0:
            _copy(path, request.offset, length, shared)
        code = await _wait(pid, path)
        number, is_plain, count = _RESULT.unpack_from(shared)
        _check(path, code, number, is_plain=bool(is_plain))
        data = shared[_RESULT.size : _RESULT.size + count]
    return agent_pb2.MmapReadFileResponse(data=data, bytes_read=count)


async def _wait(pid: int, path: str) -> int:
    """Wait for the child's end; return its exit code, negative for a signal."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    fd = os.pidfd_open(pid)
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(_READ_S):
            await ended.wait()
    except TimeoutError:
        raise TooLateError(
            f"Reading {path!r} took longer than {_READ_S:g} s.",
            hint="See whether the share that holds it still works.",
        ) from None
    finally:
        loop.remove_reader(fd)
        if ended.is_set():
            _, status = os.waitpid(pid, 0)  # noqa: ASYNC222  it has ended
        else:
            os.kill(pid, signal.SIGKILL)
            loop.add_reader(fd, _bury, loop, fd, pid)
            fd = -1
            status = 0
        if fd >= 0:
            os.close(fd)
    return os.waitstatus_to_exitcode(status)


def _bury(loop: asyncio.AbstractEventLoop, fd: int, pid: int) -> None:
    loop.remove_reader(fd)
    os.close(fd)
    os.waitpid(pid, 0)


def _check(path: str, code: int, number: int, *, is_plain: bool) -> None:
    if code == -signal.SIGBUS:
        raise PreconditionError(
            f"{path!r} was cut short while it was read, or its filesystem failed.",
            hint="Ask again; the guest's kernel log says if a disk or a share failed.",
        )
    if number in (errno.ENOENT, errno.ENOTDIR):
        raise FileNotThereError(f"The guest has no file {path!r}.")
    if number:
        raise PreconditionError(f"{path!r} cannot be read: {os.strerror(number)}.")
    if code != 0:
        raise PreconditionError(f"{path!r} cannot be read: the reading process ended with {code}.")
    if not is_plain:
        raise InvalidArgumentError(f"{path!r} is not a plain file.")


def _copy(path: str, offset: int, length: int, shared: mmap.mmap) -> NoReturn:
    """Copy from the file's mapping, in the child, which ends with it."""
    number = errno.EIO
    is_plain = 0
    count = 0
    try:
        # A FIFO would make `open` wait.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(fd)
        is_plain = int(stat.S_ISREG(found.st_mode))
        if is_plain:
            count = _copy_mapped(fd, offset, min(length, max(0, found.st_size - offset)), shared)
        number = 0
    except OSError as error:
        number = error.errno or number
    finally:
        _RESULT.pack_into(shared, 0, number, is_plain, count)
        os._exit(0)


def _copy_mapped(fd: int, offset: int, length: int, shared: mmap.mmap) -> int:
    if length == 0:
        return 0
    begin = offset % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(fd, begin + length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset - begin)
    for position in range(0, length, _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, length - position)
        start = _RESULT.size + position
        shared[start : start + size] = mapped[begin + position : begin + position + size]
    return length
