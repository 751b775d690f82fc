"""The agent of one machine: gRPC calls over its link, with deadlines, and answers taken as data."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import grpc
import grpc.aio

from arcboxd.domain.guest import (
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecSpec,
    Identity,
    Pong,
    SystemInfo,
)
from arcboxd.errors import AgentUnreachableError, ArcboxError, LinkError, TooLateError
from arcboxd.guest.link import AgentLink
from arcboxd.wire import convert
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, guest_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, agent_pb2_grpc, common_pb2
from arcboxd.wire.status import from_rpc_error

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

MAX_MESSAGE_BYTES = 4 << 20
_CALL_S = 5.0
_CALL_MOST_S = 25.0
"""Clients of the daemon wait about 30 s for an answer; it should come before they give up."""
_CONFIGURE_S = 30.0
_CONFIGURE_RETRY_S = 0.05
_CONFIGURE_RETRY_MOST_S = 2.0
_RECONNECT_S = 3.0
"""How long a call waits for a session that was lost a moment ago, as when a guest reboots."""
_ENTROPY_BYTES = 64

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # Else a new channel would inherit the back-off of the last one to the same address.
    ("grpc.use_local_subchannel_pool", 1),
)


class _Calls:
    """The stubs of one session."""

    def __init__(self, agent_socket: Path) -> None:
        # Percent signs and spaces in a unix: target are URI syntax.
        target = f"unix:{quote(str(agent_socket))}"
        self.channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self.agent: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(
            self.channel
        )
        self.guest: guest_pb2_grpc.GuestServiceAsyncStub = guest_pb2_grpc.GuestServiceStub(
            self.channel
        )


class LinkedAgent:
    """Implements `arcboxd.machines.interfaces.GuestAgent`."""

    def __init__(
        self,
        name: str,
        link_socket: Path,
        agent_socket: Path,
        identity: Identity,
        *,
        timeout_scale: float,
    ) -> None:
        """Prepare; `open` begins."""
        self._name = name
        self._agent_socket = agent_socket
        self._identity = identity
        self._scale = timeout_scale
        self._call_s = min(_CALL_S * timeout_scale, _CALL_MOST_S)
        self._ready = asyncio.Event()
        self._calls: _Calls | None = None
        self._trouble = ""
        self._link = AgentLink(name, link_socket, agent_socket, self._configure, self._lost)

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
        """Ask for an answer: over the link itself, which takes a third of a gRPC call's time."""
        calls = await self._session()
        try:
            async with asyncio.timeout(self._call_s):
                return Pong(message, await self._link.ping())
        except LinkError:
            pass  # an agent that knows no such target, or a session that has just ended
        except TimeoutError as error:
            raise self._silent() from error
        request = agent_pb2.AgentPingRequest(message=message)
        return convert.pong(await self._answer(calls.agent.Ping(request)))

    async def system_info(self) -> SystemInfo:
        """Read what the guest says of itself."""
        calls = await self._session()
        return convert.system_info(
            await self._answer(calls.agent.GetSystemInfo(common_pb2.Empty()))
        )

    async def exec(
        self, spec: ExecSpec, inputs: AsyncIterator[ExecInput]
    ) -> AsyncGenerator[ExecOutput, None]:
        """Run a process; each output is asked of the guest only when it is asked of us."""
        calls = await self._session()
        requests = _requests(spec, inputs)
        call = calls.guest.Exec(requests)
        try:
            async for message in call:
                if (output := convert.exec_output(message)) is not None:
                    yield output
                    if isinstance(output, ExecExit):
                        return  # what the caller may still want to type has no reader
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()

    async def wait_for_port(self, port: int, timeout_s: float) -> bool:
        """Tell whether something listens on a TCP port of the guest within the time."""
        request = guest_pb2.WaitForPortRequest(port=port, timeout_millis=int(timeout_s * 1000))
        calls = await self._session()
        try:
            await calls.guest.WaitForPort(request, timeout=timeout_s + self._call_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DEADLINE_EXCEEDED}:
                return False
            raise self._translated(error) from error
        return True

    async def shutdown(self, grace_s: int) -> None:
        """Ask for an orderly shutdown, which goes on after the answer."""
        request = agent_pb2.ShutdownRequest(timeout_seconds=grace_s)
        calls = await self._session()
        await self._answer(calls.agent.Shutdown(request))

    async def close(self) -> None:
        """End the session and whatever serves it. Idempotent."""
        self._lost()
        await self._drop_channel()
        await self._link.close()

    async def _session(self) -> _Calls:
        if self._calls is None or not self._ready.is_set():
            try:
                async with asyncio.timeout(_RECONNECT_S):
                    await self._ready.wait()
            except TimeoutError:
                pass
        if self._calls is None or not self._ready.is_set():
            raise AgentUnreachableError(
                f"the agent of machine {self._name!r} does not answer"
                + (f": {self._trouble}" if self._trouble else ""),
                hint=f"see its console: arcbox inspect {self._name}",
            )
        return self._calls

    async def _answer(self, call: Awaitable[_T]) -> _T:
        # Our own deadline, not gRPC's: that is a header, new in each call, for the guest to decode.
        try:
            async with asyncio.timeout(self._call_s):
                return await call
        except TimeoutError as error:
            raise self._silent() from error
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error

    def _silent(self) -> AgentUnreachableError:
        return AgentUnreachableError(
            f"the agent of machine {self._name!r} did not answer in {self._call_s:g} s",
            hint="try again; if it goes on, stop and start the machine",
        )

    def _translated(self, error: grpc.aio.AioRpcError) -> ArcboxError:
        if error.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}:
            return AgentUnreachableError(
                f"the agent of machine {self._name!r} did not answer: {_said(error)}",
                hint="try again; if it goes on, stop and start the machine",
            )
        return from_rpc_error(error, unreachable=AgentUnreachableError)

    async def _configure(self) -> None:
        """Give the agent of a new session its identity, trying until it has it."""
        delay_s = _CONFIGURE_RETRY_S
        while True:
            # A channel a session: one to a lost session would wait out its own back-off.
            await self._drop_channel()
            calls = self._calls = _Calls(self._agent_socket)
            request = convert.configure_request(
                self._identity,
                clock_unix_ns=time.time_ns(),
                entropy=secrets.token_bytes(_ENTROPY_BYTES),
            )
            try:
                response = await calls.guest.Configure(request, timeout=_CONFIGURE_S * self._scale)
            except grpc.aio.AioRpcError as error:
                self._trouble = f"{error.code().name}: {_said(error)}"
                _log.info("agent of %s was not configured: %s", self._name, self._trouble)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _CONFIGURE_RETRY_MOST_S)
                continue
            for warning in response.warnings[:16]:
                _log.warning("agent of %s: %r", self._name, warning[:300])
            self._trouble = ""
            self._ready.set()
            return

    def _lost(self) -> None:
        self._ready.clear()

    async def _drop_channel(self) -> None:
        if self._calls is not None:
            calls, self._calls = self._calls, None
            await calls.channel.close()


def _said(error: grpc.aio.AioRpcError) -> str:
    return (error.details() or "")[:300]


async def _requests(
    spec: ExecSpec, inputs: AsyncIterator[ExecInput]
) -> AsyncGenerator[guest_pb2.ExecInput, None]:
    yield guest_pb2.ExecInput(start=convert.exec_start(spec))
    async for item in inputs:
        yield convert.exec_input_message(item)
