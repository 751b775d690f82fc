"""Which disk of the container runtime the store gives, and when it turns to another release."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from arcboxd.assets.apt import Apt, Package
from arcboxd.assets.cache import Cache
from arcboxd.assets.mirror import Mirror
from arcboxd.assets.runtime_bundle import IMAGE, PACKAGES
from arcboxd.assets.store import AssetStore, _runtime_inputs
from arcboxd.errors import AssetBuildError, UnsupportedError
from arcboxd.paths import Paths

ARCH = "x86_64"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "home", tmp_path / "cache")


def _store(paths: Paths) -> AssetStore:
    return AssetStore(paths, mirror=Mirror("http://mirror.test/", ""), suite="bookworm")


def _packages(version: str) -> dict[str, Package]:
    return {"docker.io": Package("docker.io", version, "docker.deb", 1, "f" * 64)}


def _pin(
    paths: Paths, suite: str, packages: dict[str, Package], names: Sequence[str] = PACKAGES
) -> None:
    pin = Apt(paths.assets / "apt", suite, ARCH).pin(names)
    pin.parent.mkdir(parents=True, exist_ok=True)
    pin.write_text(json.dumps([asdict(package) for package in packages.values()]))


async def _built(paths: Paths, packages: dict[str, Package]) -> Path:
    async def build(target: Path) -> None:
        (target / IMAGE).write_text("disk")

    entry = await Cache(paths.assets).ensure("runtime", _runtime_inputs(packages), build)
    return entry.file(IMAGE)


async def test_what_is_there_and_current_is_found(paths: Paths) -> None:
    store = _store(paths)
    assert store.find_runtime(ARCH) is None
    new, newer, old = _packages("26.1"), _packages("27.0"), _packages("20.10")
    images = [await _built(paths, packages) for packages in (new, old)]
    assert store.find_runtime(ARCH) is None
    _pin(paths, "bookworm", old)
    assert store.find_runtime(ARCH) == images[1]
    _pin(paths, "trixie", new)
    assert store.find_runtime(ARCH) == images[0]
    # After a refresh the older disks are not current any more, the other release's neither.
    _pin(paths, "trixie", newer)
    assert store.find_runtime(ARCH) is None
    assert store.find_runtime("aarch64") is None


async def test_a_release_without_keys_is_replaced_by_the_hosts(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    old = _packages("20.10")

    async def resolve(apt: Apt, *_names: object, **_options: object) -> dict[str, Package]:
        asked.append(apt.suite)
        if apt.suite == "trixie":
            raise AssetBuildError("E: The repository 'x trixie InRelease' is not signed.")
        return old

    monkeypatch.setattr(Apt, "resolve", resolve)
    image = await _built(paths, old)
    assert await _store(paths).runtime(ARCH, lambda *_: None) == image
    assert asked == ["trixie", "bookworm"]


async def test_a_mirror_out_of_reach_does_not_choose_the_version(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(apt: Apt, *_names: object, **_options: object) -> dict[str, Package]:
        assert apt.suite == "trixie"
        raise AssetBuildError("E: Failed to fetch: Unable to connect")

    monkeypatch.setattr(Apt, "resolve", resolve)
    with pytest.raises(AssetBuildError, match="connect"):
        await _store(paths).runtime(ARCH, lambda *_: None)


async def test_a_refresh_helps_when_the_mirror_lost_the_version_of_a_disk_that_is_gone(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pin(paths, "trixie", _packages("26.1"))
    newer = _packages("27.0")
    image = await _built(paths, newer)

    async def resolve(
        apt: Apt, names: Sequence[str], *, refresh: bool = False, **_options: object
    ) -> dict[str, Package]:
        if names != PACKAGES:
            return {}
        assert refresh
        _pin(paths, apt.suite, newer)
        return newer

    async def ensure(*_args: object) -> None:
        pass

    monkeypatch.setattr(Apt, "resolve", resolve)
    monkeypatch.setattr(AssetStore, "ensure", ensure)
    store = _store(paths)
    assert store.find_runtime(ARCH) is None
    assert (await store.refresh(ARCH, lambda *_: None))[1]
    assert store.find_runtime(ARCH) == image
    assert not (await store.refresh(ARCH, lambda *_: None))[1]


@pytest.mark.parametrize("error", [AssetBuildError("no mirror"), asyncio.CancelledError()])
async def test_a_refresh_that_fails_leaves_all_as_it_was(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    old = _packages("26.1")
    _pin(paths, "trixie", old)
    image = await _built(paths, old)

    async def resolve(apt: Apt, names: Sequence[str], **_options: object) -> dict[str, Package]:
        # The runtime comes last.
        _pin(paths, apt.suite, _packages("27.0"), names)
        return apt.pinned(names) or {}

    async def fetch(*_args: object) -> None:
        raise error

    monkeypatch.setattr(Apt, "resolve", resolve)
    monkeypatch.setattr(Apt, "fetch", fetch)
    store = _store(paths)
    with pytest.raises(type(error)):
        await store.refresh(ARCH, lambda *_: None)
    assert store.find_runtime(ARCH) == image
    (pin,) = (paths.assets / "apt").rglob("*.json")
    assert json.loads(pin.read_bytes())[0]["version"] == "26.1"


async def test_prune_takes_packages_that_no_pin_names(paths: Paths) -> None:
    old, new = ("docker-26.deb", "docker-27.deb")
    pinned = {"docker.io": Package("docker.io", "27", new, 1, "f" * 64)}
    for suite in ("trixie", "bookworm"):
        _pin(paths, suite, pinned)
        archives = paths.assets / "apt" / f"{suite}-amd64" / "archives"
        archives.mkdir()
        for name in (old, new):
            (archives / name).write_bytes(b"x" * 1000)
    # Where a pin cannot be read, nobody knows what is needed.
    (paths.assets / "apt" / "bookworm-amd64" / "pins" / "broken.json").write_text("{")
    assert await _store(paths).prune() == ([], 1000)
    left = sorted(str(p.relative_to(paths.assets / "apt")) for p in paths.assets.rglob("*.deb"))
    both = [f"bookworm-amd64/archives/{name}" for name in (old, new)]
    assert left == [*both, f"trixie-amd64/archives/{new}"]


async def test_other_architectures_are_refused(paths: Paths) -> None:
    with pytest.raises(UnsupportedError, match="riscv64"):
        await _store(paths).runtime("riscv64", lambda *_: None)
