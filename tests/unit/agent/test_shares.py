"""Who keeps a share from being unmounted."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcbox_agent import shares, syscalls
from arcbox_agent.mounts import Mount, parse_mounts
from arcboxd.errors import InvalidArgumentError, PreconditionError, UnsupportedError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

LINE = "40 1 0:33 / {0} rw,relatime - 9p {1} rw,sync"


def mounted(*places: tuple[str, str]) -> list[Mount]:
    return parse_mounts("\n".join(LINE.format(*place) for place in places))


@pytest.fixture
def holder(tmp_path: Path) -> Path:
    """Give a directory that processes use."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_bytes(bytes(mmap.PAGESIZE))
    return tmp_path


def run(code: str, cwd: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(flush=True)\nimport time\ntime.sleep(60)"],
        cwd=cwd,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize(
    ("code", "cwd"),
    [
        ("", "dir"),
        ("f = open('{0}/file')", "/"),
        ("import os\nf = open('{0}/file'); os.unlink('{0}/file')", "/"),
        ("import mmap\nwith open('{0}/file', 'r+b') as f: m = mmap.mmap(f.fileno(), 0)", "/"),
    ],
)
def test_who_uses_a_mount_is_named(code: str, cwd: str, holder: Path) -> None:
    process = run(code.format(holder), holder / cwd)
    device = holder.stat().st_dev
    place = f"{os.major(device)}:{os.minor(device)}"
    (mount,) = parse_mounts(f"40 1 {place} / {holder} rw - 9p arcbox-rw0 rw")
    try:
        users = shares._users(mount)
        assert any(user.endswith(f"({process.pid})") for user in users)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_what_is_mounted_below_or_once_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shares,
        "read_mounts",
        lambda: mounted(
            ("/src", "arcbox-rw0"),
            ("/src/below", "arcbox-rw1"),
            ("/elsewhere", "arcbox-rw0"),
            ("/srcs", "arcbox-rw2"),
        ),
    )
    with pytest.raises(PreconditionError) as refused:
        await shares.unmount(guest_pb2.UnmountRequest(path="/src"))
    assert "by the mount /elsewhere, the mount /src/below" in refused.value.message


async def test_what_is_not_mounted_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "read_mounts", lambda: mounted(("/srcs", "arcbox-rw0")))
    await shares.unmount(guest_pb2.UnmountRequest(path="/src"))


async def test_a_share_that_another_namespace_keeps_is_mounted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr(shares, "read_mounts", lambda: mounted(("/src", "arcbox-rw0")))
    monkeypatch.setattr(syscalls, "unmount", lambda target: done.append(("unmount", target)))
    monkeypatch.setattr(syscalls, "mount", lambda *what: done.append(("mount", *what[:4])))
    monkeypatch.setattr(shares, "_holders", lambda _tag: ["dockerd (7)"])
    with pytest.raises(PreconditionError, match=r"in use in the guest by dockerd \(7\)"):
        await shares.unmount(guest_pb2.UnmountRequest(path="/src"))
    assert done == [("unmount", "/src"), ("mount", "arcbox-rw0", "/src", "9p", 0)]


async def test_what_can_never_be_mounted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    request = guest_pb2.MountRequest
    for wrong, error in (
        (request(tag="a,b", filesystem="9p", path="/a"), InvalidArgumentError),
        (request(tag="", filesystem="9p", path="/a"), InvalidArgumentError),
        (request(tag="a", filesystem="9p", path="a"), InvalidArgumentError),
        (request(tag="a", filesystem="ext4", path="/a"), UnsupportedError),
    ):
        with pytest.raises(error):
            shares._check(wrong)


def test_folders_that_are_made_belong_to_whom_the_one_above_belongs(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root gives files away")
    os.chown(tmp_path, 1234, 4321)
    shares._make_folder(f"{tmp_path}/a/b")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="directory"):
        shares._make_folder(f"{tmp_path}/file/x")
