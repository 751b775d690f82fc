"""KVM is chosen only where it works for certain."""

from pathlib import Path

import pytest

from arcboxd.errors import InvalidArgumentError, MissingToolError, UnsupportedError
from arcboxd.hypervisor.qemu.accelerator import choose_accelerator, for_arch
from arcboxd.hypervisor.qemu.hypervisor import QemuHypervisor


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def cpuinfo(tmp_path: Path, flags: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\nvmx flags\t: vnmi\n")
    return path


@pytest.mark.parametrize(("guest", "name"), [("aarch64", "kvm"), ("x86_64", "tcg")])
@pytest.mark.parametrize("host", ["aarch64", "arm64"])
def test_kvm_runs_only_what_the_host_is(guest: str, name: str, host: str) -> None:
    own = choose_accelerator("kvm")
    assert for_arch(own, guest, host=host).name == name
    assert for_arch(own, guest, host=host).timeout_scale == (1.0 if name == "kvm" else 10.0)


@pytest.mark.parametrize("flag", ["vmx", "svm"])
def test_kvm_where_device_and_processor_agree(device: Path, tmp_path: Path, flag: str) -> None:
    chosen = choose_accelerator(device=device, cpuinfo=cpuinfo(tmp_path, flag), arch="x86_64")
    assert chosen.name == "kvm"
    assert chosen.timeout_scale == 1.0


def test_tcg_where_the_device_opens_but_the_processor_lacks_it(
    device: Path, tmp_path: Path
) -> None:
    chosen = choose_accelerator(device=device, cpuinfo=cpuinfo(tmp_path, "vme"), arch="x86_64")
    assert chosen.name == "tcg"
    assert "neither vmx nor svm" in chosen.reason
    assert chosen.timeout_scale > 1


def test_the_device_suffices_on_arm(device: Path, tmp_path: Path) -> None:
    chosen = choose_accelerator(device=device, cpuinfo=cpuinfo(tmp_path, ""), arch="aarch64")
    assert chosen.name == "kvm"


def test_tcg_without_a_device(tmp_path: Path) -> None:
    chosen = choose_accelerator(
        device=tmp_path / "none", cpuinfo=cpuinfo(tmp_path, "vmx"), arch="x86_64"
    )
    assert chosen.name == "tcg"
    assert "does not exist" in chosen.reason


def test_the_setting_wins_and_a_wrong_one_is_refused() -> None:
    assert choose_accelerator("tcg").name == "tcg"
    assert choose_accelerator("kvm").name == "kvm"
    with pytest.raises(InvalidArgumentError, match="xen"):
        choose_accelerator("xen")


def test_an_architecture_without_its_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hypervisor = QemuHypervisor(choose_accelerator("tcg"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="qemu-system-aarch64") as caught:
        hypervisor.check("aarch64")
    assert "qemu-system-arm" in caught.value.hint
    program = tmp_path / "qemu-system-aarch64"
    program.touch(mode=0o755)
    hypervisor.check("aarch64")
    with pytest.raises(UnsupportedError, match="vax"):
        hypervisor.check("vax")
