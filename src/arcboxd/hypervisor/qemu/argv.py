"""QEMU's command line for a machine. Pure: no I/O.

Every value that a user or a path can influence goes into a JSON argument, or into one that QEMU
does not parse, so that no comma or equals sign is ever read as an option.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from arcboxd.hypervisor.base import SHARE_SLOTS, Accelerator, ShareSlot, VmConfig
from arcboxd.hypervisor.qemu.platforms import platform_of

LINK_PORT_NAME = "arcbox.agent.0"
NETDEV = "net0"
ROOT_NODE = "root"
_FIRST_DATA_SLOT = 0x10
PLUG_BUS = "plug"
"""A bridge with places for devices that come and go. It has all of its places on every board, and
a conventional one has more of them than PCI Express ports, each of which is a bus to look at."""
RUNTIME_NODE = "runtime"
KUBERNETES_NODE = "kubernetes"
_FIRST_SHARE_PLACE = 2
_BUNDLE_PLACES = {RUNTIME_NODE: 1, KUBERNETES_NODE: _FIRST_SHARE_PLACE + 2 * SHARE_SLOTS}
"""Of the disks with programs that all machines share, by the names of their nodes."""

BASE_CMDLINE = (
    # Nothing here needs a test at each boot; what a board lacks is left out by its platform.
    "quiet panic=-1 cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1"
)
# Emulation isolates nothing (QEMU's own words), so guarding against speculation only costs there.
# And QEMU translates code anew at each address: with addresses that differ from exec to exec, a
# `true` takes 35 ms, without 9 ms (docs/decisions.md). A guest may turn that on again by sysctl.
# To emulation huge pages are pages, but a clone that joins pages copies them. The second line is
# what an idle machine would wake up for, many times a second; each time is a millisecond.
TCG_CMDLINE = (
    "mitigations=off norandmaps randomize_kstack_offset=off transparent_hugepage=madvise "
    "psi=0 nowatchdog sysctl.vm.stat_interval=30 sysctl.vm.compaction_proactiveness=0"
)

_NOTIFYING = tuple(f"virtio-{kind}-pci" for kind in ("blk", "net", "serial", "9p", "rng"))
"""Devices whose requests another thread of QEMU would take up, woken by an ioeventfd."""


def kernel_cmdline(arch: str, accelerator: Accelerator, extra: str = "") -> str:
    """Join the kernel's command line; what the user appends comes last, so that it wins."""
    of = platform_of(arch)
    parts = [BASE_CMDLINE, of.cmdline]
    if accelerator.name == "tcg":
        parts += [TCG_CMDLINE, of.emulated_cmdline]
    return " ".join(part for part in (*parts, extra) if part)


def build_argv(
    config: VmConfig,
    accelerator: Accelerator,
    *,
    qmp_fd: int,
    link_fd: int,
    shares_fd: int,
    incoming: bool = False,
) -> list[str]:
    """Write the command line.

    Args:
        config: The machine.
        accelerator: How guest code runs.
        qmp_fd: A listening unix socket that QEMU inherits, for its monitor.
        link_fd: The same, for the host's end of the link.
        shares_fd: The directory with the links to what is shared, wherever it will be moved.
        incoming: Wait, paused, for a saved state.
    """
    mib = config.memory_bytes >> 20
    of = platform_of(config.arch)
    board = config.machine_type or of.board
    argv = [
        of.program,
        "-name", f"guest=arcbox-{config.name},process=arcbox-{config.name}",
        "-uuid", config.uuid,
        "-machine", f"{board},memory-backend=ram,{of.board_options[accelerator.name]}",
        "-accel", accelerator.name,
        "-cpu", "host" if accelerator.name == "kvm" else of.emulated_cpu,
        "-smp", f"cpus={config.cpus}",
        "-m", f"{mib}M",
        "-nodefaults", "-no-user-config", "-display", "none",
        # QEMU needs no more privileges and no children once it runs.
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
        # Until the agent has answered, a reboot or a panic ends QEMU: a failed start, not a loop.
        "-action", "reboot=shutdown",
        "-kernel", str(config.assets.kernel),
        "-initrd", str(config.assets.initramfs),
        "-append", kernel_cmdline(config.arch, accelerator, config.cmdline),
        # A chardev takes no JSON; a comma in its path is doubled.
        "-chardev", f"file,id=console,append=on,path={_comma(config.paths.console_log)}",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,server=on,wait=off,fd={qmp_fd}",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=link,server=on,wait=off,fd={link_fd}",
        *_defaults(accelerator),
    ]  # fmt: skip
    # One name for the RAM wherever it lives: a saved state knows it by that.
    ram: dict[str, object] = {"qom-type": "memory-backend-ram", "id": "ram", "size": mib << 20}
    if config.memory_file is not None:
        ram |= {
            "qom-type": "memory-backend-file",
            "mem-path": str(config.memory_file.path),
            "share": config.memory_file.shared,
        }
    argv += _json("-object", **ram)
    if incoming:
        argv += ["-S", "-incoming", "defer"]
    for slot, (name, path, fmt, read_only) in enumerate(
        (
            (ROOT_NODE, config.paths.disk, "qcow2", False),
            ("modules", config.assets.modules_disk, "raw", True),
            ("agent", config.assets.agent_disk, "raw", True),
        ),
        start=2,
    ):
        argv += _disk(name, path, fmt, slot=slot, read_only=read_only)
    for slot, disk in enumerate(config.data_disks, start=_FIRST_DATA_SLOT):
        argv += _disk(disk.name, disk.path, "qcow2", slot=slot, read_only=False)
    argv += _device("virtio-serial-pci", slot=5, id="serial0")
    argv += _json(
        "-device", driver="virtserialport", bus="serial0.0", chardev="link", name=LINK_PORT_NAME
    )
    argv += _json("-netdev", type="user", id=NETDEV, ipv6=False)
    # A restored guest need not announce its address five times, as after a move to another host:
    # its network is its own, and asks for an address that it does not know.
    argv += _device(
        "virtio-net-pci",
        slot=6,
        netdev=NETDEV,
        mac=config.mac,
        romfile="",
        guest_announce=False,
    )
    argv += _json("-object", **{"qom-type": "rng-random", "id": "rng0", "filename": "/dev/urandom"})
    argv += _device("virtio-rng-pci", slot=7, rng="rng0")
    if config.balloon:
        argv += _device("virtio-balloon-pci", slot=8, **{"free-page-reporting": True})
    if of.generation_id:
        argv += ["-device", "vmgenid,guid=auto"]
    if config.pluggable:
        argv += _device("pcie-pci-bridge", slot=9, id=PLUG_BUS)
        argv += _share_places(shares_fd)
    for name, bundle in (
        (RUNTIME_NODE, config.runtime_disk),
        (KUBERNETES_NODE, config.kubernetes_disk),
    ):
        if bundle is not None:
            node = disk_node(name, bundle, "raw", read_only=True)
            argv += ["-blockdev", json.dumps(node), "-device", json.dumps(bundle_device(name))]
    return argv


