"""The libraries of a real program, and files that are none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from arcboxd.assets.elf import needed
from arcboxd.errors import CorruptError


def test_a_real_program() -> None:
    assert "libc.so.6" in needed(Path(sys.executable).resolve())


@pytest.mark.parametrize("length", [0, 5, 40, 100])
def test_a_cut_program(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes(Path(sys.executable).resolve().read_bytes()[:length])
    with pytest.raises(CorruptError, match="cut"):
        needed(path)
