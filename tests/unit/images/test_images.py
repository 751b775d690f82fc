"""Which images there are, by which names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from arcboxd.assets.mirror import Mirror, host_arch
from arcboxd.domain.image import NewImage
from arcboxd.errors import (
    AssetBuildError,
    ImageNotFoundError,
    InvalidArgumentError,
    MissingToolError,
    PreconditionError,
    UnsupportedError,
)
from arcboxd.images import debian
from arcboxd.images.names import canonical_arch
from arcboxd.images.second_stage import SecondStage
from arcboxd.images.store import ImageStore
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


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (("debian", "13"), ("debian", "trixie")),
        (("ubuntu", ""), ("ubuntu", "noble")),
        (("ubuntu", "22.04"), ("ubuntu", "jammy")),
        (("Alpine", "3.23"), ("alpine", "3.23")),
        (("alpine", ""), ("alpine", "")),
        (("oci:alpine", ""), ("oci:docker.io/library/alpine:latest", "")),
        (("oci:127.0.0.1:5000/a/b:1", ""), ("oci:127.0.0.1:5000/a/b:1", "")),
    ],
)
def test_canonical_names(store: ImageStore, asked: tuple[str, str], given: tuple[str, str]) -> None:
    assert store.resolve(*asked, "x86_64") == given
    # What is recorded with a machine is asked for again.
    assert store.resolve(*given, "x86_64") == given


def test_what_is_unknown_is_told_with_what_is_known(store: ImageStore) -> None:
    for name in ("../etc", "a b", "-x", "x" * 33, "oci:", "oci:A B", "/root.tar"):
        with pytest.raises(InvalidArgumentError) as distro:
            store.resolve(name, "", "x86_64")
        assert distro.value.hint
    for wrong in ("../1", "a b", "x" * 65):
        with pytest.raises(InvalidArgumentError, match="version"):
            store.resolve("alpine", wrong, "x86_64")
    with pytest.raises(InvalidArgumentError, match="part of its reference"):
        store.resolve("oci:alpine", "3", "x86_64")
    with pytest.raises(InvalidArgumentError, match="'7'") as version:
        store.resolve("debian", "7", "x86_64")
    assert "bookworm" in version.value.hint
    with pytest.raises(InvalidArgumentError, match="'vax'"):
        store.resolve("debian", "", "vax")
    assert store.resolve("debian", "", "arm64") == store.resolve("", "12", "amd64")


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


async def _no_mirror(_suite: str) -> Mirror:
    return Mirror("http://debian.invalid/debian", "")


async def test_what_no_source_has(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="plan9") as error:
        await store.ensure("plan9", "4", "x86_64", lambda _step, _done, _total: None)
    assert "arcbox image" in error.value.hint
    with pytest.raises(PreconditionError, match="Ubuntu"):
        await store.ensure("ubuntu", "", "x86_64", lambda _step, _done, _total: None)


async def test_an_import_may_not_take_a_distribution_s_name(store: ImageStore) -> None:
    for name in ("debian", "ubuntu", "Mine", "oci:x"):
        with pytest.raises(InvalidArgumentError):
            await store.import_file(NewImage("/etc/hosts", name), lambda _s, _d, _t: None)


def test_the_log_tells_the_step() -> None:
    assert debian.step_of("")[1:] == (0, 7)
    log = "I: automatically chosen format: directory\nI: running apt-get update...\n"
    assert debian.step_of(log)[1:] == (1, 7)
    log += "I: downloading packages with apt...\n"
    assert debian.step_of(log + "I: extracting archives...\n")[1:] == (3, 7)
    assert debian.step_of(log + "I: arcbox: packing\n")[1:] == (7, 7)


def test_the_log_of_a_foreign_image_counts_its_packages() -> None:
    log = "I: arcbox: unpacking\nUnpacking a (1) ...\nUnpacking b (1) ...\n"
    assert debian.step_of(log, foreign=True)[1:] == (3, 7)
    log += "I: arcbox: packing\nI: arcbox: configuring\r\nSetting up b (1) ...\r\n"
    assert debian.step_of(log, foreign=True)[1:] == (1, 2)
    assert debian.step_of(log + "I: arcbox: finished\r\n", foreign=True)[1:] == (7, 7)


@pytest.fixture
def foreign() -> str:
    return "aarch64" if host_arch() == "x86_64" else "x86_64"


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("last", ["I: arcbox: finished", "E: arcbox: not finished"])
async def test_a_foreign_image_is_finished_in_a_machine_of_its_own(
    tmp_path: Path, foreign: str, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    booted: list[str] = []

    class Assets:
        async def second_stage(self, _arch: str, _progress: object) -> tuple[Path, Path]:
            return Path("/kernel"), Path("/initramfs")

    async def run_guest(arch: str, *, disk: Path, console: Path, **_more: object) -> None:
        booted.append(arch)
        disk.write_bytes(b"configured")
        console.write_text(f"dpkg: error processing package x\r\n{last}\r\n")

    _program(tmp_path, "mmdebstrap", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(debian, "namespace_command", list)
    # Stands for the whole of the build script, which only says for whom it builds.
    monkeypatch.setattr(debian, "_script", lambda _name: 'echo "$7" >"$3/root.img"')
    target = tmp_path / "target"
    target.mkdir()
    build = debian.build_debian(
        "bookworm",
        foreign,
        sources="",
        debs=tmp_path / "debs",
        target=target,
        progress=lambda _step, _done, _total: None,
        second_stage=SecondStage(Assets(), run_guest),  # type: ignore[arg-type]
    )
    if last.startswith("E:"):
        with pytest.raises(AssetBuildError, match="error processing package x"):
            await build
    else:
        await build
        assert [path.name for path in target.iterdir()] == ["root.img"]
        assert (target / "root.img").read_bytes() == b"configured"
    assert booted == [foreign]


async def test_without_a_machine_no_foreign_image_is_built(
    store: ImageStore, foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcboxd.images.store.host_mirror", _no_mirror)
    with pytest.raises(UnsupportedError, match=foreign):
        await store.ensure("debian", "", foreign, lambda _step, _done, _total: None)


def test_a_user_without_subordinate_ids_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(debian, "_has_subordinate_ids", lambda _table: False)
    with pytest.raises((PreconditionError, MissingToolError)) as error:
        debian.namespace_command()
    assert "uid" in error.value.hint


def test_the_script_parses() -> None:
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell is not None
    for name in ("debian-build.sh", "debian-settings.sh", "debian-configure.sh"):
        subprocess.run([shell, "-n"], input=debian._script(name).encode(), check=True)
