"""What the measurements share: a daemon of their own, the floor, and percentiles."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import machine_pb2, machine_pb2_grpc

MIB = 1 << 20


class Row(NamedTuple):
    """One measured figure."""

    what: str
    value: float
    unit: str
    wanted: str = ""


@dataclass
class Bench:
    """A daemon with an empty state directory."""

    home: Path
    machines: machine_pb2_grpc.MachineServiceStub
    ext: host_pb2_grpc.HostServiceStub

    def daemon_rss_bytes(self) -> int:
        """Read the daemon's resident memory."""
        pid = self.ext.GetDaemonInfo(host_pb2.DaemonInfoRequest()).pid
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


@contextlib.contextmanager
def daemon() -> Iterator[Bench]:
    """Start a daemon, and take away all that it made."""
    home = Path(tempfile.mkdtemp(prefix="abx-"))
    arcbox = str(Path(sys.executable).parent / "arcbox")
    env = {**os.environ, "ARCBOX_HOME": str(home)}
    subprocess.run([arcbox, "daemon", "start"], env=env, check=True, stdout=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(f"unix:{home}/run/arcbox.sock") as channel:
            bench = Bench(
                home,
                machine_pb2_grpc.MachineServiceStub(channel),
                host_pb2_grpc.HostServiceStub(channel),
            )
            yield bench
            for machine in bench.machines.List(machine_pb2.ListMachinesRequest(all=True)).machines:
                bench.machines.Remove(machine_pb2.RemoveMachineRequest(id=machine.id, force=True))
    finally:
        subprocess.run([arcbox, "daemon", "stop"], env=env, check=False, stdout=subprocess.DEVNULL)
        shutil.rmtree(home)


def timed(call: Callable[[], object]) -> float:
    """Time one call, in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def median_ms(call: Callable[[], object], times: int) -> float:
    """Give the median of many calls, in milliseconds, after one that does not count."""
    call()
    return statistics.median(timed(call) for _ in range(times)) * 1000
