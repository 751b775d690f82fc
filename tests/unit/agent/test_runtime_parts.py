"""The parts of the container runtime that only look and decide."""

from __future__ import annotations

import asyncio
import subprocess
import tomllib
from pathlib import Path

import pytest

from arcbox_agent import runtime_config as config
from arcbox_agent.kernel_modules import not_loaded
from arcbox_agent.published import parse_container
from arcbox_agent.runtime_end import end_groups, pids_below
from arcbox_agent.runtime_system import ensure_group, find_disk, is_shared, prepare_files
from arcboxd.errors import PreconditionError

ANY = "0.0.0.0"  # noqa: S104 - what a container asked for


@pytest.fixture
def layout(tmp_path: Path) -> config.Layout:
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "run/arcbox").mkdir(parents=True)
    return config.Layout(str(tmp_path))


def test_modules_that_are_there_are_not_loaded_again() -> None:
    text = "overlay 151552 0 - Live 0x0\nbridge 311296 1 br_netfilter, Live 0x0\n"
    assert not_loaded(text, ("overlay", "br_netfilter", "bridge")) == ["br_netfilter"]


def test_the_disk_is_found_by_its_serial_number(tmp_path: Path) -> None:
    for name, serial in (("vda", "root"), ("vdb", "runtime\n"), ("sda", "runtime")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serial").write_text(serial)
    (tmp_path / "vdc").mkdir()
    assert find_disk(str(tmp_path), "runtime") == "/dev/vdb"
    assert find_disk(str(tmp_path), "other") == ""
    assert find_disk(str(tmp_path / "none"), "runtime") == ""


def test_whether_the_root_is_shared() -> None:
    shared = "21 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n22 21 0:5 / /dev rw - devtmpfs d rw\n"
    private = "21 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n22 21 0:5 / /x rw shared:2 - t t rw\n"
    assert is_shared(shared)
    assert not is_shared(private)


@pytest.mark.parametrize(
    ("before", "user", "after"),
    [
        ("root:x:0:\n", "me", "root:x:0:\ndocker:x:999:me\n"),
        ("a:x:999:\n", "", "a:x:999:\ndocker:x:998:\n"),
        ("docker:x:5:you\nz:x:6:", "me", "docker:x:5:you,me\nz:x:6:\n"),
        ("docker:x:5:you,me\n", "me", "docker:x:5:you,me\n"),
        ("docker:x:5:\n", "root", "docker:x:5:\n"),
    ],
)
def test_the_group_that_may_use_docker(tmp_path: Path, before: str, user: str, after: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text(before)
    (tmp_path / "etc/gshadow").write_text("root:*::\n")
    ensure_group(str(tmp_path), "docker", user)
    ensure_group(str(tmp_path), "docker", user)
    assert (tmp_path / "etc/group").read_text() == after
    made = "docker:" not in before
    assert (tmp_path / "etc/gshadow").read_text() == "root:*::\n" + "docker:!::\n" * made


def test_a_system_without_var_run_gets_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "run").mkdir()
    prepare_files(str(tmp_path), "")
    assert (tmp_path / "var/run").resolve() == tmp_path / "run"


def test_docker_s_configuration_without_the_guest_s_own(layout: config.Layout) -> None:
    merged = config.merge_docker_config(layout)
    assert merged["hosts"] == [f"unix://{layout.docker_socket}"]
    assert merged["live-restore"] is True
    assert config.write_docker_config(layout)
    assert not config.write_docker_config(layout)


@pytest.mark.parametrize("text", ["[]", "{", '{"hosts": "unix:///x"}'])
def test_settings_that_make_no_sense(layout: config.Layout, text: str) -> None:
    Path(layout.own_docker_config).write_text(text)
    with pytest.raises(PreconditionError, match=r"daemon\.json"):
        config.merge_docker_config(layout)


def test_docker_s_containerd_does_without_kubernetes(layout: config.Layout) -> None:
    assert config.write_containerd_config(layout)
    written = tomllib.loads(Path(layout.containerd_config).read_text())
    assert "io.containerd.grpc.v1.cri" in written["disabled_plugins"]
    assert not config.write_containerd_config(layout)


def test_certificates_are_the_bundle_s_only_without_others(layout: config.Layout) -> None:
    assert config.environment(layout)["SSL_CERT_FILE"].startswith(layout.bundle)
    folder = Path(layout.root, "etc/ssl/certs")
    folder.mkdir(parents=True)
    (folder / "ca-certificates.crt").touch()
    assert "SSL_CERT_FILE" not in config.environment(layout)


def test_a_container_s_ports() -> None:
    state: dict[str, object] = {
        "Id": "abc",
        "Name": "/web",
        "State": {"Running": True},
        "NetworkSettings": {
            "Ports": {
                "80/tcp": [
                    {"HostIp": "::", "HostPort": "80"},
                    {"HostIp": ANY, "HostPort": "80"},
                    {"HostIp": "::", "HostPort": "81"},
                ],
                "90/tcp": None,
                "91/udp": [{"HostIp": "", "HostPort": ""}],
            },
            "Networks": {
                "lan": {"IPAddress": "192.168.9.9", "Gateway": ""},
                "mine": {"IPAddress": "172.18.0.2", "Gateway": "172.18.0.1"},
            },
        },
    }
    ports = parse_container(state)
    assert ports is not None
    found = [(each.host_port, each.host_ip) for each in ports.changed.bindings]
    assert found == [(80, ANY), (81, "::")]
    assert {each.address for each in ports.targets} == {"172.18.0.2"}
    assert parse_container(state | {"State": {"Running": False}}) is None
    assert parse_container({}) is None


async def test_what_is_left_in_a_group_is_ended(tmp_path: Path) -> None:
    """Plain files stand in for the kernel's: there is nothing to kill by them but the processes."""
    group = tmp_path / "docker" / "abc"
    group.mkdir(parents=True)
    process = subprocess.Popen(["sleep", "100"])
    procs = group / "cgroup.procs"
    procs.write_text(f"{process.pid}\n")
    assert pids_below(str(tmp_path / "docker")) == [process.pid]
    kill = tmp_path / "docker" / "cgroup.kill"
    kill.touch()
    await end_groups([str(tmp_path / "docker"), str(tmp_path / "none")], 0.1)
    assert await asyncio.to_thread(process.wait, 5) == -15
    assert kill.read_bytes() == b"1"
