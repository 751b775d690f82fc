"""Push to and pull from Debian's `docker-registry`, unpacked from its package, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from arcboxd.assets.apt import Apt, unpack
from arcboxd.errors import ImageNotFoundError
from arcboxd.images.registry import pull
from arcboxd.paths import Paths
from tests.integration.images.images import Image, layer, push
from tests.integration.images.servers import QUICK
from tests.integration.images.test_registry import check_layout

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

PACKAGE = "docker-registry"
LAYERS = [layer("a", b"one"), layer("b", b"two" * 2_000_000), layer("c", b"three")]


async def program(paths: Paths, folder: Path) -> Path:
    if installed := shutil.which(PACKAGE):
        return Path(installed)
    apt = Apt(paths.assets / "apt", "bookworm", "x86_64")
    package = (await apt.resolve([PACKAGE]))[PACKAGE]
    await unpack((await apt.fetch([package])).values(), folder)
    return folder / "usr" / "bin" / PACKAGE


@contextlib.contextmanager
def running(binary: Path, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, "serve", config], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def registry(folder: Path) -> AsyncIterator[str]:
    binary = await program(Paths.of(), folder)
    with running(binary, folder) as url:
        async with httpx2.AsyncClient() as client, asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if (await client.get(f"{url}/v2/")).status_code == 200:
                        break
                await asyncio.sleep(0.05)  # it tells nobody that it listens
        yield url


async def test_images_come_back_as_they_were_pushed(tmp_path: Path) -> None:
    target = tmp_path / "layout"
    async with registry(tmp_path) as url:
        host = url.removeprefix("http://")
        for docker, name in ((False, "team/oci"), (True, "docker")):
            image = Image(docker)
            amd64, arm64 = image.add("amd64", LAYERS), image.add("arm64", LAYERS[:1])
            both = image.index({"amd64": amd64, "arm64": arm64})
            await push(image, url, name, {"1": both, "only-arm": arm64})
            for reference, arch, layers in (
                (f"{host}/{name}:1", "x86_64", LAYERS),
                (f"{host}/{name}:1", "aarch64", LAYERS[:1]),
                (f"{host}/{name}@{amd64}", "x86_64", LAYERS),
                (f"{host}/{name}:only-arm", "aarch64", LAYERS[:1]),
            ):
                await pull(reference, arch, target, lambda *_: None, patience=QUICK)
                check_layout(target, {"x86_64": "amd64"}.get(arch, "arm64"), layers)
            for missing in (f"{host}/{name}:2", f"{host}/no/such", f"{host}/{name}:only-arm"):
                with pytest.raises(ImageNotFoundError):
                    await pull(missing, "x86_64", target, lambda *_: None, patience=QUICK)


async def test_a_layer_is_resumed(tmp_path: Path) -> None:
    image = Image()
    digest = image.add("amd64", LAYERS)
    async with registry(tmp_path) as url:
        await push(image, url, "app", {"latest": digest})
        part = max(image.blobs.items(), key=lambda blob: len(blob[1]))
        blobs = tmp_path / "layout" / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        (blobs / f"{part[0].removeprefix('sha256:')}.part").write_bytes(part[1][:1000])
        steps: list[tuple[str, int, int]] = []
        name = f"{url.removeprefix('http://')}/app"
        await pull(name, "x86_64", blobs.parents[1], lambda *s: steps.append(s), patience=QUICK)
        check_layout(blobs.parents[1], "amd64", LAYERS)
