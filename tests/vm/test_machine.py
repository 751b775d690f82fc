"""One Debian machine through its whole life, by every call of MachineService."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from arcboxd.hypervisor.qemu.accelerator import choose_accelerator
from arcboxd.hypervisor.qemu.stale_code import may_hold
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, agent_pb2_grpc, machine_pb2
from tests.vm.conftest import MIB, Host, qemu_pids
from tests.vm.waiting import reboot, until

ROOT = Path(__file__).parents[2]
FREED = re.compile(r"processors \[.*\] of \S+: (\d+) places translated anew")


def test_a_created_machine_is_stopped_and_takes_almost_no_room(
    host: Host, machine_created: str
) -> None:
    info = host.machines.Inspect(machine_pb2.InspectMachineRequest(id=machine_created))
    assert info.state == "stopped"
    assert not info.HasField("started_at")
    assert info.storage.disk_size == 8 << 30
    assert info.storage.disk_format == "qcow2"
    assert Path(info.storage.disk_path).stat().st_blocks * 512 < 2 * MIB
    assert not host.machines.List(machine_pb2.ListMachinesRequest()).machines


def test_list_and_inspect_tell_the_truth_of_a_running_machine(
    host: Host, machine_booted: str
) -> None:
    (summary,) = host.machines.List(machine_pb2.ListMachinesRequest()).machines
    info = host.machines.Inspect(machine_pb2.InspectMachineRequest(id=machine_booted))
    assert summary.id == info.id
    assert summary.name == info.name == machine_booted
    assert summary.state == info.state == "running"
    assert summary.cpus == info.hardware.cpus == 2
    assert summary.memory == info.hardware.memory == 1024 * MIB
    assert summary.ip_address == info.network.ip_address
    assert info.hardware.arch == os.uname().machine
    assert (info.os.distro, info.os.version) == ("debian", "bookworm")
    assert 0 <= time.time() - info.created.seconds < 3600
    assert 0 <= time.time() - info.started_at.seconds < 1800
    # What inspect says is what the guest sees.
    links = host.sh(machine_booted, "cat /sys/class/net/e*/address; ip -4 -br addr; ip route")
    assert info.network.mac_address in links
    assert info.network.ip_address in links
    assert f"default via {info.network.gateway}" in links
    assert info.os.kernel == host.sh(machine_booted, "uname -r").strip()
    assert host.sh(machine_booted, "nproc").strip() == "2"
    resolver = host.sh(machine_booted, "cat /etc/resolv.conf")
    assert all(server in resolver for server in info.network.dns_servers)
    # By id and by a prefix of it, too.
    for ref in (info.id, info.id[:6]):
        assert host.machines.Inspect(machine_pb2.InspectMachineRequest(id=ref)).id == info.id


def test_ping_and_system_info(host: Host, machine_booted: str) -> None:
    request = machine_pb2.MachineAgentRequest(id=machine_booted)
    pong = host.machines.Ping(request)
    assert pong.version
    info = host.machines.GetSystemInfo(request)
    facts = host.sh(
        machine_booted,
        "uname -r; uname -m; nproc; hostname; awk '/MemTotal/{print $2}' /proc/meminfo",
    ).split()
    assert [info.kernel_version, info.arch, str(info.cpu_count), info.hostname] == facts[:4]
    assert info.total_memory == int(facts[4]) * 1024
    assert 0 < info.available_memory < info.total_memory
    assert (info.os_name, info.os_version) == ("Debian GNU/Linux", "12")
    assert len(info.load_average) == 3
    assert 0 < info.uptime < 3600
    assert "10.0.2.15" in info.ip_addresses
    assert not any(address.startswith("127.") or address == "::1" for address in info.ip_addresses)


def test_the_machine_has_an_identity_of_its_own(host: Host, machine_booted: str) -> None:
    assert host.sh(machine_booted, "hostname").strip() == machine_booted
    assert len(host.sh(machine_booted, "cat /etc/machine-id").strip()) == 32
    assert abs(float(host.sh(machine_booted, "date +%s.%N")) - time.time()) < 2
    total = int(host.sh(machine_booted, "df -B1 --output=size / | tail -1"))
    until(
        lambda: int(host.sh(machine_booted, "df -B1 --output=size / | tail -1")) > 7 << 30,
        60,
        f"the root filesystem grows to its disk (it has {total} bytes)",
    )


def test_exec_passes_bytes_statuses_and_circumstances(host: Host, machine_booted: str) -> None:
    name = machine_booted
    every = bytes(range(256))
    assert host.exec(name, "printf", "".join(f"\\{b:03o}" for b in every))[:2] == (0, every)
    assert host.exec(name, "sh", "-c", "echo out; echo err >&2; exit 42") == (
        42,
        b"out\n",
        b"err\n",
    )
    assert host.exec(name, "sh", "-c", "kill -TERM $$")[0] == 128 + 15
    assert host.exec(name, "/no/such/program")[0] == 127
    assert host.exec(name, "/etc/passwd")[0] == 126
    # The vector as it is: no shell splits or expands it.
    assert host.exec(name, "printf", "%s|", "a b", "$HOME", "*", "")[1] == b"a b|$HOME|*||"
    assert host.exec(name, "pwd", working_dir="/usr/share")[1] == b"/usr/share\n"
    assert (
        host.exec(name, "sh", "-c", "echo $A-$B", env={"A": "1 ", "B": "ü"})[1] == "1 -ü\n".encode()
    )
    host.sh(name, "id -u joe >/dev/null 2>&1 || useradd -m -G games joe")
    said = host.exec(name, "sh", "-c", "id -un; id -Gn; echo $HOME; pwd", user="joe")[1].decode()
    assert said.splitlines() == ["joe", "joe games", "/home/joe", "/home/joe"]
    assert b"not a tty" in host.exec(name, "tty")[1]
    assert host.exec(name, "tty", tty=True)[1].startswith(b"/dev/pts/")
    with pytest.raises(grpc.RpcError) as refused:
        host.exec(name, "true", user="nobody-of-that-name")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "nobody-of-that-name" in str(refused.value.details())


def test_cancelling_exec_kills_the_process_and_all_its_descendants(
    host: Host, machine_booted: str
) -> None:
    # One child in the background, and one that left its session and its parent.
    script = "sleep 7771 & setsid sh -c 'sleep 7772 & exit' & echo up; sleep 7773"
    call = host.machines.Exec(
        machine_pb2.MachineExecRequest(id=machine_booted, cmd=["sh", "-c", script])
    )
    assert next(call).data == b"up\n"
    until(
        lambda: host.sh(machine_booted, "pgrep -fc '^sleep 777' || true").strip() == "3",
        20,
        "three sleeps run",
    )
    call.cancel()
    until(
        lambda: host.sh(machine_booted, "pgrep -fc '^sleep 777' || true").strip() == "0",
        20,
        "no sleep is left",
    )


def test_much_output_arrives_whole_and_costs_little_memory(host: Host, machine_booted: str) -> None:
    size = 200 * MIB
    pid = host.ext.GetDaemonInfo(host_pb2.DaemonInfoRequest()).pid

    def daemon_rss() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def agent_rss() -> int:
        return int(
            host.sh(
                machine_booted,
                "ps -eo rss,args | awk '/[a]rcbox_agent/{s=$1>s?$1:s} END{print s*1024}'",
            )
        )

    before = daemon_rss(), agent_rss()
    call = host.machines.Exec(
        machine_pb2.MachineExecRequest(
            id=machine_booted, cmd=["head", "-c", str(size), "/dev/zero"]
        )
    )
    received, peak, digest = 0, 0, hashlib.sha256()
    for output in call:
        received += len(output.data)
        digest.update(output.data)
        peak = max(peak, daemon_rss()) if received % 64 == 0 else peak
    assert received == size
    assert digest.digest() == hashlib.sha256(bytes(size)).digest()
    assert max(peak, daemon_rss()) - before[0] < 16 * MIB
    assert agent_rss() - before[1] < 16 * MIB


def quiet(argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a program that has nobody to ask."""
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
    )


