"""What the daemon itself takes: the latency of its calls with 1,000 machines, and its memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc

from arcboxd.domain.machine import NewMachine
from arcboxd.settings import MIB
from arcboxd.wire.pb.arcbox.v1 import machine_pb2, machine_pb2_grpc
from bench.exec import p50
from bench.figures import Figure, Wanted
from bench.host import Host, timed

MACHINES = 1000
TIMES = 5
CALLS = 50
"""Each sample is the median of so many."""


def run(host: Host) -> list[Figure]:
    """Alternate the least call that there is with the others; no machine runs."""
    socket = f"unix:{host.paths.socket}"
    request = machine_pb2.InspectMachineRequest(id="m500")
    with host.daemon(templates="off") as client, grpc.insecure_channel(socket) as channel:
        # The client's own makes two calls of it.
        bare = machine_pb2_grpc.MachineServiceStub(channel).Inspect
        idle = host.daemon_rss_bytes(client) / MIB
        client.create(NewMachine("m0"))  # builds, that once, what is missing in the cache
        new = [NewMachine(f"m{i}") for i in range(1, MACHINES)]
        create = [timed(partial(client.create, each)) for each in new[:CALLS]]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(client.create, new[CALLS:]))
        least, everything, inspect = [], [], []
        for _ in range(TIMES):
            least.append(p50(client.daemon_info, CALLS))
            everything.append(p50(lambda: client.list(all_states=True), CALLS))
            inspect.append(p50(lambda: bare(request), CALLS))
        full = host.daemon_rss_bytes(client) / MIB
    beside = tuple(least)
    base = "L"
    return [
        Figure("least", "GetDaemonInfo, p50 (L)", "s", beside),
        Figure(
            "list",
            f"List of {MACHINES} machines, p50",
            "s",
            tuple(everything),
            beside,
            base,
            Wanted(0.01),
        ),
        Figure("inspect", "Inspect, p50", "s", tuple(inspect), beside, base, Wanted(0.002)),
        Figure("create", "Create, image in the cache", "s", tuple(create)),
        Figure("idle", "daemon's memory, no machine", "MiB", (idle,), wanted=Wanted(80)),
        Figure("full", f"daemon's memory, {MACHINES} machines", "MiB", (full,), wanted=Wanted(120)),
    ]
