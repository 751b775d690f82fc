"""An answer that holds for as long as the files are unchanged that it was found in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Seen(Generic[_T]):
    """An answer, and the files that it came of, as they were then."""

    def __init__(self, answer: _T, files: Iterable[Path]) -> None:
        """Note what the files are like."""
        self.answer = answer
        self._states = {file: _state(file) for file in files}

    def holds(self) -> bool:
        """Tell whether all files are as they were."""
        return all(_state(file) == state for file, state in self._states.items())


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
