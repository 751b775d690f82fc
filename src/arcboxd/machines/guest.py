"""What a running machine's agent is asked: ping, system information, exec."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from arcboxd.domain.guest import ExecInput, ExecOutput, ExecSpec, Pong, SystemInfo
from arcboxd.errors import InvalidArgumentError
from arcboxd.machines.context import Context

MAX_MMAP_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20


async def ping(ctx: Context, ref: str) -> Pong:
    """Ask a machine's agent for an answer.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
    """
    _, running = await ctx.running_machine(ref, "ping")
    return await running.agent.ping("ping")


async def system_info(ctx: Context, ref: str) -> SystemInfo:
    """Read what a machine's guest says of itself.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
    """
    _, running = await ctx.running_machine(ref, "ask")
    return await running.agent.system_info()


async def exec_(
    ctx: Context, ref: str, spec: ExecSpec, inputs: AsyncIterator[ExecInput]
) -> AsyncIterator[ExecOutput]:
    """Begin a process in a machine; its outputs are pulled: a slow reader slows the process.

    Closing the iterator kills the process and its descendants.

    Raises:
        InvalidArgumentError: The process can never be run.
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
    """
    check_exec(spec)
    _, running = await ctx.running_machine(ref, "run a command in")
    return running.agent.exec(spec, inputs)


async def mmap_read_file(
    ctx: Context, ref: str, path: str, offset: int, length: int
) -> AsyncGenerator[bytes, None]:
    """Read a part of a guest's file through a shared mapping, in pieces, each of its own moment.

    Past the end of the file there is less, or nothing.

    Raises:
        InvalidArgumentError: The path or the length can never be accepted.
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
        ArcboxError: The guest cannot read it, and says why.
    """
    if length > MAX_MMAP_BYTES:
        raise InvalidArgumentError(
            f"at most {MAX_MMAP_BYTES} bytes can be read at once, not {length}",
            hint="read it in parts, or copy it with: arcbox cp",
        )
    _, running = await ctx.running_machine(ref, "read a file of")
    end = offset + length
    while True:
        wanted = min(_PIECE_BYTES, end - offset)
        data = await running.agent.mmap_read_file(path, offset, wanted)
        offset += len(data)
        yield data
        if len(data) < wanted or offset >= end:
            return


def check_exec(spec: ExecSpec) -> None:
    """Refuse what no process can be given.

    Raises:
        InvalidArgumentError: It says what.
    """
    if not spec.argv or not spec.argv[0]:
        raise InvalidArgumentError("no command was given", hint="the first word is the program")
    if spec.working_dir and not spec.working_dir.startswith("/"):
        raise InvalidArgumentError(
            f"the working directory {spec.working_dir[:80]!r} is not absolute",
            hint="begin it with a slash",
        )
    for key in spec.env:
        if not key or "=" in key:
            raise InvalidArgumentError(f"{key[:80]!r} cannot be an environment variable's name")
    words = (*spec.argv, *spec.env, *spec.env.values(), spec.working_dir, spec.user)
    if any("\0" in word for word in words):
        raise InvalidArgumentError("an argument has a NUL character, which no process can be given")


async def no_input() -> AsyncIterator[ExecInput]:
    """Give a process no input; its standard input is not there to be closed."""
    nothing: tuple[ExecInput, ...] = ()
    for item in nothing:
        yield item
