"""A real machine is suspended, resumed, brought back and cloned, while its programs count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from itertools import takewhile
from pathlib import Path

import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.vm.conftest import MIB, Host, qemu_pids
from tests.vm.test_machine import zombie
from tests.vm.waiting import reboot, until

ROUNDS = int(os.environ.get("ARCBOX_TEST_ROUNDS", "3"))
COUNTER = (
    "for f in /root/count /run/count; do : >$f; done; setsid sh -c 'i=0; while :; do i=$((i+1)); "
    'echo "$(date +%s%N) $i" | tee -a /root/count >>/run/count; sleep 0.2; done\' '
    "</dev/null >/dev/null 2>&1 &"
)


def suspend(host: Host, name: str) -> int:
    """Suspend a machine, and give the bytes that it says it took."""
    return host.ext.Suspend(host_pb2.SuspendRequest(id=name), timeout=300).saved_bytes


def resume(host: Host, name: str) -> None:
    """Let a machine go on."""
    host.ext.Resume(host_pb2.ResumeRequest(id=name), timeout=300)


def counted(host: Host, name: str, file: str = "/root/count", *, cut: bool = False) -> list[int]:
    """Give what the counter has counted, which has no gap and no time that goes back.

    Of a file that was ``cut`` as by a power cut, what was written last may be torn: up to there.
    """
    lines = [line.split() for line in host.sh(name, f"cat {file}").splitlines()]
    if cut:
        lines = list(
            takewhile(lambda line: [each.isdecimal() for each in line] == [True] * 2, lines)
        )
    numbers, times = [int(n) for _, n in lines], [int(t) for t, _ in lines]
    assert numbers == list(range(1, len(numbers) + 1))
    assert times == sorted(times)
    return numbers


def goes_on(host: Host, name: str) -> None:
    """See that the counter counts, in both files alike."""
    before = len(counted(host, name))
    until(lambda: len(counted(host, name)) > before + 2, 60, "the counter goes on")
    assert abs(len(counted(host, name)) - len(counted(host, name, "/run/count"))) <= 5


def clock_is_right(host: Host, name: str) -> None:
    """See that the guest's clock is within 100 ms of the host's."""
    begin = time.time()
    told = float(host.sh(name, "date +%s.%N"))
    end = time.time()
    assert begin - 0.1 < told < end + 0.1, (begin, told, end)


def kill_daemon(host: Host) -> None:
    """Kill the daemon, and start another."""
    pid = int(host.ext.GetDaemonInfo(host_pb2.DaemonInfoRequest()).pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists() or zombie(pid), 10, "the daemon is gone")
    host.arcbox("ls")


def processes(host: Host, name: str) -> list[int]:
    """Find the machine's own; a template may be made beside it."""
    return qemu_pids(Path(host.described(name).directory))


def disk(host: Host, name: str) -> Path:
    """Name a machine's root disk."""
    request = machine_pb2.InspectMachineRequest(id=name)
    return Path(host.machines.Inspect(request).storage.disk_path)


def tags(image: Path) -> list[str]:
    """Name the snapshots in a disk."""
    told = subprocess.check_output(["qemu-img", "info", "-U", "--output=json", str(image)])
    return [each["name"] for each in json.loads(told).get("snapshots", ())]


@pytest.fixture(scope="module")
def counting(host: Host, machine_ready: str) -> str:
    """Let the machine count, on its disk and in its memory."""
    host.sh(machine_ready, COUNTER)
    goes_on(host, machine_ready)
    return machine_ready


def test_a_machine_goes_on_after_its_daemon_was_killed(host: Host, counting: str) -> None:
    kernel = (
        "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/tainted; dmesg -l emerg,alert,crit"
    )
    before = host.sh(counting, kernel)
    for _ in range(ROUNDS):
        saved = suspend(host, counting)
        assert not processes(host, counting)
        assert host.state(counting) == "suspended"
        state = Path(host.described(counting).directory) / "suspend" / "state"
        assert saved == state.stat().st_size
        kill_daemon(host)
        assert host.state(counting) == "suspended"
        resume(host, counting)
        clock_is_right(host, counting)
        goes_on(host, counting)
        assert host.arcbox("ssh", counting, "--", "echo", "ssh too").stdout == b"ssh too\n"
        assert not state.exists()
    assert host.sh(counting, kernel) == before


def test_a_daemon_killed_while_it_saves_loses_nothing(host: Host, counting: str) -> None:
    pid = int(host.ext.GetDaemonInfo(host_pb2.DaemonInfoRequest()).pid)
    state = Path(host.described(counting).directory) / "suspend.new" / "state"
    call = host.ext.Suspend.future(host_pb2.SuspendRequest(id=counting))
    saving = "the memory is being saved"  # which takes a few tenths of a second
    until(lambda: state.exists() or call.done(), 60, saving, every_s=0.001)
    os.kill(pid, signal.SIGKILL)
    assert isinstance(call.exception(), grpc.RpcError)
    host.arcbox("ls")
    until(lambda: host.state(counting) in {"running", "suspended"}, 60, "it is adopted")
    host.machines.Start(machine_pb2.StartMachineRequest(id=counting), timeout=300)
    goes_on(host, counting)
    clock_is_right(host, counting)


