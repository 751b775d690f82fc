"""Real machines that start from a template: new machines, each with nothing of another's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.vm.conftest import ARCBOX, MIB, Host, qemu_pids
from tests.vm.waiting import until

GIB = 1 << 30
SHAPE = ("--memory", "1GiB", "--cpus", "2", "--disk", "8GiB")
IDENTITY = """
cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/dmi/id/product_uuid
cat /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2
cat /sys/class/net/eth0/address
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '
hostname; cat /etc/hostname; getent hosts "$(hostname)" | tr -s ' ' | cut -d' ' -f2
"""


@dataclass(frozen=True)
class Clone:
    """What a machine says of itself right after its start."""

    machine_id: str
    boot_id: str
    product_uuid: str
    host_key: str
    mac: str
    random: str
    names: tuple[str, ...]
    clock_error_s: float


def start(host: Host, name: str, disk_bytes: int = 8 * GIB) -> Clone:
    """Make and start a machine of the template's shape, and ask at once who it is."""
    request = machine_pb2.CreateMachineRequest(
        name=name, cpus=2, memory=1024 * MIB, disk_size=disk_bytes
    )
    host.machines.Create(request, timeout=600)
    host.machines.Start(machine_pb2.StartMachineRequest(id=name), timeout=600)
    begin = time.time()
    told = float(host.sh(name, "date +%s.%N"))
    error = max(0.0, begin - told, told - time.time())
    lines = host.sh(name, IDENTITY).split("\n")[:-1]
    machine_id, boot_id, product_uuid, host_key, mac, random, *names = lines
    return Clone(
        machine_id, boot_id, product_uuid, host_key, mac, random, tuple(names), clock_error_s=error
    )


@pytest.fixture(scope="module")
def template(host: Host) -> Iterator[str]:
    """Make a template as a user does."""
    out = host.arcbox("image", "prepare", *SHAPE).stdout.decode()
    assert not qemu_pids(host.home)
    yield out.split()[0]
    for machine in host.machines.List(machine_pb2.ListMachinesRequest(all=True)).machines:
        host.machines.Remove(machine_pb2.RemoveMachineRequest(id=machine.id, force=True))


