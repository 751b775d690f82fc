"""Starts the agent: options, log, services, and the end on SIGTERM."""

# Imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

from arcbox_agent import VERSION, forker
from arcbox_agent.agent_service import AgentService
from arcbox_agent.calls import methods
from arcbox_agent.cgroup import Cgroups
from arcbox_agent.clone import Clone
from arcbox_agent.guest_service import GuestService
from arcbox_agent.kernel import Kernel, NoKernel
from arcbox_agent.watch import Watch
from arcboxd.errors import LinkError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

_USAGE = "usage: arcbox-agent [--port DEVICE | --listen SOCKET] [--root DIR] [--cgroup DIR]"
_LOG_BYTES = 256 * 1024
_GC_THRESHOLD = 20_000
_LAST_INHERITED_FD = 1024
_WARM_UP_S = 3.0  # by then the start is over

_log = logging.getLogger(__name__)


class Options:
    """The command line."""

    __slots__ = ("cgroup", "listen", "port", "root")

    def __init__(self, arguments: Sequence[str]) -> None:
        """Parse `--name value` pairs; by hand, since argparse takes long to import.

        Raises:
            SystemExit: They make no sense.
        """
        self.port = ""
        self.listen = ""
        self.root = ""
        self.cgroup: str | None = None
        pairs = list(arguments)
        while pairs:
            name = pairs.pop(0).removeprefix("--")
            if name not in self.__slots__ or not pairs:
                raise SystemExit(_USAGE)
            setattr(self, name, pairs.pop(0))
        self.root = self.root.rstrip("/")
        if self.cgroup is None:
            self.cgroup = f"{self.root}/run/arcbox/cgroup"


class _BoundedLog(logging.Handler):
    """Writes to standard error, and begins anew when that is a file that has grown too long."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if os.fstat(2).st_size > _LOG_BYTES:
                os.ftruncate(2, 0)
        except OSError:  # a terminal or a pipe
            pass
        print(self.format(record), file=sys.stderr)  # noqa: T201  the log


def main(arguments: Sequence[str]) -> int:
    """Run the agent until SIGTERM; return its exit status."""
    options = Options(arguments)
    logging.basicConfig(
        handlers=[_BoundedLog()],
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # What the boot left open must not reach the processes that are run, nor must its directory.
    kept = forker.current.fd if forker.current is not None else 3
    os.closerange(3, kept)
    os.closerange(kept + 1, _LAST_INHERITED_FD)
    os.chdir("/")
    os.umask(0o022)
    # What is ignored or blocked here would be so in every process that is run: a shell's background
    # jobs start that way.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    try:
        asyncio.run(_serve(options))
    except LinkError as error:
        _log.error("%s", error.message)
        return 1
    return 0


async def _serve(options: Options) -> None:
    kernel = NoKernel() if options.root else Kernel()
    cgroups = Cgroups(options.cgroup or "")
    clone = Clone(kernel, cgroups, options.root)
    watch = Watch()
    agent = AgentService(kernel, clone, options.root, cgroups, watch)
    guest = GuestService(kernel, cgroups, clone, options.root, watch)
    served = methods(
        (
            (agent, agent_pb2.DESCRIPTOR.services_by_name["AgentService"]),
            (guest, guest_pb2.DESCRIPTOR.services_by_name["GuestService"]),
        )
    )
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGINT, ended.set)
    # From `supervise`, for an image that has no init.
    loop.add_signal_handler(signal.SIGUSR1, agent.begin_shutdown, 0.0)
    loop.add_signal_handler(signal.SIGUSR2, partial(agent.begin_shutdown, 0.0, restart=True))
    loop.call_soon(agent.take_over_services)
    loop.call_later(_WARM_UP_S, cgroups.prepare)
    if forker.current is not None:
        loop.call_later(_WARM_UP_S, forker.current.prepare)
    _tune_garbage_collection()
    if options.listen:
        from arcbox_agent.rpc import Server

        listener = await loop.create_unix_server(Server(served).protocol, options.listen)
        _log.info("version %s listens on %s", VERSION, options.listen)
        await ended.wait()
        listener.close()
    else:
        from arcbox_agent.link import serve

        await serve(served, kernel, options.port, ended, clone.greeted)
    await agent.finish()


def _tune_garbage_collection() -> None:
    """Take what start-up made out of the collector's sight, and out of what a fork has to copy."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(_GC_THRESHOLD, 50, 100)
