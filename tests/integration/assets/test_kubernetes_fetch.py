"""k3s from a server on loopback: resumed, checked, and refused when it is another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from arcboxd.assets.mirror import Mirror
from arcboxd.assets.store import AssetStore
from arcboxd.errors import CorruptError, ImageNotFoundError
from arcboxd.kubernetes.distribution import Pin, load
from arcboxd.machines.kubernetes_disk import fetch
from arcboxd.paths import Paths
from tests.integration.images.servers import Reply, Request, files, serving
from tests.unit.assets.test_kubernetes_bundle import elf

ARCH = "x86_64"
K3S = elf().ljust(4096, b"\0") + bytes(range(256)) * 4096
SHA256 = hashlib.sha256(K3S).hexdigest()
PLACE = "/v1.30.0%2Bk3s1/k3s"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "home", tmp_path / "cache")


def pinned(paths: Paths, url: str, sha256: str = SHA256) -> Pin:
    paths.home.mkdir(exist_ok=True)
    paths.kubernetes.write_text(
        f'[k3s]\nversion = "v1.30.0+k3s1"\nurl = "{url}/{{version}}/{{file}}"\n'
        f'[k3s.x86_64]\nfile = "k3s"\nsha256 = "{sha256}"\n'
    )
    return load(paths.kubernetes, ARCH)


def _store(paths: Paths) -> AssetStore:
    return AssetStore(paths, mirror=Mirror("http://mirror.invalid", ""), suite="bookworm")


async def test_it_is_fetched_once(paths: Paths) -> None:
    steps: list[str] = []
    async with serving(files({PLACE: K3S})) as server:
        pin = pinned(paths, server.url)
        image = await _store(paths).kubernetes(ARCH, pin, fetch, lambda s, *_: steps.append(s))
        assert await _store(paths).kubernetes(ARCH, pin, fetch, lambda *_: None) == image
        assert server.paths == [PLACE]
    assert K3S in image.read_bytes()
    assert list(dict.fromkeys(steps)) == ["downloading Kubernetes", "packing k3s"]


async def test_it_goes_on_where_it_broke_off(paths: Paths) -> None:
    async def broken(request: Request, reply: Reply) -> None:
        if request.start:
            await reply.part(K3S, request.start, 'ETag: "one"')
        else:
            await reply.head("200 OK", f"Content-Length: {len(K3S)}", 'ETag: "one"')
            await reply.raw(K3S[: len(K3S) // 2])

    async with serving(broken) as server:
        pin = pinned(paths, server.url)
        image = await _store(paths).kubernetes(ARCH, pin, fetch, lambda *_: None)
        assert [request.start for request in server.requests] == [0, len(K3S) // 2]
    assert K3S in image.read_bytes()


async def test_another_program_is_refused_and_nothing_of_it_stays(paths: Paths) -> None:
    async with serving(files({PLACE: K3S[:-1] + b"!"})) as server:
        pin = pinned(paths, server.url)
        with pytest.raises(CorruptError, match="digest"):
            await _store(paths).kubernetes(ARCH, pin, fetch, lambda *_: None)
    assert list((paths.assets / "downloads").iterdir()) == []
    assert _store(paths).find_kubernetes(ARCH, pin) is None


async def test_a_version_that_is_not_there_is_said(paths: Paths) -> None:
    async with serving(files({})) as server:
        pin = pinned(paths, server.url)
        with pytest.raises(ImageNotFoundError):
            await _store(paths).kubernetes(ARCH, pin, fetch, lambda *_: None)
