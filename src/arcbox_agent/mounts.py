"""The mounted filesystems, as /proc/self/mountinfo lists them."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH123

from __future__ import annotations

import re

_FIELDS_LEFT, _FIELDS_RIGHT = 6, 3
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount:
    """One mounted filesystem."""

    __slots__ = ("device", "filesystem", "root", "source", "target", "writable")

    def __init__(self, line: str) -> None:
        """Parse a line of mountinfo. See proc(5).

        Raises:
            ValueError: It is not one.
        """
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        if not separator or len(fields) < _FIELDS_LEFT or len(rest) < _FIELDS_RIGHT:
            raise ValueError(line)
        self.device = fields[2]
        self.root = fields[3]
        self.target = _unescape(fields[4])
        self.filesystem = rest[0]
        self.source = _unescape(rest[1])
        self.writable = "rw" in fields[5].split(",") and "rw" in rest[2].split(",")

    @property
    def is_writable_disk(self) -> bool:
        """Whether it keeps data on a block device that it may write to."""
        return self.writable and self.source.startswith("/dev/")


def read_mounts() -> list[Mount]:
    """Read the mounts of this process."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mounts(file.read())


def parse_mounts(text: str) -> list[Mount]:
    """Parse mountinfo; lines that make no sense are passed over."""
    mounts = []
    for line in text.splitlines():
        try:
            mounts.append(Mount(line))
        except ValueError:
            continue
    return mounts


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
