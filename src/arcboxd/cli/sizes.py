"""Sizes as people type and read them: powers of 1024, whatever the letter's case."""

from __future__ import annotations

import re
from fractions import Fraction

from arcboxd.cli.usage import CliUsageError

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_MAX_BYTES = (1 << 63) - 1


def parse_size(text: str, what: str) -> int:
    """Read a size such as ``512M``, ``2GiB``, ``1.5G`` or plain bytes.

    Args:
        text: What was typed. ``M``, ``MB`` and ``MiB`` are the same: 1024 * 1024 bytes.
        what: What it is the size of, for the message.

    Raises:
        CliUsageError: It is no size, not whole bytes, zero, or absurd.
    """
    hint = "write it like 512M, 2G, 1.5GiB, or in plain bytes (units are powers of 1024)"
    if (match := _SIZE.fullmatch(text.strip())) is None:
        raise CliUsageError(f"{what} {text!r} is not a size", hint=hint)
    number = Fraction(match[1]) * (1 << _UNITS[(match[2] or "").upper()])
    if number.denominator != 1:
        raise CliUsageError(f"{what} {text!r} is not a whole number of bytes", hint=hint)
    if not 0 < number <= _MAX_BYTES:
        raise CliUsageError(f"{what} {text!r} is out of range", hint=hint)
    return int(number)


def format_size(size: int) -> str:
    """Write bytes in the largest unit that leaves at least 1: ``2GiB``, ``1.5GiB``, ``640KiB``."""
    for letter in "TGMK":
        unit = 1 << _UNITS[letter]
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f"{letter}iB"
    return f"{size}B"
