"""Programs that are started and outlive the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcboxd.process import spawn_detached


@pytest.mark.parametrize("allowed", [True, False])
async def test_huge_pages_are_kept_from_a_program(tmp_path: Path, allowed: bool) -> None:
    log = tmp_path / "log"
    argv = ["grep", "THP_enabled", "/proc/self/status"]
    handle = spawn_detached(argv, log=log, huge_pages=allowed)
    try:
        await handle.wait()
    finally:
        handle.release()
    assert log.read_text().split() == ["THP_enabled:", str(int(allowed))]
    assert "THP_enabled:\t1" in Path("/proc/self/status").read_text()  # it is as it was here
