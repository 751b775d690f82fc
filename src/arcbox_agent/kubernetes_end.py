"""The end of a cluster: its processes, pods, mounts, networks and, if asked, all of its files.

What is left of the pods is taken away as a reboot would take it, without asking containerd or the
API server, either of which may be what does not work.
"""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH106, PTH108, PTH112, PTH114, PTH120, PTH208

from __future__ import annotations

import asyncio
import logging
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from arcbox_agent import files, programs
from arcbox_agent.mounts import read_mounts
from arcbox_agent.runtime_end import end_groups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.kubernetes_layout import Cluster
    from arcbox_agent.kubernetes_parts import Distribution

_STOP_S = 10.0
_PODS_S = 10.0
_PODS_GROUP = "kubepods"
_PROBES_GROUP = "k8s.io"  # where containerd puts what it starts without a pod's group
_MOUNTS = ("/var/lib/kubelet/", "/run/k3s/", "/var/lib/rancher/", "/run/netns/cni-")
_NAMES = re.compile(r"cni0|cni-podman.*|flannel[.\d-].*|kube-bridge|kube-ipvs0|nodelocaldns")
_CHAINS = re.compile(r"(KUBE|CNI|FLANNEL)-")
_OWN_RULE = re.compile(r"-j (KUBE|CNI|FLANNEL)-|flanneld|/\* name: \"arcbox\"")
_TABLES = ("iptables", "ip6tables")
_MAX_RULES_BYTES = 32 << 20

_log = logging.getLogger(__name__)


async def end_cluster(distribution: Distribution, cgroups: Cgroups) -> None:
    """End every process of a cluster, and what its pods leave in the kernel. Idempotent.

    Takes as long as pods take to end, which are killed after ten seconds.
    """
    supervisor, layout = distribution.supervisor, distribution.layout
    await asyncio.gather(*(supervisor.stop(n, grace_s=_STOP_S) for n in distribution.before_pods))
    pods = f"{cgroups.hierarchy}/{_PODS_GROUP}"
    if cgroups.hierarchy:
        await end_groups([pods], _PODS_S)
    for group in distribution.after_pods:
        await asyncio.gather(*(supervisor.stop(name, grace_s=_STOP_S) for name in group))
    for name in distribution.holders:
        holder = cgroups.of_service(name)
        if holder is not None:
            await end_groups([holder.path], 0)  # shims: their containers are gone
            holder.remove()
    if cgroups.hierarchy:
        for name in (_PODS_GROUP, _PROBES_GROUP):
            _remove_groups(f"{cgroups.hierarchy}/{name}")
    _unmount([*(layout.root + path for path in _MOUNTS), f"{layout.run}/"])
    _remove_namespaces(f"{layout.root}/run/netns")
    await _remove_networks(distribution)
    await _remove_rules(distribution, cgroups)
    _remove_addresses(f"{layout.root}/var/lib/cni/networks/arcbox")


async def remove_files(distribution: Distribution, cluster: Cluster | None) -> None:
    """Remove all that a cluster keeps, but for what was there before it; and let go of its disk.

    Raises:
        OSError: Something cannot be removed.
    """
    layout = distribution.layout
    found = cluster.found if cluster is not None else ()
    for path in distribution.paths:
        place = layout.root + path
        if path not in found:
            await asyncio.to_thread(_remove_all, place)
    for name in distribution.services:
        for suffix in ("", ".1"):
            _remove(layout.log(name) + suffix)
    await asyncio.to_thread(_remove_all, layout.run)
    await asyncio.to_thread(_remove_all, layout.state)
    _remove_all(os.path.dirname(layout.state))
    _unmount([layout.bundle])


def _remove_all(path: str) -> None:
    import shutil

    if os.path.isdir(path) and not os.path.islink(path):
        # Folders that others use too go only if they are empty: see `Distribution.paths`.
        if path.endswith(("/etc/cni", "/etc/cni/net.d", "/var/lib/arcbox")):
            try:
                os.rmdir(path)
            except OSError as error:
                _log.info("%s stays: %s", path, error)
            return
        shutil.rmtree(path)
    else:
        _remove(path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _unmount(prefixes: list[str]) -> None:
    """Take mounts out of the tree, the innermost first; those in use go when they no longer are."""
    from arcbox_agent.syscalls import detach

    targets = [mount.target for mount in read_mounts()]
    for target in reversed(targets):
        if target.startswith(tuple(prefixes)):
            try:
                detach(target)
            except OSError as error:
                _log.warning("%s", error)


def _remove_namespaces(folder: str) -> None:
    try:
        names = [name for name in os.listdir(folder) if name.startswith("cni-")]
    except FileNotFoundError:
        return
    for name in names:
        _remove(f"{folder}/{name}")


def _remove_addresses(folder: str) -> None:
    """Give the pods' addresses back: no pod has one now."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        _remove(f"{folder}/{name}")


def _remove_groups(folder: str) -> None:
    for place, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(place)
        except OSError as error:
            _log.info("%s stays: %s", place, error)


async def _remove_networks(distribution: Distribution) -> None:
    """Remove the interfaces; those of pods went with their namespaces."""
    for name in _interfaces():
        # Whoever is called so in a guest is a cluster's network: the names are the plugins' own.
        code, text = await distribution.system.run("ip", "link", "delete", name)
        if code != 0:
            _log.warning("the interface %s stays: %s", name, text.strip())


def _interfaces() -> list[str]:
    return [name for name in sorted(os.listdir("/sys/class/net")) if _NAMES.fullmatch(name)]


async def _remove_rules(distribution: Distribution, cgroups: Cgroups) -> None:
    """Remove the rules of kube-proxy, kubelet and the network plugins; all others stay."""
    folder = distribution.layout.runtime.bin
    script = f"{distribution.layout.run}/rules"
    run = partial(programs.run, cgroups=cgroups, env=distribution.environment())
    for program in _TABLES:
        save, restore = f"{folder}/{program}-save", f"{folder}/{program}-restore"
        code, text = await run(save, max_output_bytes=_MAX_RULES_BYTES)
        if code == 0 and (commands := removal(text)):
            files.write(script, commands)
            code, text = await run(restore, "--noflush", script)
        if code != 0:
            _log.warning("rules of the cluster stay: %s", text.strip()[:500])


def removal(rules: str) -> str:
    """Turn what iptables-save prints into what makes iptables-restore remove a cluster's rules.

    See iptables-restore(8): with --noflush nothing else changes, and a table changes as a whole.
    """
    return "".join(_removal_of_table(*table) for table in _tables(rules))


def _removal_of_table(name: str, chains: list[str], rules: list[str]) -> str:
    own = [chain for chain in chains if _CHAINS.match(chain)]
    commands = []
    for rule in rules:
        _, _, rest = rule.partition(" ")
        chain = rest.split(" ", 1)[0]
        if chain not in own and _OWN_RULE.search(rule):
            commands.append(f"-D {rest}")
    commands += [f"-F {chain}" for chain in own]
    commands += [f"-X {chain}" for chain in own]
    return "\n".join([f"*{name}", *commands, "COMMIT", ""]) if commands else ""


def _tables(rules: str) -> Iterator[tuple[str, list[str], list[str]]]:
    name, chains, found = "", list[str](), list[str]()
    for line in rules.splitlines():
        if line.startswith("*"):
            name, chains, found = line[1:], [], []
        elif line.startswith(":"):
            chains.append(line[1:].split(" ", 1)[0])
        elif line.startswith("-A "):
            found.append(line)
        elif line == "COMMIT":
            yield name, chains, found
