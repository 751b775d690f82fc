"""The orderly end of containers and their daemons, before init's own shutdown.

Init knows nothing of them: systemd waits 90 s for a container that takes no notice of SIGTERM.
"""

# pathlib is not imported: start-up takes long under emulation. What daemons and containers do has
# no event that is cheaper than a look.
# ruff: noqa: ASYNC110, PTH110, PTH115, PTH119, PTH123

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

from arcbox_agent import runtime_config as config
from arcbox_agent.docker_api import Docker
from arcboxd.errors import ArcboxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.supervisor import Supervisor

_RELOAD_S = 2.0
_POLL_S = 0.05
_LEAST_S = 1.0
_GRACE_S = 5.0
_SYSTEM_HIERARCHY = "/sys/fs/cgroup"
_GROUPS = ("docker", "kubepods")
"""Where containers live, by the cgroupfs driver: dockerd's default and kubelet's."""

_log = logging.getLogger(__name__)


async def end_runtime(
    supervisor: Supervisor, layout: config.Layout, hierarchy: str, grace_s: float
) -> None:
    """Stop containers, dockerd and containerd, within the grace and little more.

    The containers are stopped by dockerd as at its own end, not one by one: those it stops by
    request it does not start again at the next boot where the policy is `unless-stopped`. What is
    left of them then is asked to end, and killed.

    Args:
        supervisor: Runs the daemons.
        layout: Where their files are.
        hierarchy: A mount of the control groups; empty: there is none.
        grace_s: Seconds for all of it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace_s
    unit = supervisor.find("dockerd")
    if unit is not None and unit.pid:
        await _let_go_of_containers(layout, unit.signal, max(1, round(grace_s - _RELOAD_S)))
    await supervisor.stop("dockerd", grace_s=max(_LEAST_S, deadline - loop.time()))
    await end_groups(_groups(hierarchy), max(_LEAST_S, deadline - loop.time()))
    await supervisor.stop("containerd", grace_s=_LEAST_S)


async def end_with_init(hierarchy: str) -> None:
    """Kill containers that keep a systemd from going down, which has asked everyone to end.

    Nothing if the agent ends for another reason. Containers that dockerd did not stop begin again
    at the next boot, if their policy says so.
    """
    try:
        program = os.readlink("/proc/1/exe")
    except OSError:
        return
    if os.path.basename(program) == "systemd-shutdown":
        await end_groups(_groups(hierarchy), _GRACE_S)


def _groups(hierarchy: str) -> list[str]:
    if not hierarchy:
        return []
    # A systemd that goes down unmounts ours, but not its own.
    mounted = os.path.exists(f"{hierarchy}/cgroup.procs")
    return [f"{hierarchy if mounted else _SYSTEM_HIERARCHY}/{name}" for name in _GROUPS]


async def _let_go_of_containers(
    layout: config.Layout, send: Callable[[int], None], timeout_s: int
) -> None:
    """Make dockerd end its containers when it ends, which `live-restore` keeps it from."""
    changes: dict[str, object] = {"live-restore": False, "shutdown-timeout": timeout_s}
    docker = Docker(layout.docker_socket)
    try:
        config.write_docker_config(layout, **changes)
        send(signal.SIGHUP)
        async with asyncio.timeout(_RELOAD_S):
            while await _restores(docker):
                await asyncio.sleep(_POLL_S)
    except (OSError, ArcboxError, TimeoutError) as error:
        _log.warning("dockerd could not be told to stop its containers: %s", error)


async def _restores(docker: Docker) -> bool:
    answer = await docker.get("/info", _RELOAD_S)
    return isinstance(answer, dict) and bool(answer.get("LiveRestoreEnabled"))


async def end_groups(folders: list[str], grace_s: float) -> None:
    """End every process in control groups and those below: SIGTERM, and SIGKILL after the grace."""
    pids = [pid for folder in folders for pid in pids_below(folder)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
    deadline = asyncio.get_running_loop().time() + (grace_s if pids else 0)
    while any(pids_below(folder) for folder in folders):
        if asyncio.get_running_loop().time() > deadline:
            for folder in folders:
                _kill(folder)
            return
        await asyncio.sleep(_POLL_S)


def pids_below(folder: str) -> list[int]:
    """List the processes of a control group and of all below it."""
    found = []
    for path, _, _ in os.walk(folder):
        try:
            with open(f"{path}/cgroup.procs", encoding="ascii") as procs:
                found += [int(line) for line in procs]
        except OSError:  # it has just gone
            continue
    return found


def _kill(folder: str) -> None:
    try:
        fd = os.open(f"{folder}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)
