"""The real thing: packages from the mirror, a kernel, an initramfs and a bundle whose Python runs.

Needs the host's Debian mirror and package index, and about a minute; none of it boots.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from arcboxd.assets import apt
from arcboxd.assets.cache import Cache
from arcboxd.assets.mirror import Mirror
from arcboxd.assets.store import AssetStore
from arcboxd.errors import AssetBuildError, UnsupportedError
from arcboxd.paths import Paths

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

_IMPORTS = """
import asyncio, ctypes, hashlib, pty, random, select, selectors, socket, struct, sys, zlib
assert asyncio.__file__.endswith(".pyc"), asyncio.__file__
sys.path.insert(0, sys.prefix + "/python/site")
import arcbox_agent.main, grpclib.server, multidict._multidict
from google.protobuf.internal import api_implementation
assert api_implementation.Type() == "upb", api_implementation.Type()
assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
assert "grpc" not in sys.modules
print("all there")
"""


async def test_built_once_and_then_without_any_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path / "home", tmp_path / "cache")
    steps: list[str] = []

    def progress(step: str, done: int, total: int) -> None:
        assert done <= total or total == 0
        steps.append(step)

    boot = await AssetStore(paths).ensure("x86_64", progress)
    assert steps[0].startswith("reading the Debian mirror")
    assert boot.kernel.read_bytes()[:4] == b"\x7fELF"
    assert boot.kernel_version[0].isdigit()
    assert boot.initramfs.read_bytes()[:6] == b"070701"
    for path in (boot.initramfs, boot.agent_disk, boot.modules_disk):
        assert path.stat().st_mode & 0o777 == 0o444
    assert not [*paths.assets.glob("*.partial")]

    runtime = next(Cache(paths.assets).entries("python")).path
    bundle = tmp_path / "bundle"
    extract = ["fsck.erofs", f"--extract={bundle}", str(boot.agent_disk)]
    subprocess.run(extract, check=True, capture_output=True)
    loader = (bundle / "loader").read_text().strip()
    assert (runtime / "lib" / loader).exists()
    python = [f"{bundle}/lib/{loader}", "--library-path", f"{bundle}/lib", f"{bundle}/bin/python3"]
    out = subprocess.run([*python, "-I", "-S", "-c", _IMPORTS], capture_output=True, check=False)
    assert (out.stdout, out.stderr) == (b"all there\n", b"")

    async def build(target: Path) -> None:
        (target / "agent.img").touch()

    old = await Cache(paths.assets).ensure("agent", {"of": "an earlier version"}, build)
    assert (await AssetStore(paths).prune())[0] == [old.name]

    (pin,) = [p for p in paths.assets.rglob("pins/*.json") if "busybox-static" in p.read_text()]
    newest = pin.read_text()
    outdated = re.sub(r'("version"|"sha256"): "\w', r'\1: "0', newest)
    pin.write_text(outdated)
    nowhere = AssetStore(paths, mirror=Mirror("http://127.0.0.1:9", ""))
    monkeypatch.setattr(apt, "_LISTS_NEW_S", 0)
    with pytest.raises(AssetBuildError):
        await nowhere.refresh("x86_64", progress)
    assert pin.read_text() == outdated
    assert await AssetStore(paths).refresh("x86_64", progress) == (boot, True)
    assert pin.read_text() == newest
    assert await AssetStore(paths).refresh("x86_64", progress) == (boot, False)

    monkeypatch.setenv("PATH", "/nonexistent")
    steps.clear()
    assert await AssetStore(paths).ensure("x86_64", progress) == boot
    assert steps == []


async def test_other_architectures_are_refused(tmp_path: Path) -> None:
    store = AssetStore(Paths(tmp_path, tmp_path))
    with pytest.raises(UnsupportedError, match="riscv64"):
        await store.ensure("riscv64", lambda *_: None)
