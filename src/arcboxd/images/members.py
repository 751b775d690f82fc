"""What a tar archive holds, member by member: a strict reader for archives of strangers.

Python's own `tarfile` takes a damaged header in the middle for the end, and reads extended headers
of any size into memory; of it we use the header's fields alone.

Source: POSIX.1-2017, pax; tar(5) of libarchive for GNU's long names.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from arcboxd.errors import CorruptError, UnsafeImageError
from arcboxd.images.limits import DEPTH, LINK_BYTES, NAME_BYTES, Limits
from arcboxd.images.streams import Stream

_BLOCK = 512
_EXTENDED_BYTES = 1 << 20
_XATTR = "SCHILY.xattr."
_CAPABILITY = "security.capability"
_CAPABILITY_BYTES = 64
"""What the kernel takes has 24 at most (capability.h, vfs_ns_cap_data)."""
_MAX_ID = 0xFFFFFFFE

_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
}
_REFUSED = {
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    b"M": "a part of a file from another volume",
}


@dataclass(slots=True)
class Member:
    """A member whose name, kind and owner have been checked."""

    parts: tuple[str, ...]
    """The names on its path; none for the root itself."""
    kind: str
    """``file``, ``directory``, ``symlink`` or ``hardlink``."""
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    link: str
    xattrs: dict[str, str] = field(default_factory=dict)


def members(stream: Stream, limits: Limits) -> Iterator[Member]:
    """Give the members in their order; a file's content is read from ``stream`` meanwhile or not.

    Raises:
        CorruptError: The archive is damaged, or ends too early.
        UnsafeImageError: A member is of a kind, or has a name, that no image needs.
    """
    extended: dict[str, str] = {}
    everywhere: dict[str, str] = {}
    count = 0
    while (header := _header(stream)) is not None:
        info = _parsed(header)
        match info.type:
            case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE:
                extended.update(_records(_extension(stream, info)))
                continue
            case tarfile.XGLTYPE:
                everywhere.update(_records(_extension(stream, info)))
                continue
            case tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text(_extension(stream, info).rstrip(b"\0"))
                continue
            case tarfile.GNUTYPE_LONGLINK:
                extended["linkpath"] = _text(_extension(stream, info).rstrip(b"\0"))
                continue
            case _:
                pass
        count += 1
        limits.check_members(count)
        member = _member(info, {**everywhere, **extended})
        extended = {}
        end = stream.at + -(-member.size // _BLOCK) * _BLOCK
        yield member
        for _ in stream.chunks(end - stream.at):
            pass
    if extended:
        raise CorruptError("the archive ends after the name of a file that is not there")


def split(name: str, what: str = "the name") -> tuple[str, ...]:
    """Give the parts of a name in an archive; ``./`` and doubled slashes go.

    Raises:
        UnsafeImageError: It is absolute, leads upwards, or no file may have such a name.
    """
    if name.startswith("/"):
        raise UnsafeImageError(f"{what} {name[:80]!r} in the image is absolute")
    if "\0" in name or "\n" in name:
        raise UnsafeImageError(f"{what} {name[:80]!r} in the image has a newline or a NUL")
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in parts:
        raise UnsafeImageError(f"{what} {name[:80]!r} in the image leads upwards")
    if len(parts) > DEPTH:
        raise UnsafeImageError(f"{what} {name[:80]!r}… in the image has more than {DEPTH} parts")
    if any(len(part.encode(errors="surrogateescape")) > NAME_BYTES for part in parts):
        raise UnsafeImageError(f"{what} {name[:80]!r}… in the image is longer than a name may be")
    return parts


def _header(stream: Stream) -> bytes | None:
    begin = stream.at
    block = stream.read(_BLOCK)
    if not block and begin == 0:
        return None  # an empty layer
    if len(block) < _BLOCK:
        raise CorruptError("the archive ends too early")
    return block if block.strip(b"\0") else None


def _parsed(header: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise CorruptError(f"the archive is damaged: {error}") from error
    if info.size < 0:
        raise CorruptError("the archive is damaged: a size is negative")
    return info


def _extension(stream: Stream, info: tarfile.TarInfo) -> bytes:
    if info.size > _EXTENDED_BYTES:
        raise UnsafeImageError(f"a header in the archive is larger than {_EXTENDED_BYTES} bytes")
    return stream.exactly(-(-info.size // _BLOCK) * _BLOCK)[: info.size]


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """Read ``LENGTH KEY=VALUE`` lines; a value may be of any bytes."""
    at = 0
    while at < len(data):
        match = re.compile(rb"(\d{1,8}) ").match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise CorruptError("the archive is damaged: an extended header has no such form")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals:
            raise CorruptError("the archive is damaged: an extended header has no such form")
        yield _text(key), _text(value)
        at = end


def _member(info: tarfile.TarInfo, extended: dict[str, str]) -> Member:
    name = extended.get("path", info.name)
    if any(key.startswith("GNU.sparse.") for key in extended):
        info.type = tarfile.GNUTYPE_SPARSE
    if (kind := _KINDS.get(info.type)) is None:
        what = _REFUSED.get(info.type, "of a kind that no image needs")
        raise UnsafeImageError(
            f"{name[:80]!r} in the image is {what}",
            hint="make the archive without it: /dev is the kernel's, and pipes and sockets are"
            " made by those who use them",
        )
    if kind == "file" and name.endswith("/"):
        kind = "directory"  # as archives older than POSIX say it
    link = extended.get("linkpath", info.linkname) if kind.endswith("link") else ""
    if kind.endswith("link") and (
        not link
        or len(link.encode(errors="surrogateescape")) > LINK_BYTES
        or {"\0", "\n"} & {*link}
    ):
        raise UnsafeImageError(f"the link {name[:80]!r} in the image leads nowhere")
    member = Member(
        parts=split(name),
        kind=kind,
        mode=info.mode & 0o7777,
        uid=_number(extended, "uid", info.uid),
        gid=_number(extended, "gid", info.gid),
        mtime=max(0, min(_number(extended, "mtime", int(info.mtime)), (1 << 33) - 1)),
        size=_number(extended, "size", info.size) if kind == "file" else 0,
        link=link,
        xattrs=_xattrs(extended, name),
    )
    if not 0 <= member.uid <= _MAX_ID or not 0 <= member.gid <= _MAX_ID or member.size < 0:
        raise CorruptError(f"the archive is damaged: owner or size of {name[:80]!r} cannot be")
    if not member.parts and kind != "directory":
        raise UnsafeImageError("the root of the image is no directory")
    return member


def _number(extended: dict[str, str], key: str, otherwise: int) -> int:
    if key not in extended:
        return otherwise
    match = re.fullmatch(r"(-?\d{1,19})(\.\d*)?", extended[key])
    if match is None:
        raise CorruptError(f"the archive is damaged: {key} is {extended[key][:40]!r}")
    return int(match[1])


def _xattrs(extended: dict[str, str], name: str) -> dict[str, str]:
    """Keep a program's capabilities, as mke2fs does; labels and overlays are of other kernels."""
    value = extended.get(f"{_XATTR}{_CAPABILITY}")
    if value is None:
        return {}
    if len(value) > _CAPABILITY_BYTES:
        raise UnsafeImageError(f"{name[:80]!r} in the image has capabilities that cannot be")
    return {_CAPABILITY: value}


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
