"""A client of the stub for debuggers that QEMU has, as far as we use it.

The protocol is GDB's "remote serial protocol": packets of ASCII between ``$`` and ``#`` and a
checksum, numbers in hexadecimal. Source: the GDB manual, appendix "Remote Protocol".
"""

from __future__ import annotations

import asyncio
import re
from struct import Struct
from typing import NamedTuple

_X86_64 = Struct("<17Q")
"""The first registers of the answer to ``g``: 16 general ones and RIP."""
_RSP, _RIP = 7, 16


class Registers(NamedTuple):
    """Those that say where an x86-64 processor is."""

    rip: int
    rsp: int


class GdbStub:
    """A connection to the stub. While there is one, the machine is stopped.

    Every call raises OSError or EOFError when the connection breaks, and ValueError when the answer
    is none; set a deadline around them.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Use a connection; `begin` first."""
        self._reader = reader
        self._writer = writer

    async def begin(self) -> None:
        """Leave what the stub says by itself, that the machine has stopped, behind."""
        answer = await self._ask("qSupported")
        while not answer.startswith("PacketSize="):
            answer = await self._answer()

    async def threads(self) -> list[str]:
        """Name the virtual processors."""
        found: list[str] = []
        answer = await self._ask("qfThreadInfo")
        while answer.startswith("m"):
            found += answer[1:].split(",")
            answer = await self._ask("qsThreadInfo")
        return found

    async def choose(self, thread: str) -> None:
        """Have the calls that follow be about one processor."""
        if (answer := await self._ask(f"Hg{thread}")) != "OK":
            raise ValueError(f"there is no processor {thread!r}: {answer!r}")

    async def registers(self) -> Registers:
        """Tell where the processor is."""
        answer = bytes.fromhex(await self._ask("g"))
        if len(answer) < _X86_64.size:
            raise ValueError(f"{len(answer)} bytes are not the registers of an x86-64 processor")
        values = _X86_64.unpack_from(answer)
        return Registers(rip=values[_RIP], rsp=values[_RSP])

    async def read(self, address: int, size: int) -> bytes:
        """Read memory by the processor's addresses; nothing if that much is not there."""
        answer = await self._ask(f"m{address:x},{size:x}")
        return b"" if answer.startswith("E") else bytes.fromhex(answer)

    async def write(self, address: int, data: bytes) -> None:
        """Write memory, even where the processor itself may only read."""
        answer = await self._ask(f"M{address:x},{len(data):x}:{data.hex()}")
        if answer != "OK":
            raise ValueError(f"{len(data)} bytes at {address:#x} cannot be written: {answer!r}")

    async def _ask(self, packet: str) -> str:
        data = packet.encode()
        self._writer.write(b"$%b#%02x" % (data, sum(data) % 256))
        return await self._answer()

    async def _answer(self) -> str:
        # Acknowledgements of ours come first. No answer to what is asked here has a "#" in it.
        text = await self._reader.readuntil(b"#")
        await self._reader.readexactly(2)
        self._writer.write(b"+")
        return re.sub(r"^[+]*[$]", "", text[:-1].decode("ascii"))
