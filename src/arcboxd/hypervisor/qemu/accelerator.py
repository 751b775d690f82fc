"""Which accelerator this host can use, and why."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from arcboxd.domain.image import ARCH_ALIASES
from arcboxd.errors import InvalidArgumentError
from arcboxd.hypervisor.base import Accelerator

TCG_TIMEOUT_SCALE = 10.0
"""Emulation runs a guest 5 to 20 times slower than hardware does; timeouts are scaled by this."""

KVM = "kvm"
TCG = "tcg"


def choose_accelerator(
    setting: str = "auto",
    *,
    device: Path = Path("/dev/kvm"),
    cpuinfo: Path = Path("/proc/cpuinfo"),
    arch: str | None = None,
) -> Accelerator:
    """Choose kvm only where it works for certain.

    Hosts exist whose /dev/kvm opens and then never gets a stock kernel past its first instructions,
    so on x86 the processor must have the feature as well.

    Args:
        setting: ``auto``, ``kvm`` or ``tcg``; the last two are taken at their word.
        device: Where KVM's device is.
        cpuinfo: Where the kernel lists the processor's features.
        arch: The host's architecture as uname(2) names it.

    Raises:
        InvalidArgumentError: The setting is none of these.
    """
    if setting == KVM:
        return Accelerator(KVM, "the configuration says so", 1.0)
    if setting == TCG:
        return Accelerator(TCG, "the configuration says so", TCG_TIMEOUT_SCALE)
    if setting != "auto":
        raise InvalidArgumentError(f"accelerator {setting!r} is not one of auto, kvm, tcg")
    reason = _why_not_kvm(device, cpuinfo, arch or platform.machine())
    if reason:
        return Accelerator(TCG, reason, TCG_TIMEOUT_SCALE)
    return Accelerator(KVM, f"{device} opens and the processor has the feature", 1.0)


def for_arch(own: Accelerator, arch: str, *, host: str | None = None) -> Accelerator:
    """Give what runs code of an architecture, where ``own`` runs that of the host's.

    Args:
        own: As `choose_accelerator` gave it.
        arch: The guest's architecture.
        host: The host's architecture as uname(2) names it.
    """
    here = host or platform.machine()
    if ARCH_ALIASES.get(here, here) == arch:
        return own
    return Accelerator(TCG, f"this host is {here}, not {arch}", TCG_TIMEOUT_SCALE)


def _why_not_kvm(device: Path, cpuinfo: Path, arch: str) -> str:
    if not device.exists():
        return f"{device} does not exist"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened by this user (is it in the group kvm?)"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} does not open: {error.strerror}"
    if arch == "x86_64":
        flags = next(
            (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), ""
        ).split()
        if "vmx" not in flags and "svm" not in flags:
            return f"{device} opens, but the processor has neither vmx nor svm"
    return ""