def share_device(slot: ShareSlot) -> dict[str, object]:
    """Describe the device that a share is plugged in as."""
    place = _FIRST_SHARE_PLACE + slot.number + SHARE_SLOTS * slot.readonly
    return {
        "driver": "virtio-9p-pci",
        "id": slot.tag,
        "bus": PLUG_BUS,
        "addr": f"{place:#x}",
        "fsdev": slot.tag,
        "mount_tag": slot.tag,
    }


def bundle_device(node: str) -> dict[str, object]:
    """Describe the device that a disk with programs is plugged in as."""
    return {
        "driver": "virtio-blk-pci",
        "id": node,
        "bus": PLUG_BUS,
        "addr": f"{_BUNDLE_PLACES[node]:#x}",
        "drive": node,
        "serial": node,
    }


def share_slots() -> list[ShareSlot]:
    """List the places for shares."""
    return [ShareSlot(n, readonly) for readonly in (False, True) for n in range(SHARE_SLOTS)]


def _share_places(shares_fd: int) -> list[str]:
    """Declare a file system for each place.

    QEMU takes new devices while it runs, but no new file systems. It opens a file system's path
    only when a device with it is plugged in, though: each path is that of a link, which is made to
    point at the directory before that. Seen on QEMU 7.2: hw/9pfs/9p-local.c, local_init.
    """
    argv = []
    for slot in share_slots():
        # Owners and modes on the host are those of the user whom QEMU runs as.
        options = f"security_model=none,multidevs=remap,readonly={'on' if slot.readonly else 'off'}"
        path = f"/proc/self/fd/{shares_fd}/{slot.tag}"
        argv += ["-fsdev", f"local,id={slot.tag},path={path},{options}"]
    return argv


def _comma(path: Path) -> str:
    return str(path).replace(",", ",,")


def _defaults(accelerator: Accelerator) -> Iterator[str]:
    """Give what holds for each device of a kind, the plugged ones too."""
    if accelerator.name == "tcg":
        # The thread that emulates the processor is in QEMU anyway; to wake another costs more.
        for driver in _NOTIFYING:
            yield from ("-global", f"{driver}.ioeventfd=off")


def _json(option: str, **values: object) -> list[str]:
    return [option, json.dumps(values)]


def _device(driver: str, *, slot: int, **values: object) -> list[str]:
    # Fixed addresses: a guest names its disks by the order in which it finds them.
    return _json("-device", driver=driver, bus="pcie.0", addr=f"{slot:#x}", **values)


def disk_node(name: str, path: Path, fmt: str, *, read_only: bool) -> dict[str, object]:
    """Describe a disk's file, as ``-blockdev`` and ``blockdev-add`` take it."""
    node: dict[str, object] = {
        "driver": fmt,
        "node-name": name,
        "read-only": read_only,
        "file": {
            "driver": "file",
            "filename": str(path),
            "read-only": read_only,
            # A base image or bundle is read by many machines at once, and written by none.
            "locking": "off" if read_only else "auto",
        },
    }
    if not read_only:
        # Blocks that the guest discards or zeroes go back to the host's filesystem.
        node |= {"discard": "unmap", "detect-zeroes": "unmap"}
        node["file"] |= {"discard": "unmap"}  # type: ignore[operator]
    return node


def _disk(name: str, path: Path, fmt: str, *, slot: int, read_only: bool) -> list[str]:
    return [
        "-blockdev", json.dumps(disk_node(name, path, fmt, read_only=read_only)),
        *_device("virtio-blk-pci", slot=slot, drive=name, serial=name),
    ]  # fmt: skip
