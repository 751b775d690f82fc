"""Roots and kernels that are not the default: from creation to removal, rebooted from inside."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arcboxd.assets.apt import Apt
from arcboxd.assets.kernel import kernel_image_package, kernel_packages
from arcboxd.assets.mirror import host_codename
from arcboxd.assets.store import AssetStore
from arcboxd.paths import Paths
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.integration.imports.makers import mbr
from tests.vm import alpine
from tests.vm.conftest import MIB, Host, qemu_pids
from tests.vm.docker_client import root_tar
from tests.vm.waiting import reboot, until

FULL = bool(os.environ.get("ARCBOX_TEST_FULL"))
SECTOR = 512
FSTAB = """\
PARTUUID=1b0c2a33-02 / ext4 rw,discard,errors=remount-ro 0 1
LABEL=UEFI /boot/efi vfat umask=0077 0 1
UUID=5f2c8a2b-93a5-4a3c-8f6d-0a3c7c1b9f10 none swap sw 0 0
tmpfs /srv tmpfs size=1M 0 0
"""
"""As a cloud image has it, of whose partitions only the root becomes a machine's."""


def pulled(host: Host, version: str) -> Path:
    """Give the filesystem of a Debian release."""
    host.arcbox("image", "pull", "debian", "--version", version, timeout_s=1200)
    listed = json.loads(host.arcbox("image", "ls", "--json").stdout)
    keys = [each["key"] for each in listed if each["version"] == version]
    return Paths.of().images / f"image-{keys[-1]}" / "root.img"


