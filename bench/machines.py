"""What measurements do with machines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from arcboxd.client.client import Client
from arcboxd.client.views import NewTemplate
from arcboxd.domain.guest import ExecExit, ExecSpec
from arcboxd.domain.machine import NewMachine
from arcboxd.errors import UnsupportedError
from bench.figures import NotAvailableError
from bench.host import CPUS, MEMORY_BYTES

_STAGED_S = 60.0
_POLL_S = 0.1


class Start(NamedTuple):
    """The seconds that the steps from nothing to an answer took."""

    create: float
    start: float
    answer: float
    """Of the first process that runs in the machine."""

    @property
    def total(self) -> float:
        """Add them up."""
        return sum(self)


def create(client: Client, name: str, *, cmdline: str = "") -> None:
    """Create a machine of the size that every guest here has."""
    new = NewMachine(name=name, cpus=CPUS, memory_bytes=MEMORY_BYTES, cmdline=cmdline)
    client.create(new)


def output_of(client: Client, name: str, *argv: str) -> str:
    """Run a program in a machine, which must succeed; give what it printed."""
    out, last = b"", None
    for last in client.exec(name, ExecSpec(argv)).outputs():
        if not isinstance(last, ExecExit) and last.stream == "stdout":
            out += last.data
    assert isinstance(last, ExecExit)
    assert last.code == 0, f"{argv} in {name} ended with {last}, after {out!r}"
    return out.decode()


def from_nothing(client: Client, name: str, *, cmdline: str = "") -> Start:
    """Create a machine, start it and run ``true`` in it."""
    times = [time.perf_counter()]
    create(client, name, cmdline=cmdline)
    times.append(time.perf_counter())
    client.start(name)
    times.append(time.perf_counter())
    output_of(client, name, "true")
    times.append(time.perf_counter())
    return Start(*(after - before for before, after in pairwise(times)))


def check_boot(client: Client, name: str, wanted: str, *, staged: bool = False) -> None:
    """Make sure that a machine was started as the measurement means it.

    Args:
        client: The daemon's.
        name: The machine.
        wanted: ``cold`` or ``template``.
        staged: A clone of the template stood ready for it.
    """
    extra = client.inspect(name).extra
    assert extra is not None
    how = f"{name} was started {extra.boot}: {extra.boot_reason}"
    assert extra.boot == wanted, how
    assert extra.boot_reason.endswith("staged") is staged, how


def prepare(client: Client) -> None:
    """Make a template of the machines here, unless this run has made it.

    Raises:
        NotAvailableError: This version has no templates.
    """
    try:
        client.prepare_template(NewTemplate(cpus=CPUS, memory_bytes=MEMORY_BYTES))
    except UnsupportedError as error:
        raise NotAvailableError(error.message) from error


def wait_staged(client: Client, count: int) -> None:
    """Wait until so many clones stand ready.

    Raises:
        NotAvailableError: They never do.
    """
    deadline = time.monotonic() + _STAGED_S
    while sum(template.staged for template in client.list_templates()) < count:
        if time.monotonic() > deadline:
            raise NotAvailableError(f"no {count} clones stood ready within {_STAGED_S:g} s")
        time.sleep(_POLL_S)


@contextlib.contextmanager
def clone(client: Client, name: str, *, staged: bool = False) -> Iterator[Start]:
    """Have a machine that was started from the template, until the end of the block."""
    took = from_nothing(client, name)
    check_boot(client, name, "template", staged=staged)
    yield took
    client.remove(name, force=True)


def smaps(client: Client, name: str) -> dict[str, int]:
    """Read what the kernel counts of a machine's process, in bytes; see smaps_rollup in proc(5)."""
    extra = client.inspect(name).extra
    assert extra is not None
    found = {}
    for line in Path(f"/proc/{extra.pid}/smaps_rollup").read_text().splitlines():
        if line.endswith(" kB"):
            key, value, _ = line.split()
            found[key.rstrip(":")] = int(value) * 1024
    return found
