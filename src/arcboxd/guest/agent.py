"""The agent of one machine: calls over its link, with deadlines, and answers taken as data."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from arcboxd import aio
from arcboxd.domain.guest import (
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecSpec,
    Identity,
    Pong,
    SystemInfo,
)
from arcboxd.domain.ports import GuestEvent
from arcboxd.errors import (
    AgentUnreachableError,
    ArcboxError,
    ErrorKind,
    LinkError,
    TooLateError,
)
from arcboxd.guest.calls import AGENT, GUEST
from arcboxd.guest.kubernetes import KubernetesCalls
from arcboxd.guest.link import AgentLink
from arcboxd.guest.runtime import RuntimeCalls
from arcboxd.link.call import HELLO, WARM_UP, Call, RemoteError
from arcboxd.link.stream import Stream
from arcboxd.wire import convert, ports, status
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, common_pb2

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound=Message)

_CALL_S = 5.0
_CALL_MOST_S = 25.0
"""Clients of the daemon wait about 30 s for an answer; it should come before they give up."""
_CONFIGURE_S = 30.0
_MMAP_S = 25.0
_CONFIGURE_RETRY_S = 0.05
_CONFIGURE_RETRY_MOST_S = 2.0
_RECONNECT_S = 3.0
"""How long a call waits for a session that was lost a moment ago, as when a guest reboots."""
_MOUNT_S = 65.0
"""The guest itself gives up after 60; while it boots, it has no modules for a while."""
_ENTROPY_BYTES = 64
_MAX_WARNINGS = 16
_NAMING_S = 15.0
_MAX_NAMES = 64
_MAX_NAME = 256


class LinkedAgent(KubernetesCalls, RuntimeCalls):
    """Implements `arcboxd.machines.interfaces.GuestAgent`."""

    def __init__(
        self,
        name: str,
        link_socket: Path,
        agent_socket: Path,
        identity: Identity | None,
        *,
        timeout_scale: float,
        frozen: int = 0,
    ) -> None:
        """Prepare; `open` begins."""
        self._name = name
        self._identity = identity
        self._scale = timeout_scale
        self._call_s = min(_CALL_S * timeout_scale, _CALL_MOST_S)
        self._ready = asyncio.Event()
        self._trouble = ""
        self._on_session: list[Callable[[], None]] = []
        hello = WARM_UP if identity is not None and identity.warm_up else HELLO
        self._link = AgentLink(
            name,
            link_socket,
            agent_socket,
            self._configure,
            self._lost,
            hello=hello,
            frozen=frozen,
        )

    async def open(self) -> None:
        """Begin to hold a session, and serve ``agent.sock``.

        Raises:
            LinkError: The socket cannot be made.
        """
        await self._link.open()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once a session stands and the agent was given its identity.

        Raises:
            TooLateError: That took longer than ``timeout_s`` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            raise TooLateError(
                f"the agent of machine {self._name!r} was not ready within {timeout_s:g} s"
                + (f": {self._trouble}" if self._trouble else "")
            ) from error

    async def ping(self, message: str) -> Pong:
        """Ask for an answer: over the link itself, in one round trip."""
        await self._session()
        try:
            async with asyncio.timeout(self._call_s):
                return Pong(message, await self._link.ping())
        except LinkError as error:
            raise self._unreachable(error.message) from error
        except TimeoutError as error:
            raise self._silent(self._call_s) from error

    async def system_info(self) -> SystemInfo:
        """Read what the guest says of itself."""
        await self._session()
        request = common_pb2.Empty()
        answer = await self._call(AGENT + "GetSystemInfo", request, agent_pb2.SystemInfo)
        return convert.system_info(answer)

    async def exec(
        self, spec: ExecSpec, inputs: AsyncIterator[ExecInput]
    ) -> AsyncGenerator[ExecOutput, None]:
        """Run a process; each output is asked of the guest only when it is asked of us."""
        await self._session()
        feeder: asyncio.Task[None] | None = None
        try:
            call = self._link.call(GUEST + "Exec")
            try:
                start = guest_pb2.ExecInput(start=convert.exec_start(spec))
                await call.send(start.SerializeToString())
                feeder = aio.spawn(_feed(call, inputs), name=f"stdin of {spec.argv[0][:20]}")
                while (data := await call.receive()) is not None:
                    message = guest_pb2.ExecOutput.FromString(data)
                    if (output := convert.exec_output(message)) is not None:
                        yield output
                        if isinstance(output, ExecExit):
                            return  # what the caller may still want to type has no reader
                await _fault(feeder)
            finally:
                call.stream.abort("the caller is done")
                if feeder is not None:
                    await aio.cancel(feeder)
        except (RemoteError, LinkError, DecodeError) as error:
            if feeder is not None:
                await _fault(feeder)
            raise self._translated(error) from error

    async def wait_for_port(self, port: int, timeout_s: float) -> bool:
        """Tell whether something listens on a TCP port of the guest within the time."""
        await self._session()
        request = guest_pb2.WaitForPortRequest(port=port, timeout_millis=int(timeout_s * 1000))
        try:
            await self._call(
                GUEST + "WaitForPort",
                request,
                guest_pb2.WaitForPortResponse,
                timeout_s=timeout_s + self._call_s,
            )
        except ArcboxError as error:
            if error.kind in {ErrorKind.NOT_FOUND, ErrorKind.TOO_LATE}:
                return False
            raise
        return True

    async def wait_booted(self, timeout_s: float) -> Sequence[str]:
        """Wait until init has started all; name the services that it could not start."""
        await self._session()
        response = await self._call(
            GUEST + "WaitBooted",
            guest_pb2.WaitBootedRequest(timeout_millis=int(timeout_s * 1000)),
            guest_pb2.WaitBootedResponse,
            # Naming what init is still at takes it a while more.
            timeout_s=timeout_s + _NAMING_S + self._call_s,
        )
        return [name[:_MAX_NAME] for name in response.failed[:_MAX_NAMES]]

    async def open_stream(self, target: str) -> Stream:
        """Open a stream to a socket of the guest's."""
        try:
            async with asyncio.timeout(self._call_s):
                return await self._link.open_stream(target)
        except TimeoutError as error:
            raise LinkError(f"no answer to a stream to {target!r} in {self._call_s:g} s") from error

    async def watch(self) -> AsyncGenerator[GuestEvent, None]:
        """Give what the guest tells, for as long as the session lasts."""
        await self._session()
        try:
            call = self._link.call(GUEST + "Watch")
            try:
                await call.send(guest_pb2.WatchGuestRequest().SerializeToString())
                call.stream.finish()
                while (data := await call.receive()) is not None:
                    event = ports.guest_event(guest_pb2.GuestEvent.FromString(data))
                    if event is not None:
                        yield event
            finally:
                call.stream.abort("nobody watches any more")
        except (RemoteError, LinkError, DecodeError) as error:
            raise self._translated(error) from error

    async def mmap_read_file(self, path: str, offset: int, length: int) -> bytes:
        """Read at most 3 MiB of a file through a shared mapping."""
        await self._session()
        request = agent_pb2.MmapReadFileRequest(path=path, offset=offset, length=length)
        answer = await self._call(
            GUEST + "MmapReadFile", request, agent_pb2.MmapReadFileResponse, timeout_s=_MMAP_S
        )
        return answer.data[:length]

    async def settle(self, timeout_s: float) -> None:
        """Bring the system to rest, and take from it what no two machines may share."""
        await self._session()
        response = await self._call(
            GUEST + "Settle",
            guest_pb2.SettleRequest(timeout_millis=int(timeout_s * 1000)),
            guest_pb2.SettleResponse,
            timeout_s=timeout_s + self._call_s,
        )
        self._log_warnings(response.warnings)

    @property
    def mark(self) -> int:
        """What lets a host go on at once with a guest that is frozen now."""
        return self._link.mark

    async def begin(self) -> None:
        """Let a clone begin what it has held back."""
        await self._session()
        await self._call(GUEST + "Begin", guest_pb2.BeginRequest(), guest_pb2.BeginResponse)

    async def mount(self, tag: str, filesystem: str, path: str, *, readonly: bool) -> None:
        """Mount a share that is plugged in, once the guest has found it."""
        await self._session()
        request = guest_pb2.MountRequest(
            tag=tag, filesystem=filesystem, path=path, readonly=readonly
        )
        await self._call(GUEST + "Mount", request, guest_pb2.MountResponse, timeout_s=_MOUNT_S)

    async def unmount(self, path: str) -> None:
        """Unmount a share, which may have to write first what it holds back."""
        await self._session()
        request = guest_pb2.UnmountRequest(path=path)
        response = guest_pb2.UnmountResponse
        await self._call(GUEST + "Unmount", request, response, timeout_s=_MOUNT_S)

    def on_session(self, call: Callable[[], None]) -> None:
        """Have a function called at each further session, once the agent has its identity."""
        self._on_session.append(call)

    async def shutdown(self, grace_s: int) -> None:
        """Ask for an orderly shutdown, which goes on after the answer."""
        await self._session()
        request = agent_pb2.ShutdownRequest(timeout_seconds=grace_s)
        await self._call(AGENT + "Shutdown", request, agent_pb2.ShutdownResponse)

    async def sync_clock(self) -> None:
        """Set the guest's clock, which stood still while the machine was halted."""
        await self._link.sync_clock()

    async def close(self) -> None:
        """End the session and whatever serves it. Idempotent."""
        self._lost()
        await self._link.close()

    async def _session(self) -> None:
        """Wait for a moment if there is no session: a guest may be about to come back."""
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(_RECONNECT_S):
                    await self._ready.wait()
            except TimeoutError as error:
                raise self._unreachable(self._trouble) from error

    async def _call(
        self,
        path: str,
        request: Message,
        response: type[_M],
        *,
        timeout_s: float | None = None,
    ) -> _M:
        timeout_s = timeout_s or self._call_s
        try:
            call = self._link.call(path)
            try:
                async with asyncio.timeout(timeout_s):
                    await call.send(request.SerializeToString())
                    call.stream.finish()
                    data = await call.receive()
                    if data is None or await call.receive() is not None:
                        raise LinkError("the agent gave no answer, or more than one")
            finally:
                call.stream.abort("the caller gave up")
            return response.FromString(data)
        except TimeoutError as error:
            raise self._silent(timeout_s) from error
        except (RemoteError, LinkError, DecodeError) as error:
            raise self._translated(error) from error

    def _silent(self, seconds: float) -> AgentUnreachableError:
        return AgentUnreachableError(
            f"the agent of machine {self._name!r} did not answer in {seconds:g} s",
            hint="try again; if it goes on, stop and start the machine",
        )

    def _unreachable(self, why: str) -> AgentUnreachableError:
        return AgentUnreachableError(
            f"the agent of machine {self._name!r} does not answer" + (f": {why}" if why else ""),
            hint=f"see its console: arcbox inspect {self._name}",
        )

    def _translated(self, error: Exception) -> ArcboxError:
        if isinstance(error, RemoteError):
            return status.from_reason(error.kind, error.reason, error.message, error.hint)
        return self._unreachable(str(error))

    async def _configure(self) -> None:
        """Give the agent of a new session its identity, trying until it has it."""
        # Before, so that Configure finds the clock set: each change wakes the guest's init.
        await self._link.sync_clock()
        if self._identity is None:
            self._now_ready()
            return
        delay_s = _CONFIGURE_RETRY_S
        while True:
            request = convert.configure_request(
                self._identity,
                clock_unix_ns=time.time_ns(),
                entropy=secrets.token_bytes(_ENTROPY_BYTES),
            )
            try:
                response = await self._call(
                    GUEST + "Configure",
                    request,
                    guest_pb2.ConfigureResponse,
                    timeout_s=_CONFIGURE_S * self._scale,
                )
            except ArcboxError as error:
                self._trouble = f"{error.reason}: {error.message}"
                _log.info("agent of %s was not configured: %s", self._name, self._trouble)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _CONFIGURE_RETRY_MOST_S)
                continue
            self._log_warnings(response.warnings)
            self._trouble = ""
            self._now_ready()
            return

    def _now_ready(self) -> None:
        self._ready.set()
        for call in self._on_session:
            call()

    def _lost(self) -> None:
        self._ready.clear()

    def _log_warnings(self, warnings: Sequence[str]) -> None:
        for warning in warnings[:_MAX_WARNINGS]:
            _log.warning("agent of %s: %r", self._name, warning[:300])


async def _feed(call: Call, inputs: AsyncIterator[ExecInput]) -> None:
    """Send what the caller gives, at the pace at which the guest takes it, then the end."""
    try:
        async for item in inputs:
            await call.send(convert.exec_input_message(item).SerializeToString())
        call.stream.finish()
    except LinkError:
        return  # whoever receives hears of it, too
    except BaseException:
        call.stream.abort("the caller's input failed")
        raise


async def _fault(feeder: asyncio.Task[None]) -> None:
    """Raise what ended the caller's inputs, if anything did."""
    if feeder.done() and not feeder.cancelled() and (error := feeder.exception()) is not None:
        raise error