@pytest.fixture(scope="module")
def clones(host: Host, template: str) -> dict[str, Clone]:
    """Start machines from it, two of them at once, one with a larger disk."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda name: start(host, name), ("one", "two")))
    return {"one": both[0], "two": both[1], "large": start(host, "large", 9 * GIB)}


def test_they_start_from_the_template(host: Host, template: str, clones: dict[str, Clone]) -> None:
    for name in clones:
        extra = host.described(name)
        assert (extra.boot, extra.boot_reason) == ("template", f"from template {template}")
        assert host.sh(name, "systemctl is-system-running").strip() == "running"
    (row,) = host.ext.ListTemplates(host_pb2.ListTemplatesRequest()).templates
    assert row.key.startswith(template)
    assert row.current
    assert row.machines == 3
    with pytest.raises(grpc.RpcError) as caught:
        host.ext.RemoveTemplate(host_pb2.RemoveTemplateRequest(key=row.key))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_no_two_share_an_identity(host: Host, clones: dict[str, Clone]) -> None:
    for field in ("machine_id", "boot_id", "product_uuid", "host_key", "mac", "random"):
        assert len({getattr(clone, field) for clone in clones.values()}) == len(clones), field
    for name, clone in clones.items():
        info = host.machines.Inspect(machine_pb2.InspectMachineRequest(id=name))
        assert clone.names == (name,) * len(clone.names)
        assert clone.mac == info.network.mac_address
        assert clone.clock_error_s < 0.05
        assert clone.product_uuid.replace("-", "") == clone.machine_id
        known = Path(host.described(name).directory, "known_hosts").read_text()
        assert clone.host_key in known


def test_ssh_and_the_journal_are_its_own(host: Host, clones: dict[str, Clone]) -> None:
    for name, clone in list(clones.items())[:2]:
        assert host.arcbox("ssh", name, "--", "echo", "it works").stdout == b"it works\n"
        assert host.sh(name, "systemctl restart ssh && echo done") == "done\n"
        host.sh(name, "logger -t test hello")
        journal = f"journalctl -t test -n 1 -o verbose | grep -c _MACHINE_ID={clone.machine_id}"
        until(lambda name=name, j=journal: host.sh(name, f"{j} || :").strip() == "1", 30, "a log")
        boot = clone.boot_id.replace("-", "")
        assert host.sh(name, f"journalctl -n 1 -o verbose | grep -c _BOOT_ID={boot}") == "1\n"
        kept = host.sh(
            name, "ls /var/log/journal /run/log/journal 2>/dev/null | grep -E '^[0-9a-f]{32}$'"
        )
        assert set(kept.split()) == {clone.machine_id}


def test_timers_and_devices_are_watched_again(host: Host, clones: dict[str, Clone]) -> None:
    (name, *_) = clones
    states = "systemctl show -p ActiveState --value '*.timer' | sort -u"
    until(lambda: host.sh(name, states).split() == ["active"], 30, "timers")
    assert int(host.sh(name, "systemctl list-timers --no-legend | grep -c tmpfiles-clean")) == 1
    host.sh(name, "rm -f /run/udev/data/b*; udevadm trigger --settle /sys/class/block/vda")
    assert "ID_SERIAL" in host.sh(name, "cat /run/udev/data/b$(cat /sys/class/block/vda/dev)")


def test_a_larger_disk_has_grown(host: Host, clones: dict[str, Clone]) -> None:
    def size(name: str) -> int:
        return int(host.sh(name, "df --output=size -B1 / | tail -1"))

    until(lambda: size("large") > 8.5 * GIB, 60, "the filesystem grows")
    assert size("one") < 8 * GIB


def test_clones_share_the_templates_memory(host: Host, clones: dict[str, Clone]) -> None:
    usage = host.ext.GetUsage(host_pb2.GetUsageRequest(), timeout=60)
    assert {each.name for each in usage.machines} == set(clones)
    for each in usage.machines:
        assert each.shared_bytes > 0
        assert each.own_bytes < each.memory_bytes / 2
        assert 0 < each.guest_used_bytes < each.memory_bytes


def test_a_reboot_from_inside_is_a_new_boot_of_the_same_machine(
    host: Host, clones: dict[str, Clone]
) -> None:
    before = clones["two"]
    host.sh("two", "echo kept >/root/kept; sync; (sleep 0.2; reboot -f) >/dev/null 2>&1 &")

    def rebooted() -> bool:
        try:
            boot_id = host.sh("two", "cat /proc/sys/kernel/random/boot_id").strip()
        except (grpc.RpcError, AssertionError):
            return False
        return boot_id != before.boot_id

    until(rebooted, 120, "it is up again")
    lines = host.sh("two", IDENTITY + "cat /root/kept").split("\n")[:-1]
    assert (lines[0], lines[2:5], lines[6]) == (
        before.machine_id,
        [before.product_uuid, before.host_key, before.mac],
        "two",
    )
    assert lines[-1] == "kept"


def test_later_it_boots_as_any_other(host: Host, clones: dict[str, Clone]) -> None:
    host.sh("one", "echo kept >/root/kept; sync")
    host.machines.Stop(machine_pb2.StopMachineRequest(id="one"), timeout=600)
    host.machines.Start(machine_pb2.StartMachineRequest(id="one"), timeout=600)
    assert host.described("one").boot == "cold"
    lines = host.sh("one", IDENTITY + "cat /root/kept").split("\n")[:-1]
    before = clones["one"]
    assert lines[0] == before.machine_id
    assert lines[1] != before.boot_id
    assert lines[3:5] == [before.host_key, before.mac]
    assert lines[-1] == "kept"
    host.machines.Remove(machine_pb2.RemoveMachineRequest(id="one", force=True))


def test_a_clone_has_its_mounts(host: Host, template: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("of the host\n")
    host.arcbox("create", "shared", *SHAPE, "--mount", f"{tmp_path}:/src/f", "--wait")
    # What it had held back, too.
    assert host.sh("shared", "systemctl is-active ssh systemd-journald").split() == ["active"] * 2
    assert host.described("shared").boot == "template"
    assert host.sh("shared", "cat /src/f/f; touch /src/f/g") == "of the host\n"
    assert (tmp_path / "g").exists()
    host.machines.Remove(machine_pb2.RemoveMachineRequest(id="shared", force=True))


def test_staged_clones(host: Host, template: str, clones: dict[str, Clone], tmp_path: Path) -> None:
    env = {**host.env, "ARCBOX_STAGED_CLONES": "1"}
    subprocess.run([str(ARCBOX), "daemon", "stop"], env=env, check=True, timeout=60)
    subprocess.run([str(ARCBOX), "daemon", "start"], env=env, check=True, timeout=60)

    def staged() -> int:
        request = host_pb2.ListTemplatesRequest()
        return sum(row.staged for row in host.ext.ListTemplates(request, timeout=60).templates)

    third = start(host, "third")
    until(lambda: staged() == 1, 60, "a clone is staged")
    fourth = start(host, "fourth")
    assert host.described("fourth").boot_reason == f"from template {template}, staged"
    assert fourth.names[0] == "fourth"
    host.arcbox("mount", "add", "fourth", f"{tmp_path}:/src")
    host.sh("fourth", "touch /src/made")
    assert (tmp_path / "made").exists()
    assert fourth.clock_error_s < 0.05
    everyone = [*clones.values(), third, fourth]
    for field in ("machine_id", "boot_id", "product_uuid", "host_key", "mac", "random"):
        assert len({getattr(clone, field) for clone in everyone}) == len(everyone), field
    assert host.arcbox("ssh", "fourth", "--", "hostname").stdout == b"fourth\n"
    # What waits ends with the daemon; machines go on.
    subprocess.run([str(ARCBOX), "daemon", "stop"], env=host.env, check=True, timeout=60)
    subprocess.run([str(ARCBOX), "daemon", "start"], env=host.env, check=True, timeout=60)
    assert len(qemu_pids(host.home)) == len(
        host.machines.List(machine_pb2.ListMachinesRequest()).machines
    )
    until(lambda: host.sh("fourth", "hostname") == "fourth\n", 60, "it is adopted")
    assert not list(Path(host.home, "work").iterdir())


def test_a_daemon_that_is_killed_while_making_one_leaves_nothing(host: Host) -> None:
    before = set(qemu_pids(host.home))
    making = subprocess.Popen(
        [str(ARCBOX), "image", "prepare", *SHAPE[:2], "--cpus", "1"],
        env=host.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: set(qemu_pids(host.home)) - before, 60, "the template's machine runs")
    time.sleep(3)
    pid = host.ext.GetDaemonInfo(host_pb2.DaemonInfoRequest()).pid
    os.kill(pid, signal.SIGKILL)
    assert making.wait(60) != 0
    subprocess.run([str(ARCBOX), "daemon", "start"], env=host.env, check=True, timeout=60)
    until(lambda: set(qemu_pids(host.home)) == before, 30, "its process is ended")
    assert not list(Path(host.home, "work").iterdir())
    assert len(host.ext.ListTemplates(host_pb2.ListTemplatesRequest(), timeout=60).templates) == 1
