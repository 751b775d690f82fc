"""The real bundle of Kubernetes' own programs, with Debian's etcd and kubectl beside it.

Needs the host's Debian mirror if the user's cache has no such disk yet; nothing boots.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcboxd.assets.elf import needed
from arcboxd.assets.kubernetes_bundle import MOUNT, REQUIRED
from arcboxd.assets.store import AssetStore
from arcboxd.domain.image import ProgressFn
from arcboxd.kubernetes.distribution import Pin
from arcboxd.paths import Paths

FOLDER = Path(__file__).parents[4] / "shared" / "kubernetes"
BUNDLE = next(iter(FOLDER.glob("kubernetes-*.tar.xz")), None)

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(BUNDLE is None, reason="there is no bundle beside the project"),
]


async def _no_fetch(url: str, target: Path, sha256: str, progress: ProgressFn) -> Path:
    raise AssertionError(url)


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    assert BUNDLE is not None
    sums = dict(line.split()[::-1] for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    pin = Pin("upstream", "v1.20.2", str(BUNDLE), sums[BUNDLE.name])
    store = AssetStore(Paths.of())
    image = asyncio.run(store.kubernetes("x86_64", pin, _no_fetch, lambda *_: None))
    assert store.find_kubernetes("x86_64", pin) == image
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["fsck.erofs", f"--extract={folder}/tree", image], check=True)
        yield Path(folder, "tree")


def test_it_has_all_that_a_node_runs(tree: Path) -> None:
    programs = {path.name for path in (tree / "bin").iterdir()}
    assert programs == {*REQUIRED, "pause", "etcd", "etcdctl", "kubectl"}
    versions = json.loads((tree / "versions.json").read_text())
    assert versions["kubernetes"] == "v1.20.2"
    assert versions["etcd"].startswith("3.")
    assert (tree / "images" / "pause.tar").exists()


def test_what_is_debians_takes_nothing_of_the_guests(tree: Path) -> None:
    for path in (tree / "bin").iterdir():
        for name in needed(path):
            assert (tree / "lib" / name).exists(), (path.name, name)
        if needed(path):
            assert f"{MOUNT}/lib/ld-linux-x86-64.so.2".encode() in path.read_bytes()[: 1 << 22]
