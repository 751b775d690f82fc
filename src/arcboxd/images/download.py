"""Files from HTTP(S) servers: resumed where they broke off, used only if the digest is right."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arcboxd.domain.image import ProgressFn
from arcboxd.errors import CorruptError, ImageServerError
from arcboxd.images.part_file import PartFile, matches
from arcboxd.images.web import (
    PATIENCE,
    BrokenTransferError,
    Opener,
    Patience,
    Web,
    chunks,
    given_up,
    refusal,
    shown,
)

if TYPE_CHECKING:
    import httpx2

SIZE_MAX_BYTES = 64 << 30
"""Of any one file, whatever a server promises."""

RESTARTS_MAX = 3
"""How often what came is thrown away, because the rest of it is not to be had."""

_BUFFER_BYTES = 1 << 20
_GAIN_BYTES = 1 << 20
"""A try that got this much further does not count as a failure of the tries before it."""
_OK, _PARTIAL, _NO_SUCH_RANGE = 200, 206, 416
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


async def download(
    url: str,
    target: Path,
    *,
    sha256: str,
    size: int | None,
    progress: ProgressFn,
    what: str,
    opener: Opener | None = None,
    patience: Patience = PATIENCE,
) -> Path:
    """Get a file, and give ``target`` once all of it is there and its digest is right.

    It grows in ``NAME.part`` beside the target, from where an earlier call left it. Cancelled, that
    file stays for the next call, which hashes it again; of wrong data nothing stays.

    Args:
        url: An http or https address.
        target: The file to make; its directory exists. One that is there already and has the
            digest is taken as it is.
        sha256: The digest that it must have, in hexadecimal.
        size: The bytes that it must have; None when nobody promised a size.
        progress: Told of the bytes that came.
        what: What it is, for people.
        opener: Opens addresses; None for connections of this call's own.
        patience: How long the server may take, and how often it is asked again.

    Raises:
        CorruptError: The server gives something else than was promised.
        ImageNotFoundError: There is no such file.
        ImageServerError: The server does not answer, or never to the end.
        NoRoomError: The disk is full.
        PreconditionError: The server asks for a login, or another download is at that file.
        StoreError: The file cannot be written.

    Source: RFC 9110, sections 13.1.5 (If-Range) and 14 (Range, Content-Range).
    """
    if await asyncio.to_thread(matches, target, sha256):
        return target
    async with AsyncExitStack() as stack:
        if opener is None:
            opener = await stack.enter_async_context(Web(patience))
        part = PartFile(target)
        stack.callback(part.close)
        await _to_the_end(part.open)
        job = _Download(part, url, sha256, size, what, opener, patience, progress)
        try:
            await job.run()
        except CorruptError:
            part.delete()
            raise
        await _to_the_end(part.publish)
    return target


class _TooShortError(BrokenTransferError):
    """The body ended, without a broken connection, before the promised size."""


class _RangeError(Exception):
    """The server cannot go on where we were."""


class _MisfitError(Exception):
    """What came is not what was promised."""


@dataclass(slots=True)
class _Download:
    part: PartFile
    url: str
    sha256: str
    size: int | None
    what: str
    opener: Opener
    patience: Patience
    progress: ProgressFn
    etag: str = ""
    fresh: bool = False
    """All that came is of one answer. Of several, it may be of different files."""
    restarts: int = 0

    async def run(self) -> None:
        """Return once the file is whole and its digest right."""
        failures = 0
        if self.size is not None and self.part.size > self.size:
            await self._begin_anew("it has more bytes than were promised")
        while True:
            before = self.part.size
            try:
                if self.size is None or before != self.size:
                    await self._transfer()
                self._check()
                return
            except BrokenTransferError as error:
                failures = 1 if self.part.size - before >= _GAIN_BYTES else failures + 1
                if failures >= self.patience.tries:
                    if isinstance(error, _TooShortError):
                        raise self._wrong(str(error)) from error
                    raise given_up(self.url, self.what, error) from error
                await asyncio.sleep(self.patience.pause_s(failures, error.wait_s))
            except _RangeError as error:
                await self._begin_anew(str(error))
            except _MisfitError as error:
                if self.fresh or self.restarts == RESTARTS_MAX:
                    raise self._wrong(str(error)) from error
                await self._begin_anew(str(error))
                failures = 0

    def _check(self) -> None:
        if self.part.sha256 != self.sha256:
            raise _MisfitError("its digest is another one")

    async def _transfer(self) -> None:
        start, headers = self.part.size, {}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.etag:
                headers["If-Range"] = self.etag
        async with self.opener.open(self.url, headers) as response:
            if start and response.status_code in {_PARTIAL, _NO_SUCH_RANGE}:
                total = _total(response, start)
                self.fresh = False
            elif response.status_code == _OK:
                if start:
                    await self._begin_anew("the server sends the whole file each time")
                total = _length(response)
                self.fresh = True
            else:
                raise refusal(response, self.what)
            self.etag = _strong_etag(response)
            promised = total if self.size is None else self.size
            if total is not None and total != promised:
                raise _MisfitError(f"it has {total} bytes, not {promised}")
            await self._receive(response, promised)
        if promised is not None and self.part.size < promised:
            raise _TooShortError(f"it ended after {self.part.size} of {promised} bytes")

    async def _receive(self, response: httpx2.Response, promised: int | None) -> None:
        limit = min(SIZE_MAX_BYTES if promised is None else promised, SIZE_MAX_BYTES)
        buffer = bytearray()
        try:
            async with contextlib.aclosing(chunks(response, self.patience)) as parts:
                async for chunk in parts:
                    if self.part.size + len(buffer) + len(chunk) > limit:
                        raise _MisfitError(f"it has more than {limit} bytes")
                    buffer += chunk
                    if len(buffer) >= _BUFFER_BYTES:
                        data, buffer = buffer, bytearray()
                        await self._keep(data, promised)
        finally:
            await self._keep(buffer, promised)

    async def _keep(self, data: bytearray, promised: int | None) -> None:
        if data:
            await _to_the_end(lambda: self.part.write(data))
            self.progress(f"downloading {self.what}", self.part.size, promised or 0)

    async def _begin_anew(self, why: str) -> None:
        self.restarts += 1
        if self.restarts > RESTARTS_MAX:
            raise ImageServerError(
                f"cannot get {self.what} from {shown(self.url)}: {why}",
                hint="the server cannot resume, or changes the file; try again later",
            )
        await _to_the_end(self.part.empty)
        self.etag = ""

    def _wrong(self, why: str) -> CorruptError:
        return CorruptError(
            f"{self.what} from {shown(self.url)} is not what was promised: {why}",
            hint="nothing of it was kept; try again, or use another server",
        )


def _strong_etag(response: httpx2.Response) -> str:
    etag = response.headers.get("etag", "")
    return etag if etag.startswith('"') else ""


def _length(response: httpx2.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() else None


def _total(response: httpx2.Response, start: int) -> int | None:
    """Give the whole file's size, if the answer goes on at ``start`` and tells it."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code != _PARTIAL or match is None or int(match[1]) != start:
        raise _RangeError(f"the server does not go on at byte {start}")
    return None if match[3] == "*" else int(match[3])


async def _to_the_end(work: Callable[[], None]) -> None:
    """Run blocking work beside the loop; a cancelled call waits for it, since it uses the file."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        with contextlib.suppress(Exception):
            task.result()
        raise