def test_ssh_scp_and_rsync_ask_nothing(host: Host, machine_ready: str, tmp_path: Path) -> None:
    info = host.machines.SSHInfo(machine_pb2.SSHInfoRequest(id=machine_ready))
    said = quiet(["sh", "-c", info.command + " 'id -un; sudo -n id -u'"])
    assert said.stdout.decode().split() == [info.user, "0"], said.stderr
    assert info.host == "127.0.0.1"
    assert Path(info.identity_file).stat().st_mode & 0o777 == 0o600
    assert f"-p {info.port}" in info.command
    options = shlex.split(info.command)[1:-1]
    at = options.index("-p")
    del options[at : at + 2]
    sent = tmp_path / "sent"
    sent.write_bytes(os.urandom(300_000))
    remote = f"{info.user}@{info.host}"
    done = quiet(["scp", "-q", *options, "-P", str(info.port), str(sent), f"{remote}:/tmp/sent"])
    assert done.returncode == 0, done.stderr
    shell = shlex.join(["ssh", *options, "-p", str(info.port)])
    done = quiet(["rsync", "-e", shell, f"{remote}:/tmp/sent", str(tmp_path / "back")])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == sent.read_bytes()


def test_the_guest_reaches_names_beyond_its_network(host: Host, machine_ready: str) -> None:
    found = host.sh(machine_ready, "grep -rhoE 'https?://[^/: ]+' /etc/apt/sources.list*")
    server = found.split()[0].partition("//")[2]
    assert host.sh(machine_ready, f"getent ahosts {server}")


