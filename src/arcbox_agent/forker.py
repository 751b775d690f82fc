"""A small process that forks for the agent, so that the agent itself never does.

A fork makes every page that the parent writes afterwards a fault and a copy. For the agent, which
has tens of megabytes, that is most of the time that a short command takes under emulation
(docs/decisions.md). This process is forked off before anything is imported, and imports little.

Its children are the agent's: CLONE_PARENT makes them so, and the agent waits for them itself.

Source: clone(2), unix(7) (SCM_RIGHTS).
"""

# Imports come late: start-up takes long under emulation. `_socket` is `socket` without its enums.
# ruff: noqa: PLC0415

from __future__ import annotations

import _socket
import marshal
import os
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from arcbox_agent.child import Command

_MESSAGE_BYTES = 64 * 1024
_PREPARE = b"prepare"
_SPARE = b"spare"
_FDS = 5
_FD_BYTES = 4
_ANSWER_S = 10.0
_SIGKILL = 9
_MSG_CMSG_CLOEXEC = 0x40000000
_FIRST_FD = 3
_LAST_FD = 1024


class ForkerLostError(Exception):
    """The forker is gone or does not answer, or a command is too long for it."""


class Forker:
    """The agent's end."""

    def __init__(self, socket: _socket.socket, pid: int) -> None:
        """Take over both."""
        self.fd = socket.fileno()
        self.pid = pid
        self._socket = socket
        self._socket.settimeout(_ANSWER_S)

    def prepare(self) -> None:
        """Let it import what it needs, so that the first command does not wait for that."""
        try:
            self._socket.send(_PREPARE)
        except OSError:
            return  # the next command notices, and is run without it

    def run(self, command: Command, cgroup: int, stdio: tuple[int, int, int], failure: int) -> int:
        """Fork and exec a command in a control group; return its pid.

        Raises:
            ForkerLostError: It was not run.
            OSError: The kernel would not fork.
        """
        return self._fork(_packed(command), (cgroup, *stdio, failure))

    def spare(self, cgroup: int) -> Spare:
        """Fork a child that becomes a command later.

        Raises:
            ForkerLostError: It was not forked.
            OSError: The kernel would not fork.
        """
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            return Spare(ours, self._fork(_SPARE, (cgroup, theirs.fileno())))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def _fork(self, message: bytes, fds: tuple[int, ...]) -> int:
        try:
            _send(self._socket, message, fds)
            answer = int.from_bytes(self._socket.recv(8), "little", signed=True)
        except OSError as error:
            lose()
            raise ForkerLostError from error
        if answer == 0:
            lose()
            raise ForkerLostError
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def close(self) -> None:
        """End it."""
        self._socket.close()
        os.kill(self.pid, _SIGKILL)
        os.waitpid(self.pid, 0)


class Spare:
    """A child that waits to become a command, so that a clone's first needs no fork."""

    __slots__ = ("_socket", "pid")

    def __init__(self, socket: _socket.socket, pid: int) -> None:
        """Take over both."""
        self.pid = pid
        self._socket = socket

    def run(self, command: Command, stdio: tuple[int, int, int], failure: int) -> int:
        """Let it become a command; return its pid. To be called once.

        Raises:
            ForkerLostError: It did not; it is no more.
        """
        try:
            _send(self._socket, _packed(command), (*stdio, failure))
        except (OSError, ForkerLostError) as error:
            self.close()
            raise ForkerLostError from error
        self._socket.close()
        return self.pid

    def close(self) -> None:
        """End it."""
        self._socket.close()
        os.waitpid(self.pid, 0)


def _packed(command: Command) -> bytes:
    ids = command.credentials
    message = marshal.dumps(
        (
            *(command.argv, command.env, ids.uid, ids.gid, ids.groups),
            *(command.cwd, command.optional_cwd, command.size),
        )
    )
    if len(message) > _MESSAGE_BYTES:
        raise ForkerLostError
    return message


def _send(socket: _socket.socket, message: bytes, fds: tuple[int, ...]) -> None:
    packed = b"".join(fd.to_bytes(_FD_BYTES, "little") for fd in fds)
    socket.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])


current: Forker | None = None
"""The forker of this agent, if it has one."""


def start() -> None:
    """Fork it off. To be called before anything large is imported."""
    global current  # noqa: PLW0603  there is one
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _serve(theirs)
    theirs.close()
    current = Forker(ours, pid)


def lose() -> None:
    """Do without it from now on."""
    global current
    lost, current = current, None
    if lost is not None:
        lost.close()


def _serve(socket: _socket.socket) -> NoReturn:
    """Fork when asked to, until the agent is gone."""
    try:
        keep = socket.fileno()
        os.closerange(_FIRST_FD, keep)
        os.closerange(keep + 1, _LAST_FD)
        with open("/proc/self/comm", "wb") as comm:  # noqa: PTH123  pathlib takes long to import
            comm.write(b"arcbox-forker")
        while True:
            message, fds = _receive(socket)
            if message == _PREPARE:
                from arcbox_agent import child, syscalls  # noqa: F401
            else:
                _answer(socket, message, fds)
    finally:
        os._exit(1)


def _receive(socket: _socket.socket) -> tuple[bytes, list[int]]:
    """Take the next message and its descriptors; never returns once the agent is gone."""
    message, control, _, _ = socket.recvmsg(
        _MESSAGE_BYTES, _socket.CMSG_SPACE(_FDS * _FD_BYTES), _MSG_CMSG_CLOEXEC
    )
    if not message:
        os._exit(0)
    data = control[0][2] if control else b""
    fds = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), _FD_BYTES)]
    return message, fds


def _answer(socket: _socket.socket, message: bytes, fds: list[int]) -> None:
    from arcbox_agent import child
    from arcbox_agent.syscalls import fork_into_cgroup

    try:
        pid = fork_into_cgroup(fds[0], parents_child=True)
        if pid == 0 and message == _SPARE:
            socket.close()  # else nobody would notice the forker's end
            _become_later(_socket.socket(fileno=fds[1]))
        elif pid == 0:
            child.become(_unpacked(message), (fds[1], fds[2], fds[3]), fds[4])
    except OSError as error:
        pid = -(error.errno or 1)
    finally:
        for fd in fds:
            os.close(fd)
    socket.send(pid.to_bytes(8, "little", signed=True))


def _unpacked(message: bytes) -> Command:
    from arcbox_agent import child

    argv, env, uid, gid, groups, cwd, optional_cwd, size = marshal.loads(message)  # noqa: S302
    ids = child.Ids(uid, gid, groups)
    return child.Command(argv, env, ids, cwd, optional_cwd=optional_cwd, size=size)


def _become_later(socket: _socket.socket) -> NoReturn:
    """Wait, in the forked child, for what to become."""
    from arcbox_agent import child

    try:
        child.separate()
        message, fds = _receive(socket)
        child.become(_unpacked(message), (fds[0], fds[1], fds[2]), fds[3], separated=True)
    finally:
        os._exit(1)
