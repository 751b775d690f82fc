"""Loads the kernel modules that containers and their networks need, all in one process."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH110

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from arcbox_agent import files
from arcbox_agent.programs import run

if TYPE_CHECKING:
    from arcbox_agent.cgroup import Cgroups

MODULES = (
    *("overlay", "bridge", "br_netfilter", "veth", "nf_tables", "nft_compat", "nft_chain_nat"),
    *("nf_nat", "nf_conntrack", "nf_conntrack_netlink", "xt_addrtype", "xt_conntrack"),
    *("xt_MASQUERADE", "xt_nat", "xt_tcpudp", "xt_mark", "xt_comment", "xt_multiport"),
)
_AUTOLOADER = "/proc/sys/kernel/modprobe"

_log = logging.getLogger(__name__)


async def load_modules(modprobe: str, cgroups: Cgroups) -> None:
    """Load those that are not there yet. What this kernel does not have is logged."""
    missing = not_loaded(files.read("/proc/modules"), MODULES)
    if not missing:
        return
    code, text = await run(modprobe, "-a", *missing, cgroups=cgroups)
    if code != 0:
        _log.warning("some kernel modules were not loaded: %s", text.strip()[:1000])


def not_loaded(modules: str, wanted: tuple[str, ...]) -> list[str]:
    """Give those of the wanted modules that the text of /proc/modules does not have."""
    loaded = {line.split(" ", 1)[0] for line in modules.splitlines()}
    return [name for name in wanted if name not in loaded]


def provide_autoloader(modprobe: str) -> None:
    """Let the kernel load modules by our program, when the distribution has none.

    Raises:
        OSError: The kernel refused.

    Source: Documentation/admin-guide/sysctl/kernel.rst, `modprobe`.
    """
    current = files.read(_AUTOLOADER).strip()
    if not current or not os.path.exists(current):
        set_sysctl(_AUTOLOADER, modprobe)


def set_sysctl(path: str, value: str) -> None:
    """Write a kernel's setting.

    Raises:
        OSError: The kernel refused.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
