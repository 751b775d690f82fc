"""QEMU's command line keeps what users say apart from what QEMU parses."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd.domain.image import BootAssets
from arcboxd.errors import UnsupportedError
from arcboxd.hypervisor.base import Accelerator, DataDisk, VmConfig
from arcboxd.hypervisor.qemu.argv import build_argv, kernel_cmdline
from arcboxd.hypervisor.qemu.platforms import PLATFORMS, platform_of
from arcboxd.paths import MachinePaths

KVM = Accelerator("kvm", "test", 1.0)
TCG = Accelerator("tcg", "test", 10.0)


def config(directory: str = "/state/machines/m1") -> VmConfig:
    return VmConfig(
        machine_id="m1",
        name="dev",
        uuid="00000000-0000-0000-0000-000000000001",
        arch="x86_64",
        cpus=3,
        memory_bytes=1 << 30,
        mac="52:54:00:00:00:01",
        paths=MachinePaths(Path(directory)),
        assets=BootAssets("k", Path("/a/k"), Path("/a/i"), Path("/a/m,x=y"), Path("/a/b"), "6.1.0"),
        cmdline="user.option=1",
    )


def argv(vm: VmConfig, accelerator: Accelerator = TCG) -> list[str]:
    return build_argv(vm, accelerator, qmp_fd=7, link_fd=8, shares_fd=9)


def values(args: list[str], option: str) -> list[str]:
    return [b for a, b in itertools.pairwise(args) if a == option]


def blockdevs(args: list[str]) -> dict[str, dict[str, object]]:
    return {(node := json.loads(value))["node-name"]: node for value in values(args, "-blockdev")}


def test_paths_with_commas_stay_whole() -> None:
    args = argv(config("/state/a,file=b/machines/m1"))
    nodes = blockdevs(args)
    assert nodes["root"]["file"]["filename"] == "/state/a,file=b/machines/m1/root.qcow2"  # type: ignore[index]
    assert nodes["modules"]["file"]["filename"] == "/a/m,x=y"  # type: ignore[index]
    console = next(v for v in values(args, "-chardev") if v.startswith("file,"))
    assert console.endswith("path=/state/a,,file=b/machines/m1/console.log")


def test_shared_disks_are_read_only_and_the_root_gives_blocks_back() -> None:
    nodes = blockdevs(argv(config()))
    assert nodes["modules"]["read-only"] is True
    assert nodes["agent"]["read-only"] is True
    assert nodes["root"]["read-only"] is False
    assert nodes["root"]["discard"] == nodes["root"]["detect-zeroes"] == "unmap"


def test_disks_are_found_in_a_fixed_order() -> None:
    vm = replace(config(), data_disks=(DataDisk("data0", Path("/v/data0.qcow2")),))
    devices = [json.loads(v) for v in values(argv(vm), "-device") if v.startswith("{")]
    disks = [d for d in devices if d["driver"] == "virtio-blk-pci"]
    assert [d["serial"] for d in disks] == ["root", "modules", "agent", "data0"]
    addresses = [int(d["addr"], 16) for d in disks]
    assert addresses == sorted(addresses)
    everything = [d["addr"] for d in devices if "addr" in d]
    assert len(set(everything)) == len(everything)


def test_the_accelerators_differ_by_flags_only() -> None:
    kvm, tcg = argv(config(), KVM), argv(config(), TCG)
    assert "-global" not in kvm
    assert set(values(tcg, "-global")) >= {"virtio-blk-pci.ioeventfd=off"}
    while "-global" in tcg:
        at = tcg.index("-global")
        del tcg[at : at + 2]
    assert len(kvm) == len(tcg)
    changed = {
        a for a, (x, y) in zip(kvm, zip(kvm[1:], tcg[1:], strict=True), strict=False) if x != y
    }
    assert changed == {"-accel", "-cpu", "-append"}


def test_the_users_kernel_options_come_last_and_only_emulation_drops_mitigations() -> None:
    for arch in PLATFORMS:
        assert kernel_cmdline(arch, KVM, "a=b").endswith(" a=b")
        assert "mitigations=off" not in kernel_cmdline(arch, KVM)
        assert "mitigations=off" in kernel_cmdline(arch, TCG)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="m68k"):
        platform_of("m68k")


def test_an_arm_machine_has_nothing_of_a_pc() -> None:
    pc, arm = argv(config()), argv(replace(config(), arch="aarch64"))
    assert arm[0] == "qemu-system-aarch64"
    assert values(arm, "-machine")[0].startswith("virt,")
    assert not any(word in " ".join(arm) for word in ("sata", "vmport", "vmgenid", "ttyS0"))
    assert "console=ttyAMA0" in values(arm, "-append")[0]
    # Guests find their disks by the same addresses.
    devices = [[json.loads(v) for v in values(a, "-device") if v[0] == "{"] for a in (pc, arm)]
    assert devices[0] == devices[1]
