"""Faults of servers: whatever they do, a file is the promised one or there is none."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import random
import ssl
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd.errors import (
    ArcboxError,
    CorruptError,
    ImageNotFoundError,
    ImageServerError,
    InvalidArgumentError,
    PreconditionError,
)
from arcboxd.images import download as module
from arcboxd.images import part_file
from arcboxd.images.download import download
from arcboxd.images.part_file import PartFile
from arcboxd.images.web import Patience, Web
from tests.integration.images.servers import QUICK, Reply, Request, files, serving

BODY = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(BODY).hexdigest()
OTHER = BODY[:-1] + b"!"
HALF = len(BODY) // 2
ETAG = 'ETag: "one"'


class Case:
    """A download to a fresh directory."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "file"
        self.part = folder / "file.part"
        self.steps: list[tuple[str, int, int]] = []

    async def get(
        self, url: str, size: int | None = len(BODY), patience: Patience = QUICK
    ) -> bytes:
        path = await download(
            url,
            self.target,
            sha256=SHA256,
            size=size,
            progress=lambda *step: self.steps.append(step),
            what="the file",
            patience=patience,
        )
        assert path == self.target
        assert not self.part.exists()
        return path.read_bytes()

    async def fails(
        self, kind: type[ArcboxError], url: str, size: int | None = len(BODY), match: str = "."
    ) -> ArcboxError:
        with pytest.raises(kind, match=match) as caught:
            await self.get(url, size)
        assert type(caught.value) is kind
        assert not self.target.exists()
        if kind is CorruptError:
            assert not self.part.exists()
        return caught.value


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


async def test_a_file_comes_whole_with_progress(case: Case) -> None:
    async with serving(files({"/file": BODY})) as server:
        assert await case.get(f"{server.url}/file") == BODY
        assert case.steps[-1] == ("downloading the file", len(BODY), len(BODY))
        assert case.target.stat().st_mode & 0o777 == 0o600
        assert await case.get(f"{server.url}/file") == BODY
        assert len(server.requests) == 1