def test_trim_gives_blocks_back_to_the_host(host: Host, machine_ready: str) -> None:
    disk = Path(
        host.machines.Inspect(machine_pb2.InspectMachineRequest(id=machine_ready)).storage.disk_path
    )
    host.sh(machine_ready, "head -c 100000000 /dev/urandom > /root/filler; sync")
    full = disk.stat().st_blocks * 512
    host.sh(machine_ready, "rm /root/filler; sync")
    with grpc.insecure_channel(f"unix:{host.described(machine_ready).agent_socket}") as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        result = stub.DiskTrim(agent_pb2.DiskTrimRequest(), timeout=120).result
    assert "/: " in result
    assert "bytes" in result
    until(lambda: disk.stat().st_blocks * 512 < full - 80_000_000, 30, "the overlay shrinks")


def test_killing_the_daemon_loses_nothing(host: Host, machine_ready: str) -> None:
    before = qemu_pids(host.home)
    boot = host.sh(machine_ready, "cat /proc/sys/kernel/random/boot_id")
    pid = int(host.ext.GetDaemonInfo(host_pb2.DaemonInfoRequest()).pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists() or zombie(pid), 10, "the daemon is gone")
    # Any command starts the daemon again.
    assert b"running" in host.arcbox("ls").stdout
    until(lambda: host.state(machine_ready) == "running", 30, "the machine is adopted")
    assert qemu_pids(host.home) == before
    assert host.sh(machine_ready, "cat /proc/sys/kernel/random/boot_id") == boot
    assert host.arcbox("exec", machine_ready, "echo", "still here").stdout == b"still here\n"
    assert host.arcbox("ssh", machine_ready, "--", "echo", "ssh too").stdout == b"ssh too\n"


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_reboot_from_inside_comes_back(host: Host, machine_ready: str) -> None:
    files = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub"
    identity = host.sh(machine_ready, files)
    reboot(host, machine_ready, "systemctl", "--no-block", "reboot")
    assert host.sh(machine_ready, files) == identity
    # Its agent answers long before init has started all.
    assert host.arcbox("start", "--wait", machine_ready).stdout == f"{machine_ready}\n".encode()
    states = "systemctl is-system-running; systemctl is-active ssh multi-user.target"
    assert host.sh(machine_ready, states).split() == ["running", "active", "active"]


def freed(host: Host) -> list[int]:
    """Tell how many places were translated anew each time a processor was freed."""
    return [int(places) for places in FREED.findall((host.home / "daemon.log").read_text())]


def keeps_stale_code() -> bool:
    """Tell whether machines here may be held by code that is gone."""
    argv = ["qemu-system-x86_64", "--version"]
    told = subprocess.run(argv, capture_output=True, check=False, text=True).stdout
    version = re.search(r"version (\d+)\.(\d+)", told)
    if version is None or choose_accelerator().name == "kvm":
        return False
    return may_hold(platform.machine(), 2, (int(version[1]), int(version[2])))


@pytest.mark.skipif(
    not keeps_stale_code(), reason="this QEMU does not keep code that a guest has changed"
)
def test_a_busy_kernel_is_taken_for_stuck_and_goes_on(host: Host, machine_ready: str) -> None:
    script = "timeout 30 dd if=/dev/zero of=/dev/null bs=1M count=100k status=none; echo $?"
    before = len(freed(host))
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(host.sh, machine_ready, script)
        until(lambda: len(freed(host)) > before, 60, "it is freed")
        assert busy.result(120) in {"0\n", "124\n"}
    # With something to write, and without harm.
    assert all(freed(host))
    assert host.sh(machine_ready, "dmesg | grep -cE 'soft lockup|BUG:' || true") == "0\n"


