"""Settle: brings the system to rest, so that it can be frozen and clones of it can go on.

A clone's first calls should import nothing, find their files in memory, and do little: under
emulation whatever a clone executes is translated anew.
"""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH108, PTH112, PTH114, PTH208

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
from functools import partial
from typing import TYPE_CHECKING

from arcbox_agent import configure, forker
from arcbox_agent.child import make_spare
from arcbox_agent.programs import run
from arcbox_agent.threads import in_thread
from arcbox_agent.warm_up import WarmUp
from arcboxd.errors import ArcboxError, TooLateError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.clone import Clone
    from arcbox_agent.inits import Init
    from arcbox_agent.kernel import Kernel

_WINDOW_S = 2.0
_LAST_WINDOW_S = 0.5
_MAX_NAMED = 8
_NAMING_S = 10.0
_NAMING_WINDOW_S = 1.0
_MAX_WAIT_S = 3600.0
_ROUNDS = 4
# Whatever the first calls of a clone use. The rest was imported at start, or is imported by these.
_MODULES = (
    *("accounts", "clone", "configure", "disk", "exec", "kernel", "link", "mounts", "netlink"),
    *("network", "ports", "process", "processes", "rpc", "shares", "shutdown", "syscalls"),
    *("sysinfo", "threads", "trim", "users"),
)
_LIBRARIES = ("ctypes", "socket", "struct", "uuid", "traceback", "linecache", "inspect")
# What no two machines may share. A folder's contents go, the folder stays.
_FILES = (
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    # dockerd draws another at its next start, containerd when it is next asked.
    "/var/lib/docker/engine-id",
    "/var/lib/containerd/io.containerd.grpc.v1.introspection/uuid",
)
_FOLDERS = ("/var/log/journal", "/run/log/journal")
_EMPTIED = ("/etc/machine-id", "/var/log/wtmp", "/var/log/btmp", "/var/log/lastlog")
_DBUS_ID = "/var/lib/dbus/machine-id"
_HOST_KEYS = "/etc/ssh"

_log = logging.getLogger(__name__)


class System:
    """What settling does to the machine beyond its files; `NoSystem` pretends to."""

    def __init__(self, cgroups: Cgroups) -> None:
        """Use these groups for what is run."""
        self.cgroups = cgroups
        self._init: Init | None = None

    async def wait_booted(self) -> None:
        """Wait until init has started all it is to start.

        Raises:
            UnsupportedError: It is one whose system cannot be settled.
        """
        from arcbox_agent.inits import find_init  # noqa: PLC0415

        self._init = await find_init(self.cgroups)
        await self._init.wait_booted()

    async def wait_at_rest(self, window_s: float) -> None:
        """Wait until hardly anything was done throughout a window of time."""
        from arcbox_agent.activity import wait_at_rest  # noqa: PLC0415

        await wait_at_rest(window_s)

    async def hold(self, fifo: str) -> list[str]:
        """Stop what must begin anew in each clone. See `Init.hold`."""
        if self._init is None:
            raise RuntimeError("nobody waited for the boot")
        return await self._init.hold(fifo)

    async def busy(self) -> list[str]:
        """Name what keeps the system from its rest."""
        from arcbox_agent.activity import name_busiest  # noqa: PLC0415

        named = []
        try:
            async with asyncio.timeout(_NAMING_S):
                if self._init is not None:
                    named += await self._init.pending()
                named += await name_busiest(_NAMING_WINDOW_S)
        except (ArcboxError, OSError, TimeoutError) as error:
            _log.debug("what the system does is unknown: %s", error)
        return named

    async def rehearse(self) -> None:
        """Run what a clone's first calls may run, as they do."""
        if forker.current is not None:
            forker.current.prepare()
        self.cgroups.prepare()
        for _ in range(_ROUNDS):
            await run("/bin/true", cgroups=self.cgroups)
            await run("/bin/sh", "-c", "true; echo", cgroups=self.cgroups)


