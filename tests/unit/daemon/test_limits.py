from __future__ import annotations

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from arcboxd.daemon import limits
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
limits.raise_descriptors()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
HARD = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)


@pytest.mark.parametrize(
    ("soft", "hard", "after"),
    [(256, 4096, 4096), (4096, 4096, 4096), (256, HARD, min(HARD, 1 << 16))],
)
def test_open_files_are_raised_within_reason(soft: int, hard: int, after: int) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(soft), str(hard)]
    told = subprocess.check_output(argv, env={"PYTHONPATH": "src"}, text=True)
    assert told.split() == [str(after), str(hard)]
