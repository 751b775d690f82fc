"""What QEMU's machines differ in from one architecture to the other. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arcboxd.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Platform:
    """QEMU's machine for one architecture."""

    program: str
    package: str
    """Debian's, which has the program."""
    board: str
    """QEMU's name for the newest version of the board that it has."""
    board_options: Mapping[str, str]
    """By the accelerator's name."""
    emulated_cpu: str
    """The processor where the host's own does not run the guest."""
    cmdline: str
    """For the kernel, beside what all architectures have."""
    emulated_cmdline: str = ""
    """The same, only under emulation."""
    generation_id: bool = False
    """Whether QEMU can tell the guest that it is a copy (vmgenid needs ACPI)."""


_PC = "sata=off,smbus=off,vmport=off"

PLATFORMS: Mapping[str, Platform] = {
    "x86_64": Platform(
        program="qemu-system-x86_64",
        package="qemu-system-x86",
        board="q35",
        board_options={"kvm": _PC, "tcg": _PC},
        # Without "erms", kernel and libc clear and copy by eight bytes, not by one, and each step
        # of `rep stosb` is a loop of its own to QEMU. Linux does not boot with "fsrm" alone.
        # Without "smap", the kernel's accesses to a process's memory are not translated, and their
        # pages not looked up, a second time.
        emulated_cpu="max,erms=off,fsrm=off,smap=off",
        # No hardware of these names is ever there to be probed.
        cmdline="console=ttyS0 no_timer_check i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd "
        "8250.nr_uarts=1 "
        # ACPI tells of what is plugged in; the other driver of that bridge would only complain.
        "initcall_blacklist=shpcd_init",
        # udev loads KVM for a processor that has SVM, or VMX: a second of boot, and a call at each
        # tick. Who asks for it by name gets it.
        emulated_cmdline="tsc=reliable modprobe.blacklist=kvm_amd,kvm_intel",
        generation_id=True,
    ),
    "aarch64": Platform(
        program="qemu-system-aarch64",
        package="qemu-system-arm",
        board="virt",
        # Version 3 for more than 8 processors; a host may have only one version to lend.
        board_options={"kvm": "gic-version=host", "tcg": "gic-version=3"},
        # Not "max": it signs pointers, and the kernel makes much use of that. (T) kernel to init
        # 1.5 s, with "max" 9.8 s, and 3.9 s if it signs them weakly.
        emulated_cpu="cortex-a76",
        cmdline="console=ttyAMA0",
        # "mitigations=off" leaves this on where the kernel's address is random.
        emulated_cmdline="kpti=off",
    ),
}


def platform_of(arch: str) -> Platform:
    """Give the platform of an architecture, by the kernel's name of it.

    Raises:
        UnsupportedError: None is known.
    """
    if arch not in PLATFORMS:
        raise UnsupportedError(f"no QEMU program is known for the architecture {arch!r}")
    return PLATFORMS[arch]