def whole_disk(root: Path, target: Path) -> Path:
    """Make a disk of a root filesystem, with a partition before it that only fstab knows of."""
    begin = 2 * MIB
    sectors = root.stat().st_size // SECTOR
    table = [(0xEF, MIB // SECTOR, MIB // SECTOR), (0x83, begin // SECTOR, sectors)]
    disk, fstab = target / "disk.raw", target / "fstab"
    disk.write_bytes(mbr(table, {}, SECTOR))
    argv = ["dd", f"if={root}", f"of={disk}", "bs=1M", f"seek={begin // MIB}"]
    subprocess.run([*argv, "conv=sparse,notrunc", "status=none"], check=True)
    os.truncate(disk, begin + sectors * SECTOR)
    fstab.write_text(FSTAB)
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    script = f"rm /etc/fstab\nwrite {fstab} /etc/fstab\n".encode()
    argv = ["debugfs", "-w", "-f", "/dev/stdin", f"{disk}?offset={begin}"]
    subprocess.run(argv, input=script, check=True, env=env, capture_output=True)
    return disk


def lives(host: Host, name: str, version: str) -> None:
    """Take a Debian machine that was created through a reboot, until all in it runs again."""
    host.arcbox("start", name, timeout_s=1200)
    assert f"VERSION_CODENAME={version}\n" in host.sh(name, "cat /etc/os-release")
    assert host.sh(name, "hostname") == f"{name}\n"
    identity = host.sh(name, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
    reboot(host, name, "systemctl", "--no-block", "reboot")
    assert host.sh(name, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub") == identity
    said = host.arcbox("ssh", name, "--", "sudo", "-n", "cat", "/etc/hostname").stdout
    assert said.decode() == f"{name}\n"
    told = host.sh(name, "systemctl is-system-running --wait; systemctl --failed --no-legend")
    assert told == "running\n"


def ends(host: Host, name: str) -> None:
    """Stop and remove it."""
    host.arcbox("stop", name)
    assert not qemu_pids(host.home)
    host.arcbox("rm", name)


@pytest.mark.parametrize("version", ["bookworm", "trixie"] if FULL else ["trixie"])
def test_debian_from_a_whole_disk(host: Host, version: str, tmp_path: Path) -> None:
    disk = whole_disk(pulled(host, version), tmp_path)
    key = host.arcbox("image", "import", str(disk), "--name", "cloud").stdout.split()[0].decode()
    host.arcbox("create", "c", "--distro", "cloud", "--cpus", "2", "--memory", "1G")
    lives(host, "c", version)
    # No job waited for a partition that is not there, and everything else of fstab is as it was.
    fstab = host.sh("c", "cat /etc/fstab").splitlines()
    assert fstab[0] == "/dev/vda / ext4 rw,discard,errors=remount-ro 0 1"
    assert [line.startswith("# arcbox: ") for line in fstab] == [False, True, True, False]
    assert host.sh("c", "findmnt -no FSTYPE /srv") == "tmpfs\n"
    ends(host, "c")
    host.arcbox("image", "rm", key)


@pytest.mark.skipif(not FULL, reason="test_machine.py has it by other calls")
@pytest.mark.parametrize("version", ["bookworm", "trixie"])
def test_debian(host: Host, version: str) -> None:
    host.arcbox("create", "d", "--version", version, "--cpus", "2", "--memory", "1G")
    lives(host, "d", version)
    ends(host, "d")


@pytest.fixture(scope="module")
def bare(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that is a busybox and nothing else: no init, no /run, no /etc/group."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "root.tar").write_bytes(root_tar())
    layout = alpine.oci_layout([folder / "root.tar"], folder / "layout")
    archive = alpine.oci_archive(layout, folder / "oci.tar")
    key = host.arcbox("image", "import", str(archive), "--name", "bare").stdout.split()[0].decode()
    listed = json.loads(host.arcbox("image", "ls", "--json").stdout)
    assert [each["init"] for each in listed if each["key"].startswith(key)] == ["none"]
    yield "bare"
    host.arcbox("image", "rm", key)


@pytest.fixture(scope="module")
def no_init(host: Host, bare: str) -> Iterator[str]:
    host.arcbox("create", "n", "--distro", bare, "--cpus", "2", "--memory", "512M", "--start")
    yield "n"
    host.arcbox("rm", "-f", "n")


def test_without_an_init_process_1_is_ours(host: Host, no_init: str) -> None:
    assert host.sh(no_init, "hostname").split() == [no_init]
    host.arcbox("start", "--wait", no_init)  # it runs; the initramfs starts that last
    assert host.sh(no_init, "cat /proc/1/comm") == "supervise\n"
    mounts = host.sh(no_init, "cat /proc/mounts")
    for place in ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run"):
        assert f" {place} " in mounts, place
    assert host.exec(no_init, "test", "-t", "0", tty=True)[0] == 0


def test_without_an_init_orphans_are_reaped(host: Host, no_init: str) -> None:
    orphans = "for i in 1 2 3 4 5; do (sh -c 'sleep 0.5 & exit') & done; wait; echo made"
    assert host.sh(no_init, orphans) == "made\n"
    busybox = "/run/arcbox/bundle/bin/busybox"
    left = f"{busybox} ps -o stat,args | {busybox} grep -E '^Z|[s]leep 0.5' || true"
    until(lambda: not host.sh(no_init, left), 30, "all are reaped")


def test_without_an_init_a_reboot_comes_back(host: Host, no_init: str) -> None:
    host.sh(no_init, "echo kept >/kept")  # not synced: an orderly end writes it
    reboot(host, no_init, "busybox", "reboot")
    assert host.sh(no_init, "cat /kept") == "kept\n"


def test_without_an_init_a_stop_is_orderly(host: Host, no_init: str) -> None:
    script = (
        "trap 'sleep 1; echo in order >/end; exit' TERM; touch /up; while :; do sleep 0.2; done"
    )
    call = host.machines.Exec(machine_pb2.MachineExecRequest(id=no_init, cmd=["sh", "-c", script]))
    until(lambda: host.exec(no_init, "test", "-e", "/up")[0] == 0, 30, "it has its trap")
    host.arcbox("stop", no_init)
    call.cancel()
    assert host.state(no_init) == "stopped"
    log = next(host.home.glob("machines/*/console.log")).read_bytes()
    assert b"reboot: Power down" in log
    host.arcbox("start", no_init)
    assert host.sh(no_init, "cat /end /kept") == "in order\nkept\n"


def test_without_an_init_the_guest_can_switch_itself_off(host: Host, no_init: str) -> None:
    host.arcbox("start", "--wait", no_init)  # the initramfs would not listen
    host.exec(no_init, "busybox", "poweroff")
    until(lambda: host.state(no_init) == "stopped", 60, "it is off")
    assert not qemu_pids(host.home)


def package(target: Path) -> Path:
    """Take the compressed kernel out of the package that ours is made of."""

    async def fetch() -> Path:
        apt = Apt(Paths.of().assets / "apt", host_codename(), "x86_64")
        found = kernel_image_package(await apt.resolve(kernel_packages("x86_64")), "x86_64")
        return (await apt.fetch([found]))[found.name]

    argv = ["dpkg-deb", "--fsys-tarfile", str(asyncio.run(fetch()))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as dpkg:
        with tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
            member = next(each for each in tar if each.name.startswith("./boot/vmlinuz"))
            file = tar.extractfile(member)
            assert file is not None
            (target / "bzImage").write_bytes(file.read())
        dpkg.kill()
    return target / "bzImage"


def unpacked(target: Path) -> Path:
    """Give the kernel as an ELF file, under another name than our own."""
    assets = asyncio.run(AssetStore(Paths.of()).ensure("x86_64", lambda *_: None))
    (target / "vmlinux").symlink_to(assets.kernel)
    return target / "vmlinux"


@pytest.mark.parametrize("make", [package, unpacked], ids=["bzImage", "ELF"])
def test_a_kernel_of_the_users_boots(
    host: Host, bare: str, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    kernel = make(tmp_path)
    argv = ("--distro", bare, "--cpus", "1", "--memory", "512M", "--cmdline", "its.own=word")
    host.arcbox("create", "k", "--kernel", str(kernel), *argv, "--start")
    (qemu,) = qemu_pids(host.home)
    assert os.fsencode(kernel) in Path(f"/proc/{qemu}/cmdline").read_bytes().split(b"\0")
    release, cmdline = host.sh("k", "cat /proc/sys/kernel/osrelease /proc/cmdline").splitlines()
    assert cmdline.endswith(" its.own=word")
    request = machine_pb2.InspectMachineRequest(id="k")
    assert host.machines.Inspect(request).os.kernel == release
    host.arcbox("rm", "-f", "k")


def test_a_kernel_that_never_brings_up_the_agent(
    host: Host, bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'rdinit=/bin/busybox -- sh -c "echo nobody is at home here; read forever"'
    argv = ("--distro", bare, "--cpus", "1", "--memory", "512M", "--cmdline", script)
    host.arcbox("create", "h", *argv)
    host.arcbox("daemon", "stop")
    with monkeypatch.context() as patch:
        patch.setitem(host.env, "ARCBOX_START_TIMEOUT_S", "1.5")  # emulated, ten times that
        failed = host.arcbox("start", "h", check=False)
        host.arcbox("daemon", "stop")
    assert failed.returncode == 1
    assert b"did not answer within" in failed.stderr
    assert b"the console ended with:\nnobody is at home here\n" in failed.stderr
    assert host.arcbox("inspect", "h").stdout.count(b"did not answer within") == 1
    assert host.state("h") == "stopped"
    assert not qemu_pids(host.home)
    host.arcbox("rm", "h")


def test_a_kernel_that_qemu_cannot_boot(host: Host, bare: str, tmp_path: Path) -> None:
    kernel = tmp_path / "no-kernel"
    kernel.write_bytes(Path(os.path.realpath("/bin/true")).read_bytes())
    host.arcbox("create", "q", "--distro", bare, "--kernel", str(kernel))
    failed = host.arcbox("start", "q", check=False)
    assert failed.returncode == 1
    assert b"kernel" in failed.stderr, shlex.quote(failed.stderr.decode())
    assert host.state("q") == "stopped"
    assert not qemu_pids(host.home)
    host.arcbox("rm", "q")
