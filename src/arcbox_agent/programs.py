"""Runs the distribution's programs for the agent itself, by the way that Exec takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent.child import DEFAULT_PATH, Command, Ids
from arcbox_agent.process import Process

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arcbox_agent.cgroup import Cgroups

_MAX_OUTPUT_BYTES = 64 * 1024
_ENVIRONMENT = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8"}


async def run(
    *argv: str,
    cgroups: Cgroups,
    env: Mapping[str, str] | None = None,
    max_output_bytes: int = _MAX_OUTPUT_BYTES,
) -> tuple[int, str]:
    """Run a program as root to its end; return its exit code, and what it wrote to either output.

    If it is cancelled, the program and its descendants are killed.

    Args:
        argv: The program and its arguments.
        cgroups: Where it runs.
        env: Its environment; none for the usual paths.
        max_output_bytes: What it writes beyond that is dropped.

    Raises:
        OSError: The guest is out of processes or descriptors.
    """
    variables = {k.encode(): v.encode() for k, v in (env or _ENVIRONMENT).items()}
    arguments = [each.encode() for each in argv]
    command = Command(arguments, variables, Ids(0, 0, [0]), "/", optional_cwd=True, size=None)
    process = Process(command, cgroups, stdin=False)
    output = bytearray()

    def keep(data: bytes) -> None:
        output.extend(data[: max_output_bytes - len(output)])

    try:
        while not process.finished:
            await process.changed.wait()
            process.changed.clear()
            while (piece := process.take()) is not None:
                keep(piece[1])
        for _, data in process.rest():
            keep(data)
    finally:
        process.close()
    text = output.decode(errors="replace")
    return process.exit_code or 0, text or process.reason
