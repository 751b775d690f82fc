"""Pulling images from a registry that may do anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcboxd.errors import (
    ArcboxError,
    CorruptError,
    ImageNotFoundError,
    ImageServerError,
    InvalidArgumentError,
    PreconditionError,
    UnsupportedError,
)
from arcboxd.images.registry import pull
from tests.integration.images.images import Image, digest_of, layer
from tests.integration.images.servers import QUICK, Handler, Reply, Request, Server, serving

LAYERS = [layer("a", b"one"), layer("b", b"two" * 5000), layer("c", b"three")]


def registry(image: Image, tags: dict[str, str]) -> dict[str, tuple[str, bytes]]:
    """Give what a registry with one repository answers, by path."""
    found = {f"/v2/team/app/blobs/{d}": ("x/y", data) for d, data in image.blobs.items()}
    for name, digest in (*tags.items(), *((d, d) for d in image.manifests)):
        found[f"/v2/team/app/manifests/{name}"] = image.manifests[digest]
    return found


def answering(content: dict[str, tuple[str, bytes]]) -> Handler:
    async def handler(request: Request, reply: Reply) -> None:
        kind, body = content.get(request.path, ("", b""))
        if not kind:
            await reply.whole(b"{}", status="404 Not Found")
        elif request.start:
            await reply.part(body, request.start)
        else:
            await reply.whole(body, f"Content-Type: {kind}")

    return handler


def simple(
    changes: dict[str, Any] | None = None,
) -> tuple[Image, dict[str, tuple[str, bytes]]]:
    image = Image()
    digest = image.add("amd64", LAYERS, changes)
    return image, registry(image, {"1": digest})


async def get(server: Server, target: Path, name: str = "team/app:1", arch: str = "x86_64") -> Path:
    host = server.url.removeprefix("http://")
    return await pull(f"{host}/{name}", arch, target, lambda *_: None, patience=QUICK)


def check_layout(path: Path, arch: str, layers: list[bytes]) -> None:
    """Read a layout as any reader would, and find the very image in it and nothing else."""
    assert json.loads((path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((path / "index.json").read_bytes())
    blobs = {f"sha256:{p.name}": p.read_bytes() for p in (path / "blobs" / "sha256").iterdir()}
    assert all(digest_of(data) == digest for digest, data in blobs.items())
    (entry,) = index["manifests"]
    assert entry["platform"] == {"os": "linux", "architecture": arch}
    manifest = json.loads(blobs[entry["digest"]])
    assert entry["size"] == len(blobs[entry["digest"]])
    assert json.loads(blobs[manifest["config"]["digest"]])["architecture"] == arch
    assert [blobs[part["digest"]] for part in manifest["layers"]] == layers
    assert len(blobs) == 2 + len({*layers})


@pytest.mark.parametrize("docker", [False, True])
async def test_the_image_of_the_architecture_is_pulled(tmp_path: Path, *, docker: bool) -> None:
    image = Image(docker)
    there = {"amd64": image.add("amd64", LAYERS), "arm64": image.add("arm64", LAYERS[:1] * 2)}
    steps: list[tuple[str, int, int]] = []
    async with serving(answering(registry(image, {"1": image.index(there)}))) as server:
        check_layout(await get(server, tmp_path / "x"), "amd64", LAYERS)
        host = server.url.removeprefix("http://")
        await pull(
            f"{host}/team/app:1",
            "aarch64",
            tmp_path / "a",
            lambda *step: steps.append(step),
            patience=QUICK,
        )
        check_layout(tmp_path / "a", "arm64", LAYERS[:1] * 2)
        assert steps[-1][1] == steps[-1][2] > 0
        # A directory that held another image holds this one alone.
        check_layout(await get(server, tmp_path / "a"), "amd64", LAYERS)
        name = f"team/app@{there['arm64']}"
        check_layout(await get(server, tmp_path / "d", name, "aarch64"), "arm64", LAYERS[:1] * 2)


async def test_a_pull_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    _, content = simple()
    lost = f"/v2/team/app/blobs/{digest_of(LAYERS[1])}"
    async with serving(answering({k: v for k, v in content.items() if k != lost})) as server:
        with pytest.raises(ImageNotFoundError):
            await get(server, tmp_path)
    assert not (tmp_path / "index.json").exists()
    blobs = tmp_path / "blobs" / "sha256"
    (blobs / f"{digest_of(LAYERS[1])[7:]}.part").write_bytes(LAYERS[1][:50])
    async with serving(answering(content)) as server:
        check_layout(await get(server, tmp_path), "amd64", LAYERS)
        assert [r.start for r in server.requests if r.path == lost] == [50]


def _corrupt_manifest(image: Image, content: dict[str, tuple[str, bytes]]) -> None:
    digest = next(iter(image.manifests))
    kind, data = image.manifests[digest]
    content["/v2/team/app/manifests/1"] = image.manifests[image.index({"amd64": digest})]
    content[f"/v2/team/app/manifests/{digest}"] = kind, data + b" "


def _corrupt_blob(number: int) -> Callable[[Image, dict[str, tuple[str, bytes]]], None]:
    def change(image: Image, content: dict[str, tuple[str, bytes]]) -> None:
        digest = list(image.blobs)[number]
        data = image.blobs[digest]
        content[f"/v2/team/app/blobs/{digest}"] = "x/y", data[:-1] + bytes([data[-1] ^ 1])

    return change


def _longer_blob(image: Image, content: dict[str, tuple[str, bytes]]) -> None:
    digest = digest_of(LAYERS[0])
    content[f"/v2/team/app/blobs/{digest}"] = "x/y", LAYERS[0] + b"x"


@pytest.mark.parametrize(
    "change",
    [_corrupt_manifest, _corrupt_blob(0), _corrupt_blob(1), _corrupt_blob(3), _longer_blob],
)
async def test_wrong_data_is_never_kept(
    tmp_path: Path, change: Callable[[Image, dict[str, tuple[str, bytes]]], None]
) -> None:
    image, content = simple()
    change(image, content)
    async with serving(answering(content)) as server:
        with pytest.raises(CorruptError):
            await get(server, tmp_path)
    assert not (tmp_path / "index.json").exists()
    for path in (tmp_path / "blobs" / "sha256").iterdir():
        whole = path.suffix != ".part"
        assert not whole or hashlib.sha256(path.read_bytes()).hexdigest() == path.name


FOREIGN = {
    "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "digest": digest_of(LAYERS[0]),
    "size": len(LAYERS[0]),
    "urls": ["http://127.0.0.1:1/x"],
}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"layers": [FOREIGN]}, UnsupportedError),
        ({"schemaVersion": 1}, UnsupportedError),
        ({"manifests": []}, CorruptError),
        ({"layers": "x"}, CorruptError),
    ],
)
async def test_odd_manifests_are_refused(
    tmp_path: Path, changes: dict[str, Any], kind: type[ArcboxError]
) -> None:
    _, content = simple(changes)
    async with serving(answering(content)) as server:
        with pytest.raises(kind):
            await get(server, tmp_path)
        assert len(server.requests) == 1


async def test_an_index_in_an_index_is_refused(tmp_path: Path) -> None:
    image = Image()
    inner = image.index({"amd64": image.add("amd64", LAYERS)})
    kind, data = image.manifests[inner]
    image.manifests[inner] = "application/vnd.oci.image.manifest.v1+json", data
    outer = image.index({"amd64": inner})
    image.manifests[inner] = kind, data
    async with serving(answering(registry(image, {"1": outer}))) as server:
        with pytest.raises(CorruptError, match="index"):
            await get(server, tmp_path)


async def test_no_such_image_tag_or_architecture(tmp_path: Path) -> None:
    _, content = simple()
    async with serving(answering(content)) as server:
        for name in ("team/other:1", "team/app:2", f"team/app@sha256:{'0' * 64}"):
            with pytest.raises(ImageNotFoundError):
                await get(server, tmp_path, name)
        with pytest.raises(ImageNotFoundError) as caught:
            await get(server, tmp_path, arch="aarch64")
        assert caught.value.hint == "there is: amd64"
        with pytest.raises(UnsupportedError):
            await get(server, tmp_path, arch="riscv64")
        with pytest.raises(InvalidArgumentError):
            await get(server, tmp_path, "Team/app")


def guarded(content: dict[str, tuple[str, bytes]], *, scheme: str = "Bearer") -> Handler:
    """A registry that wants a token, given to those who log in as me:pw."""
    login = f"Basic {base64.b64encode(b'me:pw').decode()}"
    allowed = "Bearer t0ken" if scheme == "Bearer" else login

    async def handler(request: Request, reply: Reply) -> None:
        url = f"http://{request.headers['host']}"
        authorization = request.headers.get("authorization", "")
        if request.path.startswith("/token"):
            assert request.path == "/token?service=reg&scope=repository%3Ateam%2Fapp%3Apull"
            if authorization == login:
                await reply.whole(b'{"token": "t0ken"}')
            else:
                await reply.whole(b"{}", status="401 Who")
        elif authorization != allowed:
            challenge = f'{scheme} realm="{url}/token",service="reg",scope="repository:x:*"'
            await reply.whole(b"{}", f"WWW-Authenticate: {challenge}", status="401 Who")
        else:
            await answering(content)(request, reply)

    return handler


def log_in(tmp_path: Path, host: str, word: bytes = b"me:pw") -> None:
    folder = tmp_path / "docker"
    folder.mkdir(exist_ok=True)
    auths = {host: {"auth": base64.b64encode(word).decode()}}
    (folder / "config.json").write_text(json.dumps({"auths": auths}))


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
async def test_a_private_image_is_pulled_with_dockers_login(tmp_path: Path, scheme: str) -> None:
    _, content = simple()
    async with serving(guarded(content, scheme=scheme)) as server:
        host = server.url.removeprefix("http://")
        with pytest.raises(PreconditionError) as caught:
            await get(server, tmp_path / "x")
        assert f"docker login {host}" in caught.value.hint
        log_in(tmp_path, host, b"me:wrong")
        with pytest.raises(PreconditionError):
            await get(server, tmp_path / "x")
        log_in(tmp_path, host)
        server.requests.clear()
        check_layout(await get(server, tmp_path / "x"), "amd64", LAYERS)
        tokens = [path for path in server.paths if path.startswith("/token")]
        assert len(tokens) == (1 if scheme == "Bearer" else 0)


async def test_a_token_goes_to_its_registry_alone(tmp_path: Path) -> None:
    _, content = simple()

    async def redirecting(request: Request, reply: Reply) -> None:
        if "/blobs/" in request.path and request.headers.get("authorization") == "Bearer t0ken":
            where = f"Location: {elsewhere.url}{request.path}"
            await reply.whole(b"", where, status="307 There")
        else:
            await guarded(content)(request, reply)

    async with serving(answering(content)) as elsewhere, serving(redirecting) as server:
        log_in(tmp_path, server.url.removeprefix("http://"))
        check_layout(await get(server, tmp_path / "x"), "amd64", LAYERS)
        assert len(elsewhere.requests) == 1 + len(LAYERS)
        assert not any("authorization" in r.headers for r in elsewhere.requests)


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "ftp://127.0.0.1/x", "", "x"])
async def test_a_token_is_not_fetched_from_anywhere(tmp_path: Path, realm: str) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        challenge = f'WWW-Authenticate: Bearer realm="{realm}"'
        await reply.whole(b"{}", challenge, status="401 Who")

    async with serving(handler) as server:
        with pytest.raises(ImageServerError, match="https"):
            await get(server, tmp_path)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b'{"token": 7}', b'{"token": "a\\r\\nX: y"}', b'{"token": ""}']
)
async def test_no_token(tmp_path: Path, answer: bytes) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        if request.path.startswith("/token"):
            await reply.whole(answer)
            return
        challenge = f'WWW-Authenticate: Bearer realm="http://{request.headers["host"]}/token"'
        await reply.whole(b"{}", challenge, status="401 Who")

    async with serving(handler) as server:
        with pytest.raises(CorruptError):
            await get(server, tmp_path)
