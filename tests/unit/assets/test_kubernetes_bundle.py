from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd.assets.apt import Apt, Package
from arcboxd.assets.kubernetes_bundle import PACKAGES, REQUIRED, take
from arcboxd.assets.mirror import Mirror
from arcboxd.assets.pause_image import NAME, write_pause_image
from arcboxd.assets.store import AssetStore
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import AssetBuildError, CorruptError, UnsupportedError
from arcboxd.kubernetes.distribution import Pin
from arcboxd.paths import Paths

ARCH = "x86_64"


def elf(machine: int = 62) -> bytes:
    """Make a static program of nothing: a header without a segment."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\2\0" + machine.to_bytes(2, "little")
    return head.ljust(64, b"\0")


def bundle(path: Path, change: Callable[[dict[str, bytes]], None] = lambda _: None) -> Path:
    files = {f"kubernetes/server/bin/{name}": elf() for name in REQUIRED}
    change(files)
    with tarfile.open(path, "w:xz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    return path


def test_programs_are_taken_wherever_they_are(tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["./pause"] = files["../../etcd"] = files["/abs/kubectl"] = elf()
        files["kubernetes/LICENSES"] = files["kubernetes/server/bin/kube-apiserver.tar"] = b"x"
        files["images/coredns.tar"] = b"an image"
        files["../images/../.tar"] = files["images/../../evil.tar"] = b"no"

    tree = tmp_path / "a" / "b" / "tree"
    found = take(bundle(tmp_path / "b.tar.xz", change), tree, ARCH)
    assert found == {*REQUIRED, "pause", "etcd", "kubectl"}
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    places = {f"a/b/tree/bin/{name}" for name in found} | {"a/b/tree/images/coredns.tar"}
    assert written == {"b.tar.xz", *places}
    assert (tree / "bin" / "kubelet").stat().st_mode & 0o777 == 0o755


def _add(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(b"\0" * info.size))
    return path


def _member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize(
    "members",
    [
        [_member("kubelet", tarfile.SYMTYPE, "/bin/sh")],
        [_member("kubelet", tarfile.LNKTYPE, "kubeadm")],
        [_member("kubelet", tarfile.FIFOTYPE)],
        [_member("kubelet", tarfile.CHRTYPE)],
        [_member("kubelet"), _member("other/kubelet")],
    ],
)
def test_what_is_no_plain_file_is_refused(
    tmp_path: Path, members: Sequence[tarfile.TarInfo]
) -> None:
    with pytest.raises(CorruptError, match="kubelet"):
        take(_add(tmp_path / "b.tar", *members), tmp_path / "tree", ARCH)


def test_a_file_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(_member("kubelet", size=(1 << 30) + 1).tobuf() + b"\0" * 1024)
    with pytest.raises(CorruptError, match="more than Kubernetes"):
        take(path, tmp_path / "tree", ARCH)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\xfd7zXZ\0broken"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(CorruptError):
        take(tmp_path / "b", tmp_path / "tree", ARCH)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("kubelet", b"#!/bin/sh\n", "no program for x86_64"),
        ("kubelet", elf(183), "no program for x86_64"),
        ("etcd", b"", "no program for x86_64"),
    ],
)
def test_what_guests_cannot_run_is_refused(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    path = bundle(
        tmp_path / "b", lambda files: files.update({f"kubernetes/server/bin/{name}": data})
    )
    with pytest.raises(AssetBuildError, match=words):
        take(path, tmp_path / "tree", ARCH)


def test_what_needs_the_hosts_libraries_is_refused(tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["kubernetes/server/bin/kubelet"] = Path("/bin/true").read_bytes()

    with pytest.raises(AssetBuildError, match=r"kubelet in .* needs libraries"):
        take(bundle(tmp_path / "b", change), tmp_path / "tree", ARCH)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        del files["kubernetes/server/bin/kubelet"]

    path = bundle(tmp_path / "b", change)
    with pytest.raises(AssetBuildError, match="has no kubelet"):
        take(path, tmp_path / "tree", ARCH)


def test_the_image_of_pause_is_the_same_for_the_same_program(tmp_path: Path) -> None:
    (tmp_path / "pause").write_bytes(elf())
    for name in ("one.tar", "two.tar"):
        write_pause_image(tmp_path / "pause", tmp_path / name, ARCH)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        blobs = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    index = json.loads(blobs["index.json"])
    (manifest,) = index["manifests"]
    assert manifest["annotations"]["io.containerd.image.name"] == NAME
    for name, data in blobs.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    document = json.loads(blobs[f"blobs/sha256/{manifest['digest'][7:]}"])
    layer = blobs[f"blobs/sha256/{document['layers'][0]['digest'][7:]}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        assert [(m.name, m.mode, m.mtime) for m in archive] == [("pause", 0o755, 0)]


class Fetching:
    """Stands for the download of a k3s."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[str] = []

    async def __call__(self, url: str, target: Path, sha256: str, progress: ProgressFn) -> Path:
        self.asked.append(url)
        progress("downloading k3s", 1, 1)
        target.write_bytes(self.data)
        return target


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "home", tmp_path / "cache")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Give what was packed, without mkfs.erofs."""
    found: list[list[str]] = []

    async def make(tree: Path, image: Path) -> None:
        found.append(sorted(str(p.relative_to(tree)) for p in tree.rglob("*") if not p.is_dir()))
        image.write_bytes(b"erofs")

    monkeypatch.setattr("arcboxd.assets.kubernetes_bundle.make_erofs", make)
    return found


def _store(paths: Paths) -> AssetStore:
    return AssetStore(paths, mirror=Mirror("http://mirror.invalid", ""), suite="bookworm")


def pin(data: bytes, source: str = "https://example.test/k3s") -> Pin:
    return Pin("k3s", "v1.30.0+k3s1", source, hashlib.sha256(data).hexdigest())


async def test_k3s_is_fetched_and_packed_once(paths: Paths, packed: list[list[str]]) -> None:
    store, fetch, steps = _store(paths), Fetching(elf()), list[str]()
    wanted = pin(elf())
    assert store.find_kubernetes(ARCH, wanted) is None
    image = await store.kubernetes(ARCH, wanted, fetch, lambda step, *_: steps.append(step))
    assert steps == ["downloading k3s", "packing k3s"]
    programs = ["bin/crictl", "bin/ctr", "bin/k3s", "bin/kubectl", "versions.json"]
    assert packed == [programs]
    assert await store.kubernetes(ARCH, wanted, fetch, lambda *_: None) == image
    assert store.find_kubernetes(ARCH, wanted) == image
    assert fetch.asked == [wanted.source]
    # It is on the disk; twice would be 70 MB too many.
    assert list((paths.assets / "downloads").iterdir()) == []
    assert store.find_kubernetes(ARCH, replace(wanted, sha256="0" * 64)) is None


async def test_a_k3s_of_the_users_own_is_taken_through_a_link_and_left(
    paths: Paths, packed: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / "k3s-1.30").write_bytes(elf())
    link = tmp_path / "k3s"
    link.symlink_to("k3s-1.30")
    fetch = Fetching(b"")
    await _store(paths).kubernetes(ARCH, pin(elf(), str(link)), fetch, lambda *_: None)
    assert "bin/k3s" in packed[0]
    assert fetch.asked == []
    assert link.exists()


async def test_another_digest_is_refused(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "k3s").write_bytes(elf())
    store = _store(paths)
    with pytest.raises(CorruptError, match=hashlib.sha256(elf()).hexdigest()):
        await store.kubernetes(
            ARCH, pin(b"other", str(tmp_path / "k3s")), Fetching(b""), lambda *_: None
        )
    assert not list(paths.assets.glob("kubernetes-*"))


async def test_a_k3s_that_guests_cannot_run_is_refused(paths: Paths) -> None:
    data = b"<html>not found</html>"
    with pytest.raises(AssetBuildError, match="no program"):
        await _store(paths).kubernetes(ARCH, pin(data), Fetching(data), lambda *_: None)
    with pytest.raises(UnsupportedError):
        await _store(paths).kubernetes("riscv64", pin(data), Fetching(data), lambda *_: None)


async def test_a_bundle_gets_from_debian_what_it_lacks(
    paths: Paths, packed: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (*PACKAGES, "libc6", "libgcc-s1", "adduser")
    found = {n: Package(n, "1:3.4.23-4", f"{n}.deb", 1, "0" * 64) for n in names}
    fetched: list[str] = []

    async def resolve(_apt: Apt, wanted: Sequence[str], **_: object) -> dict[str, Package]:
        assert tuple(wanted) == PACKAGES
        return found

    async def fetch(_apt: Apt, packages: Sequence[Package], *_: object) -> dict[str, Path]:
        fetched.extend(p.name for p in packages)
        return {p.name: tmp_path / p.file for p in packages}

    async def unpack(_files: object, target: Path) -> None:
        (target / "usr" / "bin").mkdir(parents=True)
        for name in ("etcd", "etcdctl"):
            (target / "usr" / "bin" / name).write_bytes(elf())

    def change(files: dict[str, bytes]) -> None:
        files["pause"] = files["kubectl"] = elf()

    monkeypatch.setattr(Apt, "resolve", resolve)
    monkeypatch.setattr(Apt, "fetch", fetch)
    monkeypatch.setattr("arcboxd.assets.kubernetes_bundle.unpack", unpack)
    file = bundle(tmp_path / "b.tar.xz", change)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    wanted = Pin("upstream", "v1.20.2", str(file), digest)
    await _store(paths).kubernetes(ARCH, wanted, Fetching(b""), lambda *_: None)
    assert set(fetched) == {"etcd-server", "etcd-client", "libc6", "libgcc-s1"}
    programs = sorted(f"bin/{name}" for name in (*REQUIRED, "etcd", "etcdctl", "kubectl", "pause"))
    assert packed == [[*programs, "images/pause.tar", "versions.json"]]
    assert file.exists()
