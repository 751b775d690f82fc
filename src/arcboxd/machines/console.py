"""The last words of a guest, made safe to show."""

from __future__ import annotations

import os
import re
from pathlib import Path

_READ_BYTES = 8192
_LINES = 12
_LINE_CHARACTERS = 160
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_POWERED_OFF = re.compile(r"reboot: (?:Power down|System halted)")


def tail(path: Path) -> list[str]:
    """Give the last lines of a log, at most 12, each clipped, without control characters."""
    text = _ESCAPES.sub("", _last_bytes(path).replace("\r", "\n"))
    lines = ("".join(c for c in line if c.isprintable()).strip() for line in text.split("\n"))
    return [line[:_LINE_CHARACTERS] for line in lines if line][-_LINES:]


def last_words(path: Path) -> str:
    """Give the last lines of a log as the end of an error's message."""
    lines = tail(path)
    return "; the console ended with:\n" + "\n".join(lines) if lines else "; the console is empty"


def powered_off(path: Path) -> bool:
    """Tell whether the guest's kernel said that it powers off, which it does at any log level.

    Only words depend on it: what a guest writes is never trusted.

    Source: linux/kernel/reboot.c, kernel_power_off, which says so with pr_emerg.
    """
    return any(_POWERED_OFF.search(line) for line in tail(path)[-4:])


def _last_bytes(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _READ_BYTES))
            return file.read(_READ_BYTES).decode(errors="replace")
    except OSError:
        return ""
