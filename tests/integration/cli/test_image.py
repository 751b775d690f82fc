from __future__ import annotations

import json

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon
from tests.integration.cli.stub_saved import KEYS


def test_images_are_listed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("image", "ls")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [
        [cell.strip() for cell in line.split("   ") if cell.strip()]
        for line in done.stdout.decode().splitlines()
    ]
    assert rows[0] == [
        *("KEY", "IMAGE", "ARCH", "SOURCE", "INIT", "SIZE", "ON DISK", "AGE"),
        *("TEMPLATES", "MACHINES"),
    ]
    assert rows[1][:7] == [
        *("0123456789ab", "debian:bookworm", "x86_64", "debian", "systemd", "3GiB", "200MiB")
    ]
    assert rows[1][-2:] == ["1", "db,web"]
    assert rows[2] == [
        *("fedcba987654", "alpine:3.23", "x86_64", "file", "openrc", "1GiB", "85MiB"),
        *("2 hours", "0", "-"),
    ]


def test_images_as_json(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("image", "ls", "--json")
    found = json.loads(done.stdout)
    assert [image["key"] for image in found] == list(KEYS)
    assert found[0]["machines"] == ["db", "web"]
    assert found[0]["created"] == "2023-11-14T22:13:20Z"


def test_pull_passes_what_is_asked_and_prints_key_and_size(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("image", "pull", "alpine", "--version", "3.23", "--arch", "amd64")
    assert (done.returncode, done.stdout) == (0, b"fedcba987654 85MiB\n")
    assert done.stderr == b"image: building the image\n"
    assert daemon.host.requests == [
        host_pb2.PullImageRequest(distro="alpine", version="3.23", arch="amd64")
    ]


def test_import_gives_the_daemon_an_absolute_path(arcbox: Arcbox, daemon: StubDaemon) -> None:
    file = arcbox.home / "root.tar"
    file.write_bytes(b"x")
    done = arcbox.run(
        *("image", "import", f"{arcbox.home}/missing/../root.tar", "--name", "mine"),
        *("--version", "1", "--quiet", "--json"),
    )
    assert done.returncode == 2  # that directory does not exist
    done = arcbox.run("image", "import", str(file), "--name", "mine", "--version", "1", "--json")
    assert json.loads(done.stdout)["distro"] == "mine"
    assert daemon.host.requests == [
        host_pb2.ImportImageRequest(path=str(file), name="mine", version="1")
    ]


def test_an_import_that_is_refused(arcbox: Arcbox, daemon: StubDaemon) -> None:
    file = arcbox.home / "root.tar"
    file.write_bytes(b"x")
    done = arcbox.run("image", "import", str(file), "--name", "mine", "--sha256", "0" * 64, "-q")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"arcbox: the SHA-256 digest is another\n  hint: get it again\n"


def test_import_of_what_is_no_file_asks_no_daemon(arcbox: Arcbox) -> None:
    done = arcbox.run("image", "import", str(arcbox.home), "--name", "mine")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"is no file" in done.stderr
    assert arcbox.run("image", "import", "/etc/hosts").returncode == 2


def test_rm_goes_on_after_one_that_is_in_use(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("image", "rm", "debian:bookworm", "alpine:3.23")
    assert (done.returncode, done.stdout) == (1, b"alpine:3.23\n")
    assert b"machines rest on the image: db, web" in done.stderr


def test_prune_tells_what_went(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("image", "prune")
    said = b"removed fedcba987654\nremoved agent-0123456789ab\nfreed 85MiB\n"
    assert (done.returncode, done.stdout) == (0, said)
    fields = json.loads(arcbox.run("image", "prune", "--json").stdout)
    assert set(fields) == {"keys", "boot_files", "freed_bytes"}


def test_update_tells_the_kernel(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert arcbox.run("image", "update", "-q").stdout == b"6.1.0-99-amd64 (nothing newer)\n"
    done = arcbox.run("image", "update", "-q", "--arch", "arm64")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"6.1.0-99-amd64\n", b"")
    fields = json.loads(arcbox.run("image", "update", "-q", "--json").stdout)
    assert fields == {"kernel_version": "6.1.0-99-amd64", "changed": False}


def test_verify_fails_for_what_is_damaged(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("image", "verify", "debian:bookworm", "alpine:3.23")
    assert (done.returncode, done.stdout) == (1, b"debian:bookworm\n")
    assert b"root.img" in done.stderr