def test_a_snapshot_of_a_running_machine_brings_it_back(host: Host, counting: str) -> None:
    shell = host.machines.Exec(
        machine_pb2.MachineExecRequest(id=counting, cmd=["sh", "-c", "echo up; sleep 600"])
    )
    assert next(shell).data == b"up\n"
    before = len(counted(host, counting))
    made = host.ext.CreateSnapshot(
        host_pb2.CreateSnapshotRequest(id=counting, name="one"), timeout=300
    )
    assert made.memory
    assert made.saved_bytes > MIB
    goes_on(host, counting)
    clock_is_right(host, counting)
    assert host.state(counting) == "running"
    assert shell.is_active()
    shell.cancel()
    host.sh(counting, "echo later >/root/later; sync")
    later = len(counted(host, counting))

    request = host_pb2.RestoreSnapshotRequest(id=counting, name="one")
    with pytest.raises(grpc.RpcError) as refused:
        host.ext.RestoreSnapshot(request)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    request.force = True
    host.ext.RestoreSnapshot(request, timeout=300)
    assert host.state(counting) == "suspended"
    assert not processes(host, counting)
    resume(host, counting)
    assert host.state(counting) == "running"
    clock_is_right(host, counting)
    assert before <= len(counted(host, counting)) < later
    assert host.sh(counting, "test ! -e /root/later && echo gone") == "gone\n"
    goes_on(host, counting)
    host.sh(counting, "sync; echo 3 >/proc/sys/vm/drop_caches")
    counted(host, counting)

    # Once more: what was restored is still there to be restored.
    assert tags(disk(host, counting)) == ["arcbox-one"]
    host.ext.RestoreSnapshot(request, timeout=300)
    resume(host, counting)
    goes_on(host, counting)
    host.ext.RemoveSnapshot(host_pb2.RemoveSnapshotRequest(id=counting, name="one"), timeout=60)
    assert tags(disk(host, counting)) == []
    listed = host.ext.ListSnapshots(host_pb2.ListSnapshotsRequest(id=counting))
    assert not listed.snapshots
    goes_on(host, counting)


def test_a_clone_of_a_running_machine_is_another(host: Host, counting: str) -> None:
    facts = (
        "cd /etc; cat machine-id hostname ssh/ssh_host_ed25519_key.pub /sys/class/net/e*/address"
    )
    host.sh(counting, "echo kept >/root/kept")
    kept = len(counted(host, counting))
    host.ext.CloneMachine(host_pb2.CloneMachineRequest(id=counting, name="other"), timeout=600)
    goes_on(host, counting)
    clock_is_right(host, counting)
    assert host.state("other") == "stopped"
    host.machines.Start(machine_pb2.StartMachineRequest(id="other"), timeout=600)
    ours, theirs = host.sh(counting, facts).split("\n"), host.sh("other", facts).split("\n")
    assert all(a != b for a, b in zip(ours[:4], theirs[:4], strict=True))
    assert host.sh("other", "cat /root/kept; hostname") == "kept\nother\n"
    assert len(counted(host, "other", cut=True)) >= kept
    assert host.arcbox("ssh", "other", "--", "hostname").stdout == b"other\n"
    host.machines.Remove(machine_pb2.RemoveMachineRequest(id="other", force=True))


def test_a_suspended_machine_stops_in_order(host: Host, counting: str) -> None:
    suspend(host, counting)
    host.machines.Stop(machine_pb2.StopMachineRequest(id=counting), timeout=300)
    assert host.state(counting) == "stopped"
    assert not processes(host, counting)
    host.machines.Start(machine_pb2.StartMachineRequest(id=counting), timeout=600)
    assert counted(host, counting)
    assert "recover" not in host.sh(counting, "dmesg | grep -i ext4-fs")


def test_a_resumed_machine_reboots(host: Host, counting: str) -> None:
    host.machines.SSHInfo(machine_pb2.SSHInfoRequest(id=counting), timeout=600)  # init is ready
    suspend(host, counting)
    resume(host, counting)
    reboot(host, counting, "systemctl", "--no-block", "reboot")
    counted(host, counting)


def test_a_forced_stop_gives_the_memory_up(host: Host, counting: str) -> None:
    suspend(host, counting)
    host.machines.Stop(machine_pb2.StopMachineRequest(id=counting, force=True), timeout=60)
    assert host.state(counting) == "stopped"
    host.machines.Remove(machine_pb2.RemoveMachineRequest(id=counting))
    assert list((host.home / "machines").iterdir()) == []


def test_a_machine_from_a_template_has_the_same_devices_when_it_goes_on(host: Host) -> None:
    # Of the shape of the first machine, whose template may be there by now.
    cpus, memory, size = 2, 1024 * MIB, 8 << 30
    request = host_pb2.PrepareTemplateRequest(cpus=cpus, memory=memory, disk_size=size)
    host.ext.PrepareTemplate(request, timeout=600)
    host.machines.Create(
        machine_pb2.CreateMachineRequest(name="warm", cpus=cpus, memory=memory, disk_size=size)
    )
    host.machines.Start(machine_pb2.StartMachineRequest(id="warm"), timeout=300)
    assert host.described("warm").boot == "template"
    host.sh("warm", COUNTER)
    for _ in range(2):
        suspend(host, "warm")
        resume(host, "warm")
        goes_on(host, "warm")
        clock_is_right(host, "warm")
    host.machines.Remove(machine_pb2.RemoveMachineRequest(id="warm", force=True))
