"""A guest that does one thing and powers off: no monitor, no network, no link."""

from __future__ import annotations

import json
from pathlib import Path

from arcboxd.errors import AssetBuildError
from arcboxd.hypervisor.qemu.accelerator import choose_accelerator, for_arch
from arcboxd.hypervisor.qemu.argv import ROOT_NODE, disk_node, kernel_cmdline
from arcboxd.hypervisor.qemu.platforms import platform_of
from arcboxd.process import CommandError, run, tool

_CPUS = 2
_MEMORY_MIB = 1024


async def run_once(
    arch: str, *, kernel: Path, initramfs: Path, disk: Path, console: Path, timeout_s: float
) -> None:
    """Boot a guest of one disk, and wait until it has powered off. Cancelled, it is killed.

    Args:
        arch: The guest's architecture.
        kernel: What it boots.
        initramfs: The same.
        disk: A raw disk, which is not whole unless this returns.
        console: Appended to.
        timeout_s: How long it may take.

    Raises:
        AssetBuildError: QEMU failed.
        MissingToolError: QEMU is not installed.
        TooLateError: It took longer, and was killed.
        UnsupportedError: There is no such architecture.
    """
    of = platform_of(arch)
    accelerator = for_arch(choose_accelerator(), arch)
    node = disk_node(ROOT_NODE, disk, "raw", read_only=False)
    # Nobody needs a half-made disk after a crash.
    node["cache"] = {"no-flush": True}
    argv = [
        tool(of.program, package=of.package),
        "-machine", f"{of.board},{of.board_options[accelerator.name]}",
        "-accel", accelerator.name,
        "-cpu", "host" if accelerator.name == "kvm" else of.emulated_cpu,
        "-smp", f"cpus={_CPUS}",
        "-m", f"{_MEMORY_MIB}M",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
        "-kernel", str(kernel),
        "-initrd", str(initramfs),
        "-append", kernel_cmdline(arch, accelerator),
        "-chardev", f"file,id=console,append=on,path={str(console).replace(',', ',,')}",
        "-serial", "chardev:console",
        "-blockdev", json.dumps(node),
        "-device", json.dumps({"driver": "virtio-blk-pci", "drive": ROOT_NODE}),
    ]  # fmt: skip
    try:
        await run(argv, timeout_s=timeout_s)
    except CommandError as error:
        raise AssetBuildError(f"a machine that finishes an image failed: {error}") from error
