"""What a kernel of the user's own says of itself."""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path

_SETUP_BYTES = 0x200
_HEADER = slice(0x202, 0x206)
_VERSION_AT = 0x20E
_WORD_BYTES = 64
_BANNER = re.compile(rb"Linux version ([0-9][!-~]{0,63}) \(")


def release(path: Path) -> str:
    """Read the release that `uname -r` will say; empty if the file does not tell. Blocks.

    Source: Documentation/arch/x86/boot.rst (kernel_version, at 0x20e); init/version.c.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            if data[_HEADER] == b"HdrS":
                begin = _SETUP_BYTES + struct.unpack_from("<H", data, _VERSION_AT)[0]
                words = data[begin : begin + _WORD_BYTES].split(b"\0")[0].split()
                found = words[0] if words else b""
            else:
                match = _BANNER.search(data)
                found = match[1] if match else b""
    except (OSError, ValueError, struct.error):
        return ""
    text = found.decode(errors="replace")
    return text if text.isprintable() else ""
