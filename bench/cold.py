"""A cold start against the floor: the same kernel with a busybox init that says one word."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import time
from pathlib import Path

from arcboxd.assets.store import AssetStore
from arcboxd.hypervisor.qemu.accelerator import choose_accelerator
from arcboxd.hypervisor.qemu.argv import kernel_cmdline, program
from arcboxd.paths import Paths
from arcboxd.wire.pb.arcbox.v1 import machine_pb2 as m
from bench.measure import MIB, Row, daemon, timed

TIMES = 3
VCPUS = 2
MEMORY_MIB = 1024
READY = b"FLOOR_READY"


def floor_assets() -> tuple[Path, Path]:
    """Give a kernel and the least initramfs, building them when they are missing."""
    store = AssetStore(Paths.of())
    return asyncio.run(store.floor(os.uname().machine, lambda *_: None))


def floor_s(kernel: Path, initramfs: Path, cmdline: str) -> float:
    """Time QEMU's start to the first word of a bare kernel's init, in seconds."""
    accelerator = choose_accelerator()
    accel, cpu = ("kvm", "host") if accelerator.name == "kvm" else ("tcg,thread=multi", "max")
    began = time.perf_counter()
    with subprocess.Popen(
        [
            *(program(os.uname().machine), "-machine", "q35", "-accel", accel, "-cpu", cpu),
            *("-smp", str(VCPUS), "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none"),
            *("-no-reboot", "-serial", "stdio"),
            *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", cmdline),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as qemu:
        assert qemu.stdout is not None
        try:
            seen = b""
            while READY not in seen:
                seen += (chunk := os.read(qemu.stdout.fileno(), 65536))
                assert chunk, seen
            return time.perf_counter() - began
        finally:
            qemu.kill()


def run() -> list[Row]:
    """Alternate the floor and a cold start."""
    kernel, initramfs = floor_assets()
    ours = kernel_cmdline(choose_accelerator())
    plain = "console=ttyS0 quiet no_timer_check"
    floors: list[float] = []
    plains: list[float] = []
    starts: list[float] = []
    with daemon() as bench:
        for i in range(TIMES):
            bench.machines.Create(
                m.CreateMachineRequest(name=f"c{i}", cpus=VCPUS, memory=MEMORY_MIB * MIB)
            )
            plains.append(floor_s(kernel, initramfs, plain))
            floors.append(floor_s(kernel, initramfs, ours))
            starts.append(
                timed(lambda i=i: bench.machines.Start(m.StartMachineRequest(id=f"c{i}")))
            )
            bench.machines.Stop(m.StopMachineRequest(id=f"c{i}", force=True))
    floor, plain_s, start = map(statistics.median, (floors, plains, starts))
    return [
        Row("bare kernel to its init, no options (F)", plain_s, "s"),
        Row("bare kernel to its init, our options", floor, "s"),
        Row("Start to the first Ping", start, "s"),
        Row("Start against F", start / plain_s, "x", "≤ 2.0"),
        Row("Start against the kernel with our options", start / floor, "x"),
    ]
