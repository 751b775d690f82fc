"""The daemon: everything put together, served until a signal or a client ends it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from arcboxd import settings as settings_module
from arcboxd.daemon import limits, lock, logs
from arcboxd.daemon.parts import Parts, build
from arcboxd.daemon.server import Server
from arcboxd.docker.socket import DockerSockets
from arcboxd.errors import ArcboxError, DaemonRunningError
from arcboxd.machines.context import Context
from arcboxd.machines.events import EventBus
from arcboxd.machines.registry import Registry
from arcboxd.machines.service import Machines
from arcboxd.machines.template_store import TemplateStore
from arcboxd.paths import Paths
from arcboxd.settings import Settings
from arcboxd.store.database import MachineDatabase

_log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_RUNNING = 3
"""The exit status of a daemon that found another one."""


async def serve(
    settings: Settings,
    paths: Paths,
    *,
    parts: Callable[[Settings, Paths], Parts] = build,
    stop: asyncio.Event | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT, a client's wish or ``stop``; machines go on running.

    Args:
        settings: What the user has set.
        paths: The state directory, which must not be another daemon's.
        parts: Makes the implementations behind the interfaces.
        stop: Ends the daemon when it is set.
        ready: Called once calls are answered.

    Raises:
        DaemonRunningError: Another daemon owns the state directory.
        StoreError: The state cannot be read.
    """
    stopping = stop or asyncio.Event()
    with lock.owned(paths):
        async with AsyncExitStack() as stack:
            machines = await open_machines(settings, paths, parts(settings, paths), stack)
            server = Server(machines, paths, stopping.set)
            await server.start()
            stack.push_async_callback(server.stop)
            docker = DockerSockets(machines.context)
            stack.push_async_callback(docker.close)
            docker.open()
            _handle_signals(stopping, stack)
            _log.info(
                "serving %d machines on %s", len(machines.list(all_states=True)), paths.socket
            )
            if ready is not None:
                ready()
            await stopping.wait()
            _log.info("ending; machines go on running")


async def open_machines(
    settings: Settings, paths: Paths, parts: Parts, stack: AsyncExitStack
) -> Machines:
    """Open the state, and give the use cases on it; the stack lets go of them, in order.

    Raises:
        StoreError: The state cannot be read.
    """
    database = await MachineDatabase.open(paths)
    stack.push_async_callback(database.close)
    events = EventBus()
    machines = Machines(
        Context(
            settings=settings,
            paths=paths,
            hypervisor=parts.hypervisor,
            connector=parts.connector,
            assets=parts.assets,
            images=parts.images,
            registry=Registry(database, events),
            events=events,
            templates=TemplateStore(paths),
        )
    )
    stack.push_async_callback(machines.close)
    await machines.open()
    return machines


def run(*, home: Path | None = None, flags: dict[str, object] | None = None) -> int:
    """Run a daemon to its end, and give its exit status: 0, 1 if it failed, 3 if another one runs.

    Args:
        home: The state directory; None for ``$ARCBOX_HOME`` or ``~/.arcbox``.
        flags: Settings from a command line.
    """
    os.umask(0o077)
    paths = Paths.of(home)
    # The caller's directory, and the filesystem that it is on, stay free.
    os.chdir("/")
    try:
        settings = settings_module.load(paths.config, flags)
        lock.check_length(paths)
        paths.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs.set_up(paths, settings.log_level, terminal=not _is_log(paths))
        limits.raise_descriptors()
        asyncio.run(serve(settings, paths))
    except ArcboxError as error:
        sentence = " - ".join(filter(None, (error.message, error.hint)))
        if logging.getLogger().handlers:
            _log.error("%s", sentence)
        else:
            sys.stderr.write(f"arcbox: {sentence}\n")
        return EXIT_RUNNING if isinstance(error, DaemonRunningError) else EXIT_FAILED
    except Exception:
        _log.exception("the daemon failed")
        raise
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a daemon: ``python -m arcboxd.daemon``."""
    parser = argparse.ArgumentParser(prog="arcboxd", description="Serve machines on a unix socket.")
    parser.add_argument("--home", type=Path, help="the state directory")
    parser.add_argument("--accelerator", help="auto, kvm or tcg")
    parser.add_argument("--log-level", help="debug, info, warning or error")
    args = parser.parse_args(argv)
    flags = {"accelerator": args.accelerator, "log_level": args.log_level}
    return run(home=args.home, flags=flags)


def _handle_signals(stopping: asyncio.Event, stack: AsyncExitStack) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stopping.set)
        except (RuntimeError, ValueError):
            return  # not the main thread: whoever runs us there ends us by `stop`
        stack.callback(loop.remove_signal_handler, number)


def _is_log(paths: Paths) -> bool:
    """Tell whether stderr is ``daemon.log`` already, as when the client starts us."""
    try:
        return os.path.samestat(os.fstat(2), paths.daemon_log.stat())
    except OSError:
        return False
