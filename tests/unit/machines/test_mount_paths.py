"""Which mounts are refused, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcboxd.domain.machine import DirectoryMount
from arcboxd.errors import InvalidArgumentError, MountExistsError, NoRoomError
from arcboxd.hypervisor.base import SHARE_SLOTS
from arcboxd.machines.mount_paths import check_guest_path, check_mounts, directory


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/src", "/src"),
        ("/mnt/data/", "/mnt/data"),
        ("//a//./b", "/a/b"),
        ("/with space, comma\nline/é", "/with space, comma\nline/é"),
        ("/run/mine", "/run/mine"),
        ("/etc/app", "/etc/app"),
        ("/lib/modulesx", "/lib/modulesx"),
    ],
)
def test_guest_paths_are_made_plain(path: str, plain: str) -> None:
    assert check_guest_path(path) == plain


@pytest.mark.parametrize(
    "path",
    [
        *("", "src", "/", "//", "/.", "/a/../b", "/..", "/a\0b", "/" + "x" * 256, "/a" * 2100),
        *("/proc", "/proc/sys", "/sys/", "/dev/shm", "/run", "/run/arcbox/bundle", "/etc", "/usr"),
        *("/lib/modules/6.1", "//etc/", "/var", "/bin"),
    ],
)
def test_guest_paths_that_would_break_the_guest_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError):
        check_guest_path(path)


def test_each_mount_gets_a_slot_of_its_kind(tmp_path: Path) -> None:
    wanted = [
        DirectoryMount(str(tmp_path), f"/m{n}", readonly=bool(n % 2))
        for n in range(2 * SHARE_SLOTS)
    ]
    found = check_mounts(wanted)
    assert len({(m.readonly, m.slot) for m in found}) == 2 * SHARE_SLOTS
    assert all(m.slot < SHARE_SLOTS for m in found)
    with pytest.raises(NoRoomError, match="room for 12 writable mounts"):
        check_mounts([*wanted, DirectoryMount(str(tmp_path), "/one/more")])


@pytest.mark.parametrize(("one", "other"), [("/a", "/a/"), ("/a", "/a/b"), ("/a/b/c", "/a")])
def test_mounts_in_each_others_way_are_refused(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(MountExistsError):
        check_mounts([DirectoryMount(str(tmp_path), one), DirectoryMount(str(tmp_path), other)])
    assert check_mounts([DirectoryMount(str(tmp_path), "/a"), DirectoryMount(str(tmp_path), "/ab")])


def test_the_hosts_directory_has_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in ("relative", "", "/no\0w", f"{tmp_path}/no", f"{tmp_path}/file"):
        with pytest.raises(InvalidArgumentError):
            check_mounts([DirectoryMount(path, "/a")])
    for name in ("loop", "dangling"):
        with pytest.raises(InvalidArgumentError, match="cannot be mounted"):
            check_mounts([DirectoryMount(str(tmp_path / name), "/a")])


def test_a_link_stays_as_it_was_written_and_is_followed_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("one")
    (mount,) = check_mounts([DirectoryMount(f"{tmp_path}/one/../link", "/a")])
    assert mount.host_path == f"{tmp_path}/one/../link"
    assert directory(mount) == tmp_path / "one"
    link.unlink()
    link.symlink_to("two")
    assert directory(mount) == tmp_path / "two"
