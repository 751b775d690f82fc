from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from arcboxd.client.lock import owner_pid


@pytest.mark.parametrize("visible", [True, False])
def test_only_a_lock_that_is_held_has_an_owner(tmp_path: Path, visible: bool) -> None:
    locks = Path("/proc/locks") if visible else tmp_path / "none"
    lock = tmp_path / "daemon.lock"
    assert owner_pid(lock, locks=locks) is None
    lock.write_text("4711\n")
    assert owner_pid(lock, locks=locks) is None, "left behind by one that died"
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert owner_pid(lock, locks=locks) == 4711
        held.truncate(0)
        assert owner_pid(lock, locks=locks) == 0, "held, and not yet written"
    assert owner_pid(lock, locks=locks) is None


def test_another_files_lock_is_not_ours(tmp_path: Path) -> None:
    lock = tmp_path / "daemon.lock"
    lock.write_text(f"{os.getpid()}\n")
    locks = tmp_path / "locks"
    inode = lock.stat().st_ino
    locks.write_text(
        f"1: POSIX  ADVISORY  WRITE 1 00:00:{inode} 0 EOF\n"
        f"2: FLOCK  ADVISORY  WRITE 1 00:00:{inode}1 0 EOF\n"
        f"2: -> FLOCK  ADVISORY  WRITE 1 00:00:{inode} 0 EOF\nshort\n"
    )
    assert owner_pid(lock, locks=locks) is None
