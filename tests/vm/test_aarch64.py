"""A machine of another architecture than the host's: it is made, and does what machines do."""

from __future__ import annotations

import os

import pytest

from arcboxd.assets.mirror import host_arch
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.vm.conftest import MIB, Host

ARCH = "aarch64" if host_arch() == "x86_64" else "x86_64"

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("ARCBOX_TEST_NO_AARCH64")), reason="ARCBOX_TEST_NO_AARCH64 is set"
)


@pytest.fixture(scope="module")
def machine_created(host: Host) -> str:
    """Create it by Debian's name of the architecture; what it boots from is cached."""
    name = {"aarch64": "arm64", "x86_64": "amd64"}[ARCH]
    host.machines.Create(
        machine_pb2.CreateMachineRequest(
            name="foreign", arch=name, cpus=2, memory=768 * MIB, disk_size=8 << 30
        ),
        timeout=3500,
    )
    return "foreign"


# With an empty cache its image is made first, in a machine of its own.
@pytest.mark.timeout(3600)
def test_it_boots_and_answers(host: Host, machine_booted: str) -> None:
    name = machine_booted
    assert host.arcbox("exec", name, "uname", "-m").stdout.decode().strip() == ARCH
    assert host.described(name).accelerator == "tcg"
    assert host.sh(name, "echo kept >/root/file; cat /root/file; id -un") == "kept\nroot\n"
    # What only runs if dpkg and the settings were through with the image.
    broken = "dpkg --audit; test ! -e /arcbox-setup; readlink -f /sbin/init; getent passwd sshd"
    assert host.sh(name, broken).splitlines()[0] == "/usr/lib/systemd/systemd"


def test_a_directory_of_the_host_comes_and_goes(
    host: Host, machine_booted: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, folder = machine_booted, tmp_path_factory.mktemp("share")
    (folder / "word").write_text("from the host")
    host.arcbox("mount", "add", name, f"{folder}:/src")
    assert host.sh(name, "cat /src/word; echo back >/src/answer") == "from the host"
    assert (folder / "answer").read_text() == "back\n"
    host.arcbox("mount", "rm", name, "/src")
    assert host.sh(name, "cat /proc/mounts | grep -c ' /src ' || true") == "0\n"


def test_it_is_suspended_and_goes_on(host: Host, machine_booted: str) -> None:
    name = machine_booted
    host.sh(name, "echo here >/run/word")
    host.arcbox("suspend", name)
    host.arcbox("resume", name)
    assert host.sh(name, "cat /run/word") == "here\n"


def test_it_stops(host: Host, machine_booted: str) -> None:
    host.arcbox("stop", machine_booted)
    assert host.state(machine_booted) == "stopped"
