"""What a saved state depends on, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd.hypervisor.base import DataDisk, Forward, MemoryFile, VmConfig
from arcboxd.hypervisor.qemu.fingerprint import Program, fingerprint, newest_board
from tests.unit.hypervisor.test_argv import KVM, TCG, config

PROGRAM = Program("/usr/bin/qemu-system-x86_64", 1, 2)
CPUINFO = "processor\t: 0\nmodel\t\t: 85\nflags\t\t: sse\nbogomips\t: {}\n\nprocessor\t: 1\n"


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO.format(1))
    return path


def template(directory: str = "/state/machines/m1", *, shared: bool = True) -> VmConfig:
    vm = config(directory)
    memory = MemoryFile(Path(directory) / "ram", shared=shared)
    return replace(vm, memory_file=memory, balloon=False, machine_type="pc-q35-7.2")


def test_what_is_only_this_machines_does_not_count(cpuinfo: Path) -> None:
    other = replace(
        template("/elsewhere", shared=False),
        machine_id="m2",
        name="two",
        uuid="00000000-0000-0000-0000-000000000002",
        mac="52:54:00:00:00:02",
        forwards=(Forward("tcp", "127.0.0.1", 1, 22),),
        background=True,
    )
    expected = fingerprint(template(), TCG, PROGRAM, cpuinfo)
    assert fingerprint(other, TCG, PROGRAM, cpuinfo) == expected
    cpuinfo.write_text(CPUINFO.format(2))
    assert fingerprint(template(), TCG, PROGRAM, cpuinfo) == expected


def test_all_else_does(cpuinfo: Path) -> None:
    vm = template()
    expected = fingerprint(vm, TCG, PROGRAM, cpuinfo)
    others = [
        replace(vm, cpus=2),
        replace(vm, memory_bytes=2 << 30),
        replace(vm, cmdline="quiet"),
        replace(vm, machine_type="pc-q35-8.0"),
        replace(vm, balloon=True),
        replace(vm, memory_file=None),
        replace(vm, data_disks=(DataDisk("d", Path("/d")),)),
        replace(vm, assets=replace(vm.assets, key="another kernel or agent")),
    ]
    assert expected not in {fingerprint(each, TCG, PROGRAM, cpuinfo) for each in others}
    assert fingerprint(vm, KVM, PROGRAM, cpuinfo) != expected
    assert fingerprint(vm, TCG, replace(PROGRAM, mtime_ns=3), cpuinfo) != expected
    cpuinfo.write_text(CPUINFO.format(1).replace("sse", "sse avx"))
    assert fingerprint(vm, TCG, PROGRAM, cpuinfo) != expected


async def test_the_newest_board(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(
        "#!/bin/sh\necho 'Supported machines are:'\n"
        "echo 'pc                   PC (alias of pc-i440fx-7.2)'\n"
        "echo 'q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)'\n"
        "echo 'pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)'\n"
        "echo 'virt                 QEMU 7.2 ARM Virtual Machine (alias of virt-7.2)'\n"
    )
    qemu.chmod(0o755)
    assert await newest_board(Program.at(str(qemu)), "q35") == "pc-q35-7.2"
    assert await newest_board(Program.at(str(qemu)), "virt") == "virt-7.2"
