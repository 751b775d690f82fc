"""What is run to build boot files is the host's, and what they are made of is the guest's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from arcboxd.assets import agent_bundle, boot_parts, kernel, python_runtime
from arcboxd.assets.apt import Apt, Package
from arcboxd.assets.initramfs import EarlyModules
from arcboxd.assets.mirror import DEBIAN_ARCHES, Mirror
from arcboxd.assets.store import AssetStore
from arcboxd.paths import Paths


class Builders:
    """Stand for the builders, which need Debian's mirror; they note what they are given."""

    def __init__(self) -> None:
        self.kernel_files: list[str] = []
        self.interpreters: dict[str, Path | None] = {}

    async def resolve(self, apt: Apt, names: Iterable[str], **_: object) -> dict[str, Package]:
        debian = DEBIAN_ARCHES[apt.arch]
        names = [n.replace("linux-image-", "linux-image-6.1.0-1-") for n in names]
        return {n: Package(n, "1", f"{n}_1_{debian}.deb", 1, f"{apt.arch}") for n in names}

    async def fetch(self, apt: Apt, packages: Iterable[Package], *_: object) -> dict[str, Path]:
        return {package.name: Path(package.file) for package in packages}

    async def unpack(self, _files: object, target: Path) -> None:
        (target / "bin").mkdir(parents=True)
        (target / "bin" / "busybox").touch()

    async def build_kernel(
        self, image: Path, depmod: Iterable[Path], _arch: str, target: Path, _step: object
    ) -> None:
        self.kernel_files += [image.name, *(path.name for path in depmod)]
        (target / "scratch").mkdir()
        for name in ("vmlinux", "modules.img"):
            (target / name).touch()
        facts: dict[str, object] = dict.fromkeys(EarlyModules.__slots__, ())
        (target / "kernel.json").write_text(json.dumps(facts | {"version": "6.1"}))

    async def build_runtime(
        self,
        _packages: object,
        _lock: Path,
        arch: str,
        target: Path,
        *,
        interpreter: Path | None,
        step: object,
    ) -> None:
        self.interpreters[f"python {arch}"] = interpreter
        (target / "loader").write_text(arch)

    async def build_agent_disk(
        self,
        runtime: Path,
        _busybox: Path,
        target: Path,
        *,
        interpreter: Path | None,
        step: object,
    ) -> None:
        self.interpreters[f"agent {(runtime / 'loader').read_text()}"] = interpreter
        (target / "agent.img").touch()


@pytest.fixture
def builders(monkeypatch: pytest.MonkeyPatch) -> Builders:
    made = Builders()
    for name in ("resolve", "fetch"):
        bound = getattr(made, name)

        async def call(apt: Apt, *args: object, _bound: object = bound, **more: object) -> object:
            return await _bound(apt, *args, **more)  # type: ignore[operator]

        monkeypatch.setattr(Apt, name, call)
    monkeypatch.setattr(boot_parts, "unpack", made.unpack)
    monkeypatch.setattr(kernel, "build_kernel", made.build_kernel)
    monkeypatch.setattr(python_runtime, "build_runtime", made.build_runtime)
    monkeypatch.setattr(agent_bundle, "build_agent_disk", made.build_agent_disk)
    return made


@pytest.mark.parametrize(("host", "guest"), [("x86_64", "aarch64"), ("aarch64", "x86_64")])
async def test_a_foreign_guests_files_are_built_by_the_hosts_programs(
    builders: Builders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, guest: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: host)
    paths = Paths(tmp_path / "home", tmp_path / "cache")
    made = AssetStore(paths, mirror=Mirror("http://mirror.invalid/", ""), suite="bookworm")
    boot = await made.ensure(guest, lambda *_: None)

    image, *depmod = builders.kernel_files
    assert image.endswith(f"_{DEBIAN_ARCHES[guest]}.deb")
    assert len(depmod) == len(kernel.DEPMOD_PACKAGES)
    assert all(name.endswith(f"_{DEBIAN_ARCHES[host]}.deb") for name in depmod)
    # The guest's Python cannot run here: the host's compiles for it.
    compiles = builders.interpreters.pop(f"python {guest}")
    assert compiles is not None
    assert (compiles / "loader").read_text() == host
    assert builders.interpreters == {f"python {host}": None, f"agent {guest}": compiles}

    own = await made.ensure(host, lambda *_: None)
    assert builders.interpreters[f"agent {host}"] is None
    assert own.key != boot.key
