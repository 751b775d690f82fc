"""Which images there are, by which names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from arcboxd.errors import (
    InvalidArgumentError,
    MissingToolError,
    PreconditionError,
    UnsupportedError,
)
from arcboxd.images import debian
from arcboxd.images.store import ImageStore, canonical_arch
from arcboxd.paths import Paths


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(Paths(tmp_path / "home", tmp_path / "cache"))


@pytest.mark.parametrize(
    ("distro", "version", "arch"),
    [
        ("", "", "x86_64"),
        ("debian", "12", "amd64"),
        ("Debian", "Bookworm", "x86_64"),
    ],
)
def test_names(store: ImageStore, distro: str, version: str, arch: str) -> None:
    assert store.resolve(distro, version, arch) == ("debian", "bookworm")


def test_what_is_unknown_is_told_with_what_is_known(store: ImageStore) -> None:
    with pytest.raises(InvalidArgumentError, match="'plan9'") as distro:
        store.resolve("plan9", "", "x86_64")
    assert "debian" in distro.value.hint
    with pytest.raises(InvalidArgumentError, match="'7'") as version:
        store.resolve("debian", "7", "x86_64")
    assert "bookworm" in version.value.hint
    with pytest.raises(InvalidArgumentError, match="'vax'"):
        store.resolve("debian", "", "vax")
    with pytest.raises(UnsupportedError, match="arm64"):
        store.resolve("debian", "", "arm64")


def test_arch_aliases() -> None:
    assert canonical_arch("ARM64") == canonical_arch("aarch64") == "aarch64"


async def test_nothing_is_there_at_first(store: ImageStore) -> None:
    assert await store.get("0" * 32) is None
    assert await store.get("../../etc") is None
    assert await store.list() == ()


async def test_an_image_that_is_there_is_found_again(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def build(*_args: object, target: Path, **_more: object) -> None:
        (target / "root.img").write_bytes(b"ext4")

    monkeypatch.setattr(debian, "build_debian", build)
    monkeypatch.setattr("arcboxd.images.store.host_mirror", _no_mirror)
    steps: list[str] = []
    image = await store.ensure("", "", "amd64", lambda step, _done, _total: steps.append(step))
    assert (image.distro, image.version, image.arch) == ("debian", "bookworm", "x86_64")
    assert image.path.read_bytes() == b"ext4"
    assert await store.get(image.key) == image
    assert await store.list() == (image,)


async def _no_mirror(_suite: str) -> None:
    return None


def test_the_log_tells_the_step() -> None:
    assert debian.step_of("") == 0
    log = "I: automatically chosen format: directory\nI: running apt-get update...\n"
    assert debian.step_of(log) == 1
    log += "I: downloading packages with apt...\nI: extracting archives...\n"
    assert debian.step_of(log) == 3
    assert debian.step_of(log + "I: arcbox: packing\n") == len(debian._STEPS)


def test_a_user_without_subordinate_ids_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(debian, "_has_subordinate_ids", lambda _table: False)
    with pytest.raises((PreconditionError, MissingToolError)) as error:
        debian.namespace_command()
    assert "uid" in error.value.hint


def test_the_script_parses() -> None:
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-n"], input=debian.script(), check=True)
