"""What is taken of Debian's packages for the container runtime, and what is refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from arcboxd.assets.apt import Package
from arcboxd.assets.runtime_bundle import (
    _CNI,
    _PROGRAMS,
    cannot_be_had,
    choose,
    gather,
    upstream_version,
)
from arcboxd.errors import AssetBuildError

# As apt-get of Debian 12 said it.
_KEYS = "E: The repository 'http://mirror.test/debian trixie-updates InRelease' is not signed."
_GONE = "E: The repository 'http://mirror.test/debian trixie Release' does not have a Release file."
_DOWN = "E: Failed to fetch http://mirror.test/debian/dists/trixie/InRelease  Unable to connect"


@pytest.mark.parametrize(("words", "expected"), [(_KEYS, True), (_GONE, True), (_DOWN, False)])
def test_only_a_release_that_cannot_be_had_is_given_up(words: str, expected: bool) -> None:
    assert cannot_be_had(AssetBuildError(f"apt-get update failed: {words}")) is expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.7.24~ds1-6+deb13u1", "1.7.24"),
        ("26.1.5+dfsg1-9+deb13u1", "26.1.5"),
        ("1:1.1.1+ds1-3+b17", "1.1.1"),
        ("2025b-1", "2025"),
        ("unknown", "unknown"),
    ],
)
def test_versions_lose_what_debian_added(version: str, expected: str) -> None:
    assert upstream_version(version) == expected


def test_what_only_package_scripts_need_is_not_fetched() -> None:
    names = ("runc", "dpkg", "libc6", "zlib1g", "adduser", "libssl3t64")
    resolved = {name: Package(name, "1", name, 1, "") for name in names}
    assert [p.name for p in choose(resolved)] == ["libc6", "libssl3t64", "runc", "zlib1g"]


def _unpacked(scratch: Path) -> None:
    """Lay out what `gather` looks for, each program a copy of this Python."""
    python = Path(sys.executable).resolve()
    for folder, names in (("usr/sbin", _PROGRAMS), ("usr/lib/cni", _CNI)):
        (scratch / folder).mkdir(parents=True)
        for name in names:
            (scratch / folder / name).symlink_to(f"{scratch}/python")
    shutil.copyfile(python, scratch / "python")


def test_a_missing_library_ends_the_build(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    _unpacked(scratch)
    with pytest.raises(AssetBuildError, match=r"container runtime has lib\S+"):
        gather(scratch, tmp_path / "tree")


def test_a_missing_program_ends_the_build(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    _unpacked(scratch)
    (scratch / "usr" / "sbin" / "runc").unlink()
    with pytest.raises(AssetBuildError, match="container runtime has runc"):
        gather(scratch, tmp_path / "tree")


def test_no_file_of_the_hosts_is_taken_for_one_of_the_packages(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    _unpacked(scratch)
    (scratch / "usr" / "sbin" / "runc").unlink()
    (scratch / "usr" / "sbin" / "runc").symlink_to(sys.executable)
    with pytest.raises(AssetBuildError, match="container runtime has runc"):
        gather(scratch, tmp_path / "tree")
