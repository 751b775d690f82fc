"""The latency of the daemon's calls, and its memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from arcboxd.wire.pb.arcbox.v1 import machine_pb2 as m
from bench.measure import MIB, Row, daemon, median_ms, timed

STOPPED = 1000


def run() -> list[Row]:
    """Measure with one running machine and 1,000 stopped ones."""
    with daemon() as bench:
        idle = bench.daemon_rss_bytes() / MIB
        calls = bench.machines
        calls.Create(m.CreateMachineRequest(name="one", cpus=2, memory=1024 * MIB))
        again = timed(lambda: calls.Create(m.CreateMachineRequest(name="two")))
        calls.Start(m.StartMachineRequest(id="one"))
        calls.SSHInfo(m.SSHInfoRequest(id="one"))  # init is done
        ref = m.MachineAgentRequest(id="one")
        true = m.MachineExecRequest(id="one", cmd=["true"])
        ping = median_ms(lambda: calls.Ping(ref), 100)
        run_true = median_ms(lambda: list(calls.Exec(true)), 50)
        with ThreadPoolExecutor(4) as pool:
            for future in [
                pool.submit(calls.Create, m.CreateMachineRequest(name=f"m{i}"))
                for i in range(STOPPED - 1)
            ]:
                future.result()
        everything = median_ms(lambda: calls.List(m.ListMachinesRequest(all=True)), 50)
        inspect = median_ms(lambda: calls.Inspect(m.InspectMachineRequest(id="m500")), 100)
        full = bench.daemon_rss_bytes() / MIB
    return [
        Row("Create, image in the cache", again * 1000, "ms"),
        Row("List, 1,000 stopped machines, p50", everything, "ms", "≤ 10"),
        Row("Inspect, 1,000 machines, p50", inspect, "ms", "≤ 2"),
        Row("Ping through the daemon, p50", ping, "ms", "≤ 10"),
        Row("Exec of true, p50", run_true, "ms", "≤ 60"),
        Row("daemon's memory, idle", idle, "MiB", "≤ 80"),
        Row("daemon's memory, 1,000 machines", full, "MiB", "≤ 120"),
    ]