async def test_a_cut_is_resumed_where_it_was(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if request.start:
            end = min(request.start + HALF // 2, len(BODY))
            await reply.part(BODY, request.start, ETAG, end=end)
        else:
            await reply.head("200 OK", f"Content-Length: {len(BODY)}", ETAG)
            await reply.raw(BODY[:HALF])

    async with serving(handler) as server:
        assert await case.get(f"{server.url}/file") == BODY
        assert [r.start for r in server.requests] == [0, HALF, HALF + HALF // 2]
        assert server.requests[1].headers["if-range"] == '"one"'


@pytest.mark.parametrize(
    "content_range",
    [
        f"bytes 0-{len(BODY) - 1}/{len(BODY)}",
        f"bytes {HALF + 1}-{len(BODY) - 1}/{len(BODY)}",
        f"bytes {HALF}-{len(BODY) - 1}/{len(BODY) + 1}",
        "bytes */5",
        "chunks 1-2/3",
        "",
    ],
)
async def test_a_wrong_range_begins_anew(case: Case, content_range: str) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if request.start:
            body = OTHER[HALF:]
            length = f"Content-Length: {len(body)}"
            await reply.head("206 Partial", f"Content-Range: {content_range}", length)
            await reply.raw(body)
        elif len(server.requests) > 1:
            await reply.whole(BODY)
        else:
            await reply.head("200 OK", f"Content-Length: {len(BODY)}")
            await reply.raw(BODY[:HALF])

    async with serving(handler) as server:
        assert await case.get(f"{server.url}/file") == BODY
        assert [r.start for r in server.requests] == [0, HALF, 0]


async def test_a_file_that_changed_meanwhile_begins_anew(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if request.headers.get("if-range") == '"old"':
            await reply.whole(BODY, 'ETag: "new"')
        else:
            await reply.head("200 OK", f"Content-Length: {len(BODY)}", 'ETag: "old"')
            await reply.raw(OTHER[::-1][:HALF])

    async with serving(handler) as server:
        assert await case.get(f"{server.url}/file") == BODY
        assert len(server.requests) == 2


@pytest.mark.parametrize("tag", ['ETag: "new"', "X: y"])
async def test_a_changed_file_behind_a_server_that_ignores_if_range(case: Case, tag: str) -> None:
    # Its old half and its new half fit together, but for the digest.
    async def handler(request: Request, reply: Reply) -> None:
        if request.start:
            await reply.part(BODY, request.start, tag)
        elif len(server.requests) > 1:
            await reply.whole(BODY)
        else:
            await reply.head("200 OK", f"Content-Length: {len(BODY)}", 'ETag: "old"')
            await reply.raw(b"x" * HALF)

    async with serving(handler) as server:
        assert await case.get(f"{server.url}/file") == BODY
        assert [r.start for r in server.requests] == [0, HALF, 0]


async def test_a_server_that_never_sends_it_all_is_given_up(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.head("200 OK", f"Content-Length: {len(BODY)}")
        await reply.raw(BODY[:HALF])

    async with serving(handler) as server:
        await case.fails(ImageServerError, f"{server.url}/file")
        assert len(server.requests) <= QUICK.tries + module.RESTARTS_MAX


async def test_wrong_data_is_deleted_at_once(case: Case) -> None:
    async with serving(files({"/file": OTHER})) as server:
        error = await case.fails(CorruptError, f"{server.url}/file", match="digest")
        assert "nothing of it was kept" in error.hint
        assert len(server.requests) == 1


async def test_wrong_data_in_pieces_is_deleted_in_the_end(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if request.start:
            await reply.part(OTHER, request.start)
        else:
            await reply.head("200 OK", f"Content-Length: {len(BODY)}")
            await reply.raw(OTHER[:HALF])

    async with serving(handler) as server:
        await case.fails(CorruptError, f"{server.url}/file")


@pytest.mark.parametrize("body", [BODY + b"more", BODY[:-1]])
async def test_another_size_is_refused_before_the_body(case: Case, body: bytes) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.head("200 OK", f"Content-Length: {len(body)}")
        await asyncio.Event().wait()

    async with serving(handler) as server:
        await case.fails(CorruptError, f"{server.url}/file", match=str(len(body)))


async def test_an_endless_body_is_cut_at_the_promised_size(case: Case) -> None:
    sent = 0

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal sent
        await reply.head("200 OK")
        while True:
            await reply.raw(BODY)
            sent += len(BODY)

    async with serving(handler) as server:
        await case.fails(CorruptError, f"{server.url}/file", match="more than")
        assert len(server.requests) == 1


async def test_an_endless_body_without_a_promise_is_cut_too(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SIZE_MAX_BYTES", 1 << 20)

    async def handler(request: Request, reply: Reply) -> None:
        await reply.head("200 OK")
        while True:
            await reply.raw(BODY)

    async with serving(handler) as server:
        await case.fails(CorruptError, f"{server.url}/file", size=None)


async def test_a_body_without_a_length_that_ends_early_is_no_file(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.head("200 OK")
        await reply.raw(BODY[:HALF])

    async with serving(handler) as server:
        await case.fails(CorruptError, f"{server.url}/file", match="ended after")


async def test_a_size_need_not_be_promised(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if request.start:
            await reply.part(BODY, request.start)
        else:
            await reply.head("200 OK", f"Content-Length: {len(BODY)}")
            await reply.raw(BODY[:HALF])

    async with serving(handler) as server:
        assert await case.get(f"{server.url}/file", size=None) == BODY


async def test_trouble_of_the_server_passes(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        match len(server.requests):
            case 1:
                await reply.whole(b"", "Retry-After: 3600", status="503 Later")
            case 2:
                return
            case 3:
                await reply.raw(b"SSH-2.0-OpenSSH\r\n")
            case _:
                await reply.whole(BODY)

    async with serving(handler) as server:
        assert await case.get(f"{server.url}/file") == BODY


async def test_lasting_trouble_is_reported_and_what_came_is_kept(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if request.start:
            await reply.whole(b"", status="500 Oh")
        else:
            await reply.head("200 OK", f"Content-Length: {len(BODY)}")
            await reply.raw(BODY[:HALF])

    async with serving(handler) as server:
        error = await case.fails(ImageServerError, f"{server.url}/file", match="500")
        assert error.hint
        assert len(server.requests) == QUICK.tries
        assert case.part.read_bytes() == BODY[:HALF]


async def test_nobody_there(case: Case) -> None:
    async with serving(files({})) as server:
        gone = server.url
    await case.fails(ImageServerError, f"{gone}/file")


@pytest.mark.parametrize("drip", [b"", b"x"])
async def test_a_stall_is_not_waited_for(case: Case, drip: bytes) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if len(server.requests) > 1:
            await reply.part(BODY, request.start)
            return
        await reply.head("200 OK", f"Content-Length: {len(BODY)}")
        for byte in BODY:
            await reply.raw(bytes([byte])[: len(drip)])
            await asyncio.sleep(0.02)

    async with serving(handler) as server:
        patience = replace(QUICK, stall_s=0.3)
        if not drip:  # nothing came, so all is asked for anew
            with pytest.raises(ImageServerError):
                await case.get(f"{server.url}/file", patience=replace(patience, tries=1))
        else:
            assert await case.get(f"{server.url}/file", patience=patience) == BODY


async def test_a_header_that_drips_is_not_waited_for(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        while True:
            await reply.raw(b"H")
            await asyncio.sleep(0.02)

    async with serving(handler) as server:
        patience = replace(QUICK, tries=1, connect_s=0.2, stall_s=0.2)
        with pytest.raises(ImageServerError, match="too long"):
            await case.get(f"{server.url}/file", patience=patience)


async def test_redirects_are_followed(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if request.path == "/file":
            await reply.whole(b"", "Location: b?secret=1", status="302 There")
        else:
            await files({"/b?secret=1": BODY})(request, reply)

    async with serving(handler) as server:
        assert await case.get(f"{server.url}/file") == BODY


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/file", "data:text/plain,x", "http://[::1"],
)
async def test_a_redirect_to_elsewhere_is_refused(case: Case, target: str) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.whole(b"", f"Location: {target}", status="302 There")

    async with serving(handler) as server:
        await case.fails(ImageServerError, f"{server.url}/file")
        assert len(server.requests) == 1


async def test_a_ring_of_redirects_ends(case: Case) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.whole(b"", "Location: /file", status="302 There")

    async with serving(handler) as server:
        await case.fails(ImageServerError, f"{server.url}/file", match="times")


async def test_https_never_becomes_http(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*argv, "-keyout", key, "-out", cert], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)

    async def handler(request: Request, reply: Reply) -> None:
        if request.path == "/file":
            await reply.whole(BODY)
        else:
            await reply.whole(b"", f"Location: {plain.url}/file", status="302 There")

    async with serving(files({"/file": BODY})) as plain, serving(handler, tls) as server:
        await case.fails(ImageServerError, f"{server.url}/file", match="prove who it is")
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        await case.fails(ImageServerError, f"{server.url}/away", match="https to http")
        assert plain.requests == []
        assert await case.get(f"{server.url}/file") == BODY


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("404 No", ImageNotFoundError),
        ("410 Gone", ImageNotFoundError),
        ("403 No", PreconditionError),
        ("418 Pot", ImageServerError),
        ("206 Unasked", ImageServerError),
    ],
)
async def test_a_refusal_is_not_asked_again(
    case: Case, status: str, kind: type[ArcboxError]
) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.whole(BODY, status=status)

    async with serving(handler) as server:
        await case.fails(kind, f"{server.url}/file")
        assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/etc/passwd", "http://"])
async def test_other_addresses_are_refused(case: Case, url: str) -> None:
    await case.fails(InvalidArgumentError, url)


async def test_a_cancelled_download_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUFFER_BYTES", 1000)
    target, part, begun = tmp_path / "file", tmp_path / "file.part", asyncio.Event()

    async def handler(request: Request, reply: Reply) -> None:
        if request.start:
            await reply.part(BODY, request.start)
            return
        await reply.head("200 OK", f"Content-Length: {len(BODY)}")
        await reply.raw(BODY[:HALF])
        await asyncio.Event().wait()

    async def get() -> Path:
        def progress(_: str, __: int, ___: int) -> None:
            begun.set()

        return await download(
            f"{server.url}/file",
            target,
            sha256=SHA256,
            size=len(BODY),
            progress=progress,
            what="the file",
            patience=QUICK,
        )

    async with serving(handler) as server:
        task = asyncio.ensure_future(get())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not target.exists()
        came = part.read_bytes()
        assert came == BODY[: len(came)]
        assert (await get()).read_bytes() == BODY
        assert server.requests[-1].start == len(came) > 0


@pytest.mark.parametrize(
    "old", [b"x" * HALF, OTHER, BODY + b"more", BODY], ids=["half", "whole", "longer", "right"]
)
async def test_an_old_part_is_never_trusted(case: Case, old: bytes) -> None:
    case.part.write_bytes(old)
    async with serving(files({"/file": BODY})) as server:
        assert await case.get(f"{server.url}/file") == BODY
        assert bool(server.requests) == (old != BODY)


async def test_a_wrong_target_is_replaced(case: Case) -> None:
    case.target.write_bytes(OTHER)
    async with serving(files({"/file": BODY})) as server:
        assert await case.get(f"{server.url}/file") == BODY


async def test_two_downloads_do_not_mix(case: Case) -> None:
    held = PartFile(case.target)
    held.open()
    async with serving(files({"/file": BODY})) as server:
        await case.fails(PreconditionError, f"{server.url}/file", match="another download")
        held.close()
        assert await case.get(f"{server.url}/file") == BODY


def test_a_part_that_was_finished_meanwhile_is_not_written_to(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        if not case.target.exists():
            case.part.rename(case.target)  # as the download does that had the lock
        flock(fd, operation)

    case.part.write_bytes(BODY)
    monkeypatch.setattr(fcntl, "flock", late)
    part = PartFile(case.target)
    part.open()
    part.write(b"more")
    part.close()
    assert case.target.read_bytes() == BODY
    assert case.part.read_bytes() == b"more"


async def test_a_part_is_let_go_when_its_reading_is_cancelled(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    hashed = part_file._hashed

    def slowly(fd: int) -> object:
        begun.set()
        assert go_on.wait(10)
        return hashed(fd)

    case.part.write_bytes(BODY[:HALF])
    monkeypatch.setattr(part_file, "_hashed", slowly)
    async with serving(files({"/file": BODY})) as server:
        task = asyncio.ensure_future(case.get(f"{server.url}/file"))
        assert await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await case.get(f"{server.url}/file") == BODY


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_a_server_does_only_the_promised_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(module, "_BUFFER_BYTES", 4096)
    chance = random.Random(seed)  # noqa: S311
    body = BODY[: 64 << 10]

    async def handler(request: Request, reply: Reply) -> None:
        served = bytearray(body)
        if chance.random() < 0.3:
            served[chance.randrange(len(served))] ^= 1
        cut = chance.randrange(len(served)) if chance.random() < 0.7 else None
        tag = f'ETag: "{chance.randrange(2)}"'
        match chance.randrange(6):
            case 0 if request.start:
                await reply.part(bytes(served), chance.randrange(len(served)), tag)
            case 1:
                await reply.whole(b"", status="503 Later")
            case 2:
                await reply.head("200 OK", tag)
                await reply.raw(bytes(served)[:cut])
            case _ if request.start:
                await reply.part(bytes(served), request.start, tag, end=cut)
            case _:
                await reply.head("200 OK", f"Content-Length: {len(served)}", tag)
                await reply.raw(bytes(served)[:cut])

    target = tmp_path / "file"
    async with serving(handler) as server, Web(QUICK) as web:
        for _ in range(8):
            with contextlib.suppress(CorruptError, ImageServerError):
                await download(
                    f"{server.url}/file",
                    target,
                    sha256=hashlib.sha256(body).hexdigest(),
                    size=len(body),
                    progress=lambda *_: None,
                    what="the file",
                    opener=web,
                    patience=QUICK,
                )
            assert not target.exists() or target.read_bytes() == body
            target.unlink(missing_ok=True)


async def test_a_proxy_that_cannot_be_used_is_named(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("socks5://127.0.0.1:1", "gopher://127.0.0.1:1", "http://[::1"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        await case.fails(PreconditionError, "http://images.invalid/file", match="proxy")


async def test_a_part_that_is_a_link_is_not_followed(case: Case, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    case.part.symlink_to(precious)
    async with serving(files({"/file": BODY})) as server:
        with pytest.raises(ArcboxError):
            await case.get(f"{server.url}/file")
    assert precious.read_text() == "mine"


async def test_passwords_are_sent_and_never_shown(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def handler(request: Request, reply: Reply) -> None:
        await reply.whole(b"", status="404 No")

    async with serving(handler) as server:
        url = server.url.replace("http://", "http://me:s3cret@") + "/file?token=s3cret"
        error = await case.fails(ImageNotFoundError, url)
        assert server.requests[0].headers["authorization"].startswith("Basic ")
        assert "s3cret" not in f"{error} {error.hint} {caplog.text}"


async def test_the_environments_proxy_is_used(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    async def proxy(request: Request, reply: Reply) -> None:
        assert request.path == "http://images.invalid/file"
        await reply.whole(BODY)

    async with serving(proxy) as server, serving(files({"/file": BODY})) as direct:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert await case.get("http://images.invalid/file") == BODY
        case.target.unlink()
        assert await case.get(f"{direct.url}/file") == BODY
        assert len(server.requests) == 1