class NoSystem(System):
    """A host that an agent is tried out on: always at rest, and nothing is held or run."""

    async def wait_booted(self) -> None:
        """Take it for booted."""

    async def wait_at_rest(self, window_s: float) -> None:
        """Take it for at rest."""

    async def hold(self, fifo: str) -> list[str]:  # noqa: ARG002
        """Leave the services."""
        return []

    async def rehearse(self) -> None:
        """Run nothing."""


async def settle(
    system: System, kernel: Kernel, clone: Clone, root: str, timeout_s: float
) -> guest_pb2.SettleResponse:
    """Bring the system to rest, and take from it what no two machines may share.

    Idempotent. If it fails or is cancelled, what it held goes on; what it took stays away.

    Args:
        system: What to act on beyond files.
        kernel: What a clone's Configure acts on.
        clone: Is told that the system was settled.
        root: Below which the system's files lie.
        timeout_s: Seconds for all of it.

    Raises:
        UnsupportedError: Its init is one that cannot hold services.
        TooLateError: It did not come to rest in time.
    """
    if clone.settled:
        await configure.rehearse(kernel, clone, root)
        configure.withdraw(clone, root)
        return guest_pb2.SettleResponse()
    timeout_s = min(timeout_s, _MAX_WAIT_S)
    warnings: list[str] = []
    doing = "boot"
    try:
        async with asyncio.timeout(timeout_s):
            await system.wait_booted()
            doing = "come to rest"
            # In threads what may take long: a host that hears nothing for a while ends the session.
            await in_thread(_import_all, name="import")
            await configure.background_ended()
            await system.rehearse()
            await system.wait_at_rest(_WINDOW_S)
            doing = "hold its services"
            clone.settle(await system.hold(clone.fifo))
            for _ in range(_ROUNDS):
                configure.withdraw(clone, root)
                await configure.rehearse(kernel, clone, root)
            for what, step in _strip(clone, root):
                try:
                    step()
                except OSError as error:
                    warnings.append(f"Could not {what}: {error}.")
            clone.warm_up = WarmUp.prepare(system.cgroups)
            if (group := make_spare(system.cgroups)) is not None:
                system.cgroups.put_back(group)
            gc.collect()
            gc.freeze()
            await in_thread(os.sync, name="sync")
            await system.wait_at_rest(_LAST_WINDOW_S)
            await in_thread(os.sync, name="sync")
            clone.poise()
    except TimeoutError as error:
        busy = "; ".join((await system.busy())[:_MAX_NAMED]) or "nothing in particular"
        clone.release()
        raise TooLateError(
            f"The system did not {doing} within {timeout_s:g} s. Busy: {busy}."
        ) from error
    except BaseException:
        clone.release()
        raise
    return guest_pb2.SettleResponse(warnings=warnings)


def _import_all() -> None:
    for name in _MODULES:
        importlib.import_module(f"arcbox_agent.{name}")
    for name in _LIBRARIES:
        importlib.import_module(name)


def _strip(clone: Clone, root: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Give the steps that take away what makes this machine this one."""
    yield "take away its identity", partial(configure.withdraw, clone, root)
    known = [f"ssh_host_{key.type}_key" for key in clone.configured.ssh_host_keys]
    for path in (*_FILES, *_host_keys(root, known)):
        yield f"remove {path}", partial(_remove, f"{root}{path}")
    for path in _FOLDERS:
        yield f"empty {path}", partial(_empty_folder, f"{root}{path}")
    for path in _EMPTIED:
        yield f"empty {path}", partial(_truncate, f"{root}{path}")
    if not os.path.islink(f"{root}{_DBUS_ID}"):
        yield f"remove {_DBUS_ID}", partial(_remove, f"{root}{_DBUS_ID}")


def _host_keys(root: str, known: list[str]) -> list[str]:
    """List the SSH server's keys that the agent did not write."""
    try:
        names = os.listdir(f"{root}{_HOST_KEYS}")
    except FileNotFoundError:
        return []
    return [
        f"{_HOST_KEYS}/{name}"
        for name in names
        if name.startswith("ssh_host_") and name.removesuffix(".pub") not in known
    ]


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _empty_folder(path: str) -> None:
    import shutil  # noqa: PLC0415

    if os.path.isdir(path) and not os.path.islink(path):
        for entry in os.scandir(path):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _truncate(path: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    os.close(fd)