@pytest.mark.skipif(not os.environ.get("ARCBOX_TEST_FULL"), reason="minutes: ARCBOX_TEST_FULL=1")
def test_code_that_changes_under_way_holds_no_processor(host: Host, machine_ready: str) -> None:
    # Each change of this switch rewrites the scheduler's code while the other processor runs it.
    # A QEMU that keeps what was there is stuck after some 150 of them.
    switch = "/proc/sys/kernel/sched_schedstats"
    script = (
        "(while :; do for i in 1 2 3 4 5 6 7 8; do /bin/true & done; wait; done) & "
        f"for i in $(seq 600); do echo 1 >{switch}; echo 0 >{switch}; done; kill $!; echo done"
    )
    with ThreadPoolExecutor(1) as pool:
        switching = pool.submit(host.exec, machine_ready, "sh", "-c", script)
        while not switching.done():
            host.machines.Ping(machine_pb2.MachineAgentRequest(id=machine_ready), timeout=60)
            time.sleep(1)
    assert switching.result()[1] == b"done\n"


def test_stop_is_orderly_and_start_finds_everything_again(host: Host, machine_ready: str) -> None:
    identity = host.sh(machine_ready, "cat /etc/machine-id")
    host.sh(machine_ready, "echo kept > /root/kept")  # not synced: an orderly stop writes it
    host.machines.Stop(machine_pb2.StopMachineRequest(id=machine_ready), timeout=300)
    assert host.state(machine_ready) == "stopped"
    assert not qemu_pids(host.home)
    with pytest.raises(grpc.RpcError) as refused:
        host.machines.Ping(machine_pb2.MachineAgentRequest(id=machine_ready))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    host.machines.Start(machine_pb2.StartMachineRequest(id=machine_ready), timeout=600)
    assert host.sh(machine_ready, "cat /root/kept /etc/machine-id") == "kept\n" + identity


def test_a_client_of_the_given_contract_alone_does_every_call(
    host: Host, machine_ready: str, tmp_path: Path
) -> None:
    contract = ROOT.parent / "shared" / "contract"
    if not contract.is_dir():
        pytest.skip("the given contract is not beside the repository (../shared/contract)")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", str(contract)),
            *(f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"),
            *(str(path) for path in contract.glob("*.proto")),
        ],
        check=True,
    )
    done = subprocess.run(
        [
            *(sys.executable, "-I", str(Path(__file__).with_name("contract_client.py"))),
            *(str(tmp_path), str(host.home / "run/arcbox.sock")),
            *(host.described(machine_ready).agent_socket, machine_ready),
        ],
        check=False,
        capture_output=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.state(machine_ready) == "stopped"


def test_a_kernel_that_panics_gives_its_last_words(host: Host) -> None:
    host.machines.Create(
        machine_pb2.CreateMachineRequest(
            name="broken",
            cpus=1,
            memory=512 * MIB,
            disk_size=4 << 30,
            cmdline="rdinit=/no/such/init",
        )
    )
    with pytest.raises(grpc.RpcError) as failed:
        host.machines.Start(machine_pb2.StartMachineRequest(id="broken"), timeout=600)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "panic" in str(failed.value.details())
    assert host.state("broken") == "stopped"
    assert not qemu_pids(host.home)


def test_a_forced_stop_is_quick_and_can_end_a_start(host: Host) -> None:
    errors: list[grpc.RpcError] = []

    def start() -> None:
        try:
            host.machines.Start(machine_pb2.StartMachineRequest(id="broken2"), timeout=600)
        except grpc.RpcError as error:
            errors.append(error)

    host.machines.Create(
        machine_pb2.CreateMachineRequest(
            name="broken2", cpus=1, memory=512 * MIB, disk_size=4 << 30
        )
    )
    thread = threading.Thread(target=start)
    thread.start()
    until(lambda: bool(qemu_pids(host.home)), 120, "QEMU runs")
    host.machines.Stop(machine_pb2.StopMachineRequest(id="broken2", force=True), timeout=30)
    thread.join(30)
    assert len(errors) == 1
    assert not qemu_pids(host.home)
    assert host.state("broken2") == "stopped"


def test_remove_leaves_nothing(host: Host, machine_created: str) -> None:
    for name in (machine_created, "broken", "broken2"):
        host.machines.Remove(machine_pb2.RemoveMachineRequest(id=name, force=True))
    assert not host.machines.List(machine_pb2.ListMachinesRequest(all=True)).machines
    assert list((host.home / "machines").iterdir()) == []
