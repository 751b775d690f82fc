"""Images from a real registry and from an image server: fetched once, then used as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from arcboxd.assets.ext4_tools import ImageTools, ImageToolStore
from arcboxd.domain.image import NewImage
from arcboxd.errors import ImageNotFoundError, UnsafeImageError
from arcboxd.images import simplestreams
from arcboxd.images.simplestreams import Fetched
from arcboxd.images.store import ImageStore, Origins
from arcboxd.paths import Paths
from tests.integration.images.images import Image, push
from tests.integration.images.test_real_registry import registry
from tests.integration.imports.makers import archive, member, system

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    tools = await ImageToolStore(Paths.of(), "x86_64").ensure(_quiet)

    async def ensure(*_args: object) -> ImageTools:
        return tools

    monkeypatch.setattr("arcboxd.assets.ext4_tools.ImageToolStore.ensure", ensure)
    origins = Origins(servers=("https://images.invalid",))
    return ImageStore(Paths(tmp_path / "home", tmp_path / "cache"), origins)


def _quiet(_step: str, _done: int, _total: int) -> None: ...


def _add(image: Image, layers: list[bytes]) -> str:
    diffs = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diffs}}
    kind = "application/vnd.oci.image.config.v1+json"
    return image.add("amd64", layers, {"config": image.blob(json.dumps(config).encode(), kind)})


async def test_from_a_registry(store: ImageStore, tmp_path: Path) -> None:
    first, second = Image(), Image()
    layers = [system(member("old/x", data=b"x")), archive(member(".wh.old"))]
    async with registry(tmp_path) as url:
        await push(first, url, "team/test", {"1": _add(first, layers)})
        name = f"oci:{url.removeprefix('http://')}/team/test:1"
        image = await store.ensure(name, "", "amd64", _quiet)
        assert (image.distro, image.version, image.source) == (name, "1.2", "oci")
        # Another image takes the tag: what is here is used until someone pulls.
        changed = [layers[0].replace(b"1.2", b"1.3")]
        await push(second, url, "team/test", {"1": _add(second, changed)})
        assert await store.ensure(name, "", "amd64", _quiet) == image
        newer = await store.pull(name, "", "", _quiet)
        assert (newer.version, await store.find(name, "", "amd64")) == ("1.3", newer)
        with pytest.raises(ImageNotFoundError):
            await store.ensure(f"{name}x", "", "amd64", _quiet)
        # What is refused is not kept either.
        evil = Image()
        layers = [system(member("../x", data=b"x"))]
        await push(evil, url, "team/evil", {"1": _add(evil, layers)})
        with pytest.raises(UnsafeImageError, match="upwards"):
            await store.ensure(name.replace("/test", "/evil"), "", "amd64", _quiet)
    # The registry is gone, and the image is not.
    assert await store.ensure(name, "", "amd64", _quiet) == newer
    assert not [*(tmp_path / "cache" / "images" / "downloads").glob("*/blobs/sha256/*")]


async def test_from_an_image_server(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    async def fetch(
        _servers: object,
        distro: str,
        version: str,
        arch: str,
        target: Path,
        *_more: object,
        **_others: object,
    ) -> Fetched:
        asked.append((distro, version))
        target.mkdir(parents=True, exist_ok=True)
        path = target / "root.tar.xz"
        path.write_bytes(system())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Fetched(path, "tar", distro, "3.23", arch, "20260101", digest)

    monkeypatch.setattr(simplestreams, "fetch", fetch)
    image = await store.ensure("alpine", "edge-alias", "amd64", _quiet)
    assert (image.version, image.source) == ("3.23", "simplestreams")
    # By its own name, by the alias, and as the newest, without another question.
    for version in ("3.23", "edge-alias", ""):
        assert await store.ensure("alpine", version, "amd64", _quiet) == image
    assert asked == [("alpine", "edge-alias")]
    assert await store.pull("alpine", "3.23", "amd64", _quiet) == image
    assert asked[1:] == [("alpine", "3.23")]
    assert not [*(tmp_path / "cache" / "images" / "downloads").glob("*")]
    await store.remove(image)
    assert await store.find("alpine", "edge-alias", "amd64") is None


async def test_an_import_comes_before_the_servers(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(system())
    image = await store.import_file(NewImage(str(tmp_path / "root.tar"), "alpine"), _quiet)
    assert await store.ensure("alpine", "", "x86_64", _quiet) == image
    assert await store.pull("alpine", "", "x86_64", _quiet) == image
