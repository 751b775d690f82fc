from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from arcboxd.assets.apt import Apt, Package
from arcboxd.assets.kernel import kernel_packages
from arcboxd.assets.mirror import DEBIAN_ARCHES, host_arch, host_codename
from arcboxd.cli import checks
from arcboxd.cli.checks import Verdict
from arcboxd.paths import Paths


def program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def bin_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checks, "_which", lambda name: _in(tmp_path, name))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path


def _in(directory: Path, name: str) -> str | None:
    return str(directory / name) if (directory / name).exists() else None


@pytest.mark.parametrize(
    ("says", "verdict"),
    [
        ("QEMU emulator version 7.2.19 (Debian)", Verdict.OK),
        ("QEMU emulator version 10.0.1", Verdict.OK),
        ("QEMU emulator version 7.1.0", Verdict.MISSING),
        ("what?", Verdict.MISSING),
    ],
)
def test_qemu_must_be_7_2(bin_: Path, says: str, verdict: Verdict) -> None:
    program(bin_, "qemu-system-x86_64", f"echo '{says}'")
    own, other = checks.qemus()
    assert own.verdict is verdict
    assert (other.verdict, other.mend) == (Verdict.WARNING, "apt-get install qemu-system-arm")


def test_what_is_missing_comes_with_its_package(bin_: Path) -> None:
    assert next(checks.qemus()).mend == "apt-get install qemu-system-x86"
    assert checks.filesystem_tools().mend == "apt-get install erofs-utils"
    assert checks.tool("ssh", "openssh-client", "", False).verdict is Verdict.WARNING
    needed = checks.tool("qemu-img", "qemu-utils", "makes disks", True)
    assert (needed.verdict, needed.mend) == (Verdict.MISSING, "apt-get install qemu-utils")


def test_busybox_must_be_static(bin_: Path) -> None:
    (bin_ / "busybox").write_bytes(b"\x7fELF" + b"\0" * 500 + b"/lib64/ld-linux-x86-64.so.2\0")
    assert checks.busybox().mend == "apt-get install busybox-static"
    (bin_ / "busybox").write_bytes(b"\x7fELF" + b"\0" * 500)
    assert checks.busybox().verdict is Verdict.OK


def test_subordinate_ids_are_for_those_who_are_not_root(
    bin_: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_user", lambda: "me")
    assert checks.subids(uid=0, etc=bin_).verdict is Verdict.OK
    (bin_ / "subuid").write_text("you:1:65536\nme:100000:65536\n")
    missing = checks.subids(uid=1000, etc=bin_)
    assert missing.mend == "usermod --add-subgids 100000-165535 me"
    (bin_ / "subgid").write_text("1000:100000:65536\nbroken\n")
    assert checks.subids(uid=1000, etc=bin_).mend == "apt-get install uidmap"
    program(bin_, "newuidmap", "")
    assert checks.subids(uid=1000, etc=bin_).verdict is Verdict.OK


def test_socket_paths_must_fit(tmp_path: Path) -> None:
    assert checks.socket_length(Paths(Path("/s"), tmp_path)).verdict is Verdict.OK
    deep = Paths(Path("/" + "d" * 90), tmp_path)
    assert checks.socket_length(deep).verdict is Verdict.MISSING


@pytest.mark.parametrize(("days", "verdict"), [(0, Verdict.OK), (45, Verdict.WARNING)])
def test_a_kernel_may_be_old(tmp_path: Path, days: int, verdict: Verdict) -> None:
    paths = Paths(tmp_path / "home", tmp_path / "cache")
    assert not [*checks.kernel(paths)]
    pin = Apt(paths.assets / "apt", host_codename(), host_arch()).pin(kernel_packages(host_arch()))
    pin.parent.mkdir(parents=True)
    name = f"linux-image-6.1.0-9-{DEBIAN_ARCHES[host_arch()]}"
    pin.write_text(json.dumps([asdict(Package(name, "6.1.9-1", "k.deb", 1, "f" * 64))]))
    chosen = time.time() - days * 24 * 3600 - 60
    os.utime(pin, (chosen, chosen))
    (found,) = checks.kernel(paths)
    assert (found.verdict, found.detail) == (verdict, f"6.1.9-1, the newest {days} days ago")
    assert ("image update" in found.mend) == (verdict is Verdict.WARNING)


def test_a_bad_setting_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("accelerator = 'warp'\n")
    found = checks.accelerator(Paths(tmp_path, tmp_path))
    assert found.verdict is Verdict.MISSING
    assert "warp" in found.detail
