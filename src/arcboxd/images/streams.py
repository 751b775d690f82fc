"""Compressed files as streams that are read once, with memory, size and ratio bounded."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from arcboxd.errors import CorruptError
from arcboxd.images.limits import Limits
from arcboxd.process import CommandError, reading, tool

CHUNK_BYTES = 1 << 20
_XZ_MEMORY_BYTES = 256 << 20
_ZSTD_MEMORY_MIB = 256

_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Slice(io.RawIOBase):
    """A part of a file, read at its own pace; the file's position is left alone."""

    def __init__(self, file: BinaryIO, begin: int, size: int) -> None:
        """Read ``size`` bytes from ``begin`` on."""
        self.file = file
        self.begin = begin
        self.size = size
        self._at = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as there is something left."""
        data = os.pread(
            self.file.fileno(), min(len(buffer), self.size - self._at), self.begin + self._at
        )
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        """Tell how much has been read."""
        return self._at

    def head(self, count: int) -> bytes:
        """Give the first bytes, without moving."""
        return os.pread(self.file.fileno(), min(count, self.size), self.begin)


def whole(file: BinaryIO) -> Slice:
    """Give all of a file."""
    return Slice(file, 0, os.fstat(file.fileno()).st_size)


def compression(head: bytes) -> str:
    """Name how a file is compressed, by its first bytes; empty: not, as far as we know."""
    return next((name for magic, name in _MAGICS if head.startswith(magic)), "")


class Stream:
    """Unpacked bytes, each given once."""

    def __init__(self, raw: _Readable, limits: Limits, packed: Callable[[], int]) -> None:
        """Read from ``raw``; ``packed`` tells how much of the source that took so far."""
        self._raw = raw
        self._limits = limits
        self._packed = packed
        self._digest = hashlib.sha256()
        self.at = 0

    def read(self, count: int) -> bytes:
        """Give the next bytes: less than ``count`` only at the end, where it gives none.

        Raises:
            CorruptError: The source cannot be unpacked.
            UnsafeImageError: It unpacks to more than an image may hold.
        """
        parts: list[bytes] = []
        while count:
            try:
                data = self._raw.read(min(count, CHUNK_BYTES))
            except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
                raise CorruptError(f"the image cannot be unpacked: {error}") from error
            if not data:
                break
            parts.append(data)
            count -= len(data)
            self.at += len(data)
            self._digest.update(data)
            self._limits.check_ratio(self._packed(), self.at)
            self._limits.check_total(self.at)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def exactly(self, count: int) -> bytes:
        """Give so many bytes.

        Raises:
            CorruptError: There are fewer, or the source cannot be unpacked.
        """
        data = self.read(count)
        if len(data) != count:
            raise CorruptError("the archive ends in the middle of a file")
        return data

    def chunks(self, count: int) -> Iterator[bytes]:
        """Give so many bytes, piece by piece.

        Raises:
            CorruptError: There are fewer, or the source cannot be unpacked.
        """
        while count:
            data = self.exactly(min(count, CHUNK_BYTES))
            count -= len(data)
            yield data

    def drain(self) -> str:
        """Read to the end, and give the SHA-256 of all that was read."""
        while self.read(CHUNK_BYTES):
            pass
        return self._digest.hexdigest()


@contextlib.contextmanager
def opened(source: Slice, scratch: Path, limits: Limits) -> Iterator[Stream]:
    """Unpack a file as it is read, by what its first bytes say it is.

    Args:
        source: The file.
        scratch: A directory for a copy, which zstd needs of a part of a file.
        limits: What it may come to.

    Raises:
        CorruptError: It cannot be unpacked.
        MissingToolError: The host has no zstd.
    """
    plain = io.BufferedReader(source, CHUNK_BYTES)
    match compression(source.head(8)):
        case "gzip":
            raw: _Readable = gzip.GzipFile(fileobj=plain)
        case "xz":
            raw = _Unpacked(plain, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES))
        case "bzip2":
            raw = _Unpacked(plain, bz2.BZ2Decompressor)
        case "zstd":
            with _zstd(source, plain, scratch) as (raw, packed):
                yield Stream(raw, limits, packed)
            return
        case _:
            # Nothing to multiply: a ratio of one.
            raw = plain
    yield Stream(raw, limits, source.tell)


@contextlib.contextmanager
def _zstd(
    source: Slice, plain: BinaryIO, scratch: Path
) -> Iterator[tuple[_Readable, Callable[[], int]]]:
    copy = scratch / "layer.zst"
    with copy.open("w+b") as file:
        while data := plain.read(CHUNK_BYTES):
            file.write(data)
        file.flush()
        file.seek(0)
        copy.unlink()
        argv = [tool("zstd"), "-dcq", f"--memory={_ZSTD_MEMORY_MIB}MB"]
        try:
            with reading(argv, file) as out:
                yield out, lambda: source.size
        except CommandError as error:
            raise CorruptError(f"the image cannot be unpacked: {error}") from error


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Unpacked:
    """Streams of xz or bzip2, one after the other; unlike lzma's own file with a memory limit."""

    def __init__(self, source: BinaryIO, fresh: Callable[[], _Decompressor]) -> None:
        self._source = source
        self._fresh = fresh
        self._unpacker = fresh()

    def read(self, count: int, /) -> bytes:
        while True:
            if self._unpacker.eof:
                rest = self._unpacker.unused_data.lstrip(b"\0") or self._source.read(CHUNK_BYTES)
                if not rest.strip(b"\0"):
                    return b""
                self._unpacker = self._fresh()
            else:
                rest = self._source.read(CHUNK_BYTES) if self._unpacker.needs_input else b""
                if not rest and self._unpacker.needs_input:
                    raise EOFError("it ends too early")
            if data := self._unpacker.decompress(rest, count):
                return data


def read_all(source: Slice, limit: int, what: str) -> bytes:
    """Give all of a small file.

    Raises:
        CorruptError: It is larger than ``limit``, or shorter than it should be.
    """
    if source.size > limit:
        raise CorruptError(f"{what} is larger than {limit} bytes")
    data = source.head(source.size)
    if len(data) != source.size:
        raise CorruptError(f"{what} ends too early")
    return data


def stamp_of(found: os.stat_result) -> str:
    """Tell a file from any other, and from itself once it has been written to."""
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def sha256(source: Slice) -> str:
    """Give the digest of a file."""
    digest = hashlib.sha256()
    for at in range(0, source.size, CHUNK_BYTES):
        size = min(CHUNK_BYTES, source.size - at)
        digest.update(os.pread(source.file.fileno(), size, source.begin + at))
    return digest.hexdigest()
