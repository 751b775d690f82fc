"""The Exec call: a request becomes a command, a process's output becomes messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from arcbox_agent.child import DEFAULT_PATH, Command
from arcbox_agent.process import STDOUT, Process
from arcbox_agent.users import Credentials, find_credentials
from arcboxd import aio
from arcboxd.errors import InvalidArgumentError, NoRoomError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

if TYPE_CHECKING:
    from arcbox_agent.calls import MessageStream
    from arcbox_agent.cgroup import Cgroups

_MAX_SIZE = 0xFFFF
_MAX_SIGNAL = 64
_LINGER_S = 2.0
_TERMINAL_NAME = "xterm-256color"


async def run(
    stream: MessageStream[guest_pb2.ExecInput, guest_pb2.ExecOutput], cgroups: Cgroups, root: str
) -> None:
    """Serve one call of GuestService.Exec.

    A cancelled call kills the process and every descendant. One that ends by itself leaves what it
    put into the background alone, as ssh and `docker exec` do.

    Raises:
        InvalidArgumentError: The request makes no sense.
        UserNotFoundError: No such user or group.
        NoRoomError: The guest is out of processes or descriptors.
    """
    first = await stream.recv_message()
    if first is None or first.WhichOneof("input") != "start":
        raise InvalidArgumentError("The first input of Exec must be `start`.")
    command = make_command(first.start, root)
    try:
        process = Process(command, cgroups, stdin=first.start.stdin)
    except OSError as error:
        raise NoRoomError(f"The guest cannot make a process: {error}") from error
    faults: list[Exception] = []
    feeder = aio.spawn(_feed(stream, process, faults), name=f"stdin of {process.pid}")
    try:
        await _forward(stream, process, faults)
        # To end the call under a client that still sends input looks like a failure to it. Ours
        # cancels at the exit message; others may finish what they were about to say.
        await asyncio.wait((feeder,), timeout=_LINGER_S)
    finally:
        feeder.cancel()  # not waited for: it holds nothing
        process.close()


async def _forward(
    stream: MessageStream[guest_pb2.ExecInput, guest_pb2.ExecOutput],
    process: Process,
    faults: list[Exception],
) -> None:
    """Send what the process writes, at the pace at which the client takes it, then its end."""
    changed = process.changed
    while not process.finished:
        await changed.wait()
        changed.clear()
        while (piece := process.take()) is not None:
            await stream.send_message(_output(piece))
        if faults:
            raise faults[0]
    for piece in process.rest():
        await stream.send_message(_output(piece))
    ended = guest_pb2.ExecExit(code=process.exit_code or 0, reason=process.reason)
    await stream.send_message(guest_pb2.ExecOutput(exit=ended))


def _output(piece: tuple[int, bytes]) -> guest_pb2.ExecOutput:
    which, data = piece
    if which == STDOUT:
        return guest_pb2.ExecOutput(stdout=data)
    return guest_pb2.ExecOutput(stderr=data)


async def _feed(
    stream: MessageStream[guest_pb2.ExecInput, guest_pb2.ExecOutput],
    process: Process,
    faults: list[Exception],
) -> None:
    """Give the process what the client sends. The end of the client's messages closes stdin too."""
    try:
        while (message := await stream.recv_message()) is not None:
            await _apply(message, process)
    except Exception as error:  # noqa: BLE001  the call's own task raises it
        faults.append(error)
        process.changed.set()
    else:
        process.close_stdin()


async def _apply(message: guest_pb2.ExecInput, process: Process) -> None:
    match message.WhichOneof("input"):
        case "stdin":
            await process.write(message.stdin)
        case "close_stdin":
            process.close_stdin()
        case "resize":
            process.resize(*_size(message.resize.rows, message.resize.columns))
        case "signal":
            if not 0 < message.signal <= _MAX_SIGNAL:
                raise InvalidArgumentError(f"There is no signal {message.signal}.")
            process.signal(message.signal)
        case "start":
            raise InvalidArgumentError("Exec takes one `start` only.")
        case None:  # of a later version
            pass


def make_command(start: guest_pb2.ExecStart, root: str) -> Command:
    """Decide what to run, as whom, where and with what environment.

    Raises:
        InvalidArgumentError: The request makes no sense.
        UserNotFoundError: No such user or group.
    """
    if not start.argv or not start.argv[0]:
        raise InvalidArgumentError("Exec needs a program: `argv` is empty.")
    if start.working_dir and not start.working_dir.startswith("/"):
        raise InvalidArgumentError(f"The directory {start.working_dir!r} is not absolute.")
    credentials = find_credentials(root, _clean(start.user))
    env = _environment(credentials, tty=start.tty)
    for name, value in start.env.items():
        if not name or "=" in name:
            raise InvalidArgumentError(f"{name!r} cannot be the name of a variable.")
        env[_encode(name)] = _encode(value)
    return Command(
        [_encode(argument) for argument in start.argv],
        env,
        credentials,
        _clean(start.working_dir) or credentials.account.home or "/",
        optional_cwd=not start.working_dir,
        size=_size(start.rows, start.columns) if start.tty else None,
    )


def _environment(credentials: Credentials, *, tty: bool) -> dict[bytes, bytes]:
    account = credentials.account
    values = {
        "PATH": DEFAULT_PATH,
        "HOME": account.home or "/",
        "SHELL": account.shell or "/bin/sh",
        "LANG": "C.UTF-8",
    }
    if account.name:
        values["USER"] = values["LOGNAME"] = account.name
    if tty:
        values["TERM"] = _TERMINAL_NAME
    return {
        name.encode(): value.encode("utf-8", "surrogateescape") for name, value in values.items()
    }


def _size(rows: int, columns: int) -> tuple[int, int]:
    return min(rows, _MAX_SIZE), min(columns, _MAX_SIZE)


def _clean(text: str) -> str:
    if "\0" in text:
        raise InvalidArgumentError(f"{text!r} contains a NUL character.")
    return text


def _encode(text: str) -> bytes:
    return _clean(text).encode()
