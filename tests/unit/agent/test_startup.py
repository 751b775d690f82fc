"""The agent's start: what it does without, and that nothing is left of the stand-ins."""

from __future__ import annotations

import subprocess
import sys

# Each takes tens of milliseconds under emulation, before the machine's first answer.
SPARED = ("re", "traceback", "textwrap", "inspect", "linecache", "string", "ssl", "subprocess")
PROGRAM = f"""
import sys
from arcbox_agent.startup import import_main
import_main()
from arcbox_agent import accounts, configure, fstab, network
print(*(name for name in {SPARED!r} if getattr(sys.modules.get(name), "__file__", None)))
print(getattr(sys.modules["typing"], "__file__", None))

import logging, re, textwrap, traceback, typing
assert re.sub("a", "b", "aa") == "bb"
assert textwrap.dedent(" x") == "x"
assert traceback.extract_stack()
T = typing.TypeVar("T")
class Box(typing.Generic[T]):
    pass
assert typing.get_args(typing.Optional[int]) == (int, type(None))
logging.Formatter("%(message)s")
try:
    logging.Formatter("{{message}}")
except ValueError:
    print("checked")

import asyncio
async def main():
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await asyncio.open_connection("localhost", port, happy_eyeballs_delay=0.1)
    print("connected")
asyncio.run(main())
"""


def test_spares_what_it_does_not_need() -> None:
    """In a bare interpreter, as in the guest: pytest has imported all of it."""
    folders = [path for path in sys.path if path]
    program = f"import sys; sys.path[:] = {folders!r}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-E", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["", "None", "checked", "connected"]
