"""Files and trees, copied into a machine and out of it by tar through Exec. No mount is needed."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from arcboxd.client import archive
from arcboxd.client.client import Client
from arcboxd.domain.guest import (
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecSpec,
    StdinData,
    StdinEnd,
)
from arcboxd.errors import ArcboxError, CorruptError, NoRoomError, PreconditionError

_BUSYBOX = "/run/arcbox/bundle/bin/busybox"
_FACTS = f"""
for path; do
  link=0
  if [ -L "$path" ]; then link=1; fi
  if [ -d "$path" ]; then echo dir $link $({_BUSYBOX} stat -L -c '%u %g' "$path")
  elif [ -e "$path" ] || [ $link = 1 ]; then echo file $link 0 0
  else echo none 0 0 0; fi
done
"""
_MAX_SAID = 2000
_MESSAGE_BYTES = 64 << 10
_MAX_FILL_BYTES = 1 << 20
_LOST = ExecExit(1, "nobody said how it ended")

Report = Callable[[int, int], None]
"""Called with the bytes that are copied, and those that there are in all (0: not known)."""


@dataclass(frozen=True, slots=True)
class _Fact:
    """What is somewhere in a guest."""

    kind: str
    """``dir``, ``file`` or ``none``; that of a link is that of what it leads to."""
    is_link: bool
    owner: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be copied."""

    path: str
    is_folder: bool
    contents: bool
    """Not itself is meant, but what is in it."""

    @property
    def name(self) -> str:
        """Give the name that it has where it is."""
        return posixpath.basename(posixpath.normpath(self.path))


def place(source: Source, target: str, *, there: str, above: str) -> tuple[str, str]:
    """Tell which directory a copy goes into, and what it is called there: nothing for contents.

    Args:
        source: What is copied.
        target: Where to.
        there: What is there: ``dir``, ``file`` or ``none``.
        above: What is there one level up.

    Raises:
        PreconditionError: It cannot go there.
    """
    if there == "dir":
        return target, "" if source.contents else source.name
    if there == "file" and source.is_folder:
        raise PreconditionError(f"cannot copy the directory {source.path} over the file {target}")
    if target.endswith("/") and (there == "file" or not source.is_folder):
        raise PreconditionError(f"cannot copy to {target}: there is no such directory")
    if above != "dir":
        raise PreconditionError(f"cannot copy to {target}: there is no directory {_parent(target)}")
    return _parent(target), posixpath.basename(target.rstrip("/"))


def copy_in(
    client: Client,
    ref: str,
    source: str,
    target: str,
    *,
    report: Report,
    skipped: archive.Skipped,
) -> None:
    """Copy a file or a tree of the host into a running machine.

    As ``cp -r`` has it: into the target if that is a directory, else as that name; a source that
    ends in ``/.`` stands for what is in it. It all belongs to whom the directory belongs that it
    is put into. Modes, links and times (in seconds) are kept.

    Args:
        client: A connection to the daemon.
        ref: The machine.
        source: A path of the host.
        target: An absolute path in the guest.
        report: Told how far it is.
        skipped: Told what was left out, and why.

    Raises:
        PreconditionError: The one or the other path is not there, or cannot be what it would be.
        NoRoomError: The machine's disk is full.
        ArcboxError: The machine does not run, or its agent was lost.
    """
    if _kind(source) == "none":
        raise PreconditionError(f"cannot copy {source}: there is no such file")
    is_link = Path(source).is_symlink()
    what = _source(source, is_folder=_kind(source) == "dir", is_link=is_link)
    if what.is_folder:
        # A link that ends in a slash is what it leads to; and '..' has no name of its own.
        what = replace(what, path=os.path.realpath(source))
    path = Path(what.path)
    there, above = _facts(client, ref, target, _parent(target))
    folder, name = place(what, target, there=there.kind, above=above.kind)
    owner = there.owner if there.kind == "dir" else above.owner
    total, sent = archive.size_bytes(path), 0

    def inputs() -> Iterator[ExecInput]:
        nonlocal sent
        for piece in _joined(archive.pack(path, name, owner, skipped)):
            yield StdinData(piece)
            sent += len(piece)
            report(min(sent, total), total)
        yield StdinEnd()

    argv = (_BUSYBOX, "tar", "-x", "-p", "-f", "-", "-C", folder)
    with client.exec(ref, ExecSpec(argv=argv, user="root", stdin=True), inputs()) as call:
        said, ended = _collect(call.outputs())
    if ended.code:
        raise _failed(ref, ended, said)


