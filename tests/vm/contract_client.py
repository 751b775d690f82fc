"""A client that knows the given contract and nothing of this project. Run by test_machine.

usage: contract_client.py GENERATED DAEMON_SOCKET AGENT_SOCKET MACHINE
"""

from __future__ import annotations

import sys
import time

generated, daemon_socket, agent_socket, machine = sys.argv[1:]
sys.path.insert(0, generated)

import agent_pb2  # type: ignore[import-not-found]  # noqa: E402
import agent_pb2_grpc  # type: ignore[import-not-found]  # noqa: E402
import common_pb2  # type: ignore[import-not-found]  # noqa: E402
import grpc  # noqa: E402
import machine_pb2 as m  # type: ignore[import-not-found]  # noqa: E402
import machine_pb2_grpc  # type: ignore[import-not-found]  # noqa: E402

host = machine_pb2_grpc.MachineServiceStub(grpc.insecure_channel(f"unix:{daemon_socket}"))
agent = agent_pb2_grpc.AgentServiceStub(grpc.insecure_channel(f"unix:{agent_socket}"))


def state() -> str:
    """Ask for the machine's state."""
    return str(host.Inspect(m.InspectMachineRequest(id=machine)).state)


other = host.Create(m.CreateMachineRequest(name="by-contract")).id
assert other in {each.id for each in host.List(m.ListMachinesRequest(all=True)).machines}
assert host.Inspect(m.InspectMachineRequest(id=other)).state == "stopped"
host.Remove(m.RemoveMachineRequest(id=other, volumes=True))
assert other not in {each.id for each in host.List(m.ListMachinesRequest(all=True)).machines}

assert host.Ping(m.MachineAgentRequest(id=machine)).version
assert host.GetSystemInfo(m.MachineAgentRequest(id=machine)).hostname == machine
*outputs, last = host.Exec(m.MachineExecRequest(id=machine, cmd=["sh", "-c", "echo hello; exit 3"]))
assert b"".join(each.data for each in outputs) == b"hello\n"
assert last.done
assert last.exit_code == 3
assert host.SSHInfo(m.SSHInfoRequest(id=machine)).command.startswith("ssh ")

pong = agent.Ping(agent_pb2.AgentPingRequest(message="over", timestamp_secs=int(time.time())))
assert pong.message == "over"
assert agent.GetSystemInfo(common_pb2.Empty()).hostname == machine
assert agent.DiskTrim(agent_pb2.DiskTrimRequest()).result
assert agent.Shutdown(agent_pb2.ShutdownRequest(timeout_seconds=30)).accepted
end = time.monotonic() + 180
while state() != "stopped":
    assert time.monotonic() < end, "the machine did not stop after Shutdown"
    time.sleep(0.5)

host.Start(m.StartMachineRequest(id=machine))
assert state() == "running"
host.Stop(m.StopMachineRequest(id=machine))
assert state() == "stopped"
