"""What was selected before ours, in a file of ours: the way back from what we change for users."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from arcboxd import durable


class Former:
    """By name of ours, what the user had selected before it; None for nothing."""

    def __init__(self, memory: Path, of: Path) -> None:
        """Keep it in ``memory``, which serves any number of the user's files; this is about one."""
        self._memory = memory
        self._of = str(of)

    def read(self) -> dict[str, str | None]:
        """Give what is remembered; nothing if the file cannot be read."""
        mine = self._all().get(self._of)
        if not isinstance(mine, dict):
            return {}
        return {k: v if isinstance(v, str) else None for k, v in mine.items()}

    def write(self, former: Mapping[str, str | None]) -> None:
        """Remember this instead.

        Raises:
            StoreError: It cannot be written.
        """
        every = self._all() | {self._of: former}
        with durable.storing(f"write {self._memory}"):
            self._memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(self._memory, json.dumps(every, indent=1).encode())

    def _all(self) -> dict[str, object]:
        try:
            every = json.loads(self._memory.read_bytes())
        except (OSError, ValueError):
            return {}
        return every if isinstance(every, dict) else {}