def copy_out(
    client: Client,
    ref: str,
    source: str,
    target: str,
    *,
    report: Report,
    skipped: archive.Skipped,
) -> None:
    """Copy a file or a tree out of a running machine.

    By the same rules as `copy_in`; it all belongs to whoever calls this. Nothing that the machine
    sends is written outside of the target.

    Raises:
        PreconditionError: The one or the other path is not there, or cannot be what it would be.
        NoRoomError: The host's disk is full.
        CorruptError: The machine sends what is no archive, or would be written elsewhere.
        ArcboxError: The machine does not run, or its agent was lost.
    """
    (there,) = _facts(client, ref, source)
    if there.kind == "none":
        raise PreconditionError(f"cannot copy {source}: machine {ref!r} has no such file")
    what = _source(source, is_folder=there.kind == "dir", is_link=there.is_link)
    if Path(target).is_symlink() and not target.endswith("/"):
        target = os.path.realpath(target)
    folder, name = place(what, target, there=_kind(target), above=_kind(_parent(target, ".")))
    if what.is_folder:
        argv = _tar(source, "")
    else:
        argv = _tar(posixpath.dirname(source), posixpath.basename(source))
    with client.exec(ref, ExecSpec(argv=argv, user="root")) as call:
        output = _Output(call.outputs())
        done = 0
        try:
            counts = archive.unpack(output, Path(folder), name, skipped, tree=what.is_folder)
            for count in counts:
                done += count
                report(done, 0)
            output.finish()
        except CorruptError:
            if output.ended.code and output.ended != _LOST:
                raise _failed(ref, output.ended, bytes(output.said)) from None
            raise
        except OSError as error:
            raise _cannot_write(target, error) from error
    if output.ended.code:
        raise _failed(ref, output.ended, bytes(output.said))


class _Output:
    """What a program writes, piece by piece; then what it said besides, and how it ended."""

    def __init__(self, outputs: Iterator[ExecOutput]) -> None:
        self.said = bytearray()
        self.ended = _LOST
        self._outputs = outputs

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        for output in self._outputs:
            if isinstance(output, ExecExit):
                self.ended = output
            elif output.stream == "stdout":
                return output.data
            else:
                self.said += output.data[: _MAX_SAID - len(self.said)]
        raise StopIteration

    def finish(self) -> None:
        """Take what fills the last record of the stream.

        Raises:
            CorruptError: It goes on for too long.
        """
        left = _MAX_FILL_BYTES
        for piece in self:
            left -= len(piece)
            if left < 0:
                raise CorruptError("the machine sends more after the end of its files")


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Put small pieces together: each message has its price."""
    ready = bytearray()
    for piece in pieces:
        ready += piece
        if len(ready) >= _MESSAGE_BYTES:
            yield bytes(ready)
            ready.clear()
    if ready:
        yield bytes(ready)


def _source(path: str, *, is_folder: bool, is_link: bool) -> Source:
    contents = path == "." or path.endswith("/.")
    plain = contents or path.endswith("/") or not path.strip("/")
    if plain and not is_folder:
        raise PreconditionError(f"cannot copy {path}: there is no such directory")
    return Source(path, is_folder and (plain or not is_link), contents or not path.strip("/"))


def _parent(path: str, otherwise: str = "/") -> str:
    return posixpath.dirname(path.rstrip("/")) or ("/" if path.startswith("/") else otherwise)


def _kind(path: str) -> str:
    if Path(path).is_dir():
        return "dir"
    return "file" if os.path.lexists(path) else "none"


def _tar(folder: str, name: str) -> tuple[str, ...]:
    # Never a name that begins with a dash.
    return (_BUSYBOX, "tar", "-c", "-f", "-", "-C", folder or "/", f"./{name}")


def _facts(client: Client, ref: str, *paths: str) -> list[_Fact]:
    """Ask what is at some places in a guest."""
    argv = (_BUSYBOX, "sh", "-c", _FACTS, "sh", *paths)
    with client.exec(ref, ExecSpec(argv=argv, user="root")) as call:
        said, ended = _collect(call.outputs())
    found = [line.split() for line in said.decode(errors="replace").splitlines()]
    try:
        if ended.code or len(found) != len(paths):
            raise ValueError  # noqa: TRY301
        return [_Fact(kind, link == "1", (int(uid), int(gid))) for kind, link, uid, gid in found]
    except ValueError:
        raise _failed(ref, ended, said) from None


def _collect(outputs: Iterator[ExecOutput]) -> tuple[bytes, ExecExit]:
    """Take what a program says, its beginning, and how it ended."""
    said = bytearray()
    ended = _LOST
    for output in outputs:
        if isinstance(output, ExecExit):
            ended = output
        else:
            said += output.data[: _MAX_SAID - len(said)]
    return bytes(said), ended


def _failed(ref: str, ended: ExecExit, said: bytes) -> ArcboxError:
    text = ended.reason or said.decode(errors="replace").strip() or f"status {ended.code}"
    if os.strerror(errno.ENOSPC) in text:
        return NoRoomError(f"the disk of machine {ref!r} is full: {text}")
    return PreconditionError(f"not all was copied; tar in machine {ref!r} says: {text}")


def _cannot_write(target: str, error: OSError) -> ArcboxError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoRoomError(f"there is no room on this side for {target}: {error.strerror}")
    return PreconditionError(f"cannot write to {target}: {error.strerror}")
