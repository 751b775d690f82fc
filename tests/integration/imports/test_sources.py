"""One suite for every kind of file: the same system comes out of each."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import hashlib
import lzma
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcboxd.assets.ext4_tools import ImageTools, ImageToolStore
from arcboxd.domain.image import BaseImage, NewImage
from arcboxd.errors import CorruptError
from arcboxd.images.store import ImageStore
from arcboxd.paths import Paths
from tests.integration.imports.makers import (
    ELF,
    LINUX,
    MIB,
    ROOT_X86_64,
    Layout,
    archive,
    gpt,
    mbr,
    member,
    system,
)

# Needs packages of Debian's, as all that makes images does.
pytestmark = [pytest.mark.vm, pytest.mark.timeout(60)]

CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
CONTENT = bytes(range(256)) * 8192
ODD = "odd\udce9"
LONG = "long/" + "n" * 200 + "/" + "m" * 200

SYSTEM = system(
    member("./sbin", tarfile.DIRTYPE),
    member("./sbin/init", tarfile.SYMTYPE, linkname="/bin/sh"),
    member("./srv", tarfile.DIRTYPE, mode=0o2775, uid=1000, gid=1000),
    member(
        "./srv/tool",
        data=CONTENT,
        mode=0o6755,
        uid=70000,
        gid=3000000,
        mtime=1700000000,
        pax_headers={
            "SCHILY.xattr.security.capability": CAPABILITY.decode(errors="surrogateescape"),
        },
    ),
    member("./srv/again", tarfile.LNKTYPE, linkname="./srv/tool", mode=0o6755),
    member("./srv/out", tarfile.SYMTYPE, linkname="/etc/../../x y"),
    member(f"./srv/{ODD}", data=b"odd"),
    member(f"./srv/{LONG}", data=b"long"),
    member("./tmp", tarfile.DIRTYPE, mode=0o1777),
    member("./srv/empty", data=b"", mode=0o600),
)
LOWER = archive(
    *(member("./etc", tarfile.DIRTYPE), member("./etc/removed", data=b"x")),
    *(member("./old/hidden", data=b"x"), member("./srv", tarfile.SYMTYPE, linkname="/old")),
    *(member("./tmp/gone/deep", data=b"x"), member("./bin/sh", data=b"not yet")),
)
UPPER = archive(
    *(member("./etc/.wh.removed"), member("./.wh.old"), member("./tmp/.wh..wh..opq")),
    member("./bin/sh", data=ELF),
)

Make = Callable[[Path, ImageTools], bytes]


def _filesystem(path: Path, tools: ImageTools) -> bytes:
    image = path / "fs.img"
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    argv = [*tools.command("mke2fs"), "-q", "-F", "-t", "ext4", "-J", "size=4", "-d", "-"]
    env = {"LC_ALL": "C.UTF-8", "MKE2FS_CONFIG": str(tools.mke2fs_config)}
    # A hard link's header sets the file's attributes once more.
    again: dict[str, Any] = {"mode": 0o6755, "uid": 70000, "gid": 3000000, "mtime": 1700000000}
    link = member("./srv/again", tarfile.LNKTYPE, linkname="./srv/tool", mode=0o6755)
    # Nor does mke2fs make directories that the archive lacks.
    deep = member(f"./srv/{LONG}", data=b"long")
    folder = member(f"./srv/{LONG.rpartition('/')[0]}", tarfile.DIRTYPE)
    data = SYSTEM.replace(
        link, member("./srv/again", tarfile.LNKTYPE, linkname="./srv/tool", **again)
    ).replace(deep, member("./srv/long", tarfile.DIRTYPE) + folder + deep)
    subprocess.run([*argv, str(image)], input=data, check=True, env=env)
    return image.read_bytes()


def _squashfs(path: Path, _tools: ImageTools) -> bytes:
    argv = ["mksquashfs", "-", str(path / "s"), "-tar", "-quiet", "-no-progress"]
    subprocess.run(argv, input=SYSTEM, check=True, capture_output=True)
    return (path / "s").read_bytes()


def _zstd(path: Path, _tools: ImageTools) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=SYSTEM, check=True, capture_output=True).stdout


def _qcow2(path: Path, tools: ImageTools, *options: str) -> bytes:
    (path / "raw").write_bytes(_filesystem(path, tools))
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options]
    subprocess.run([*argv, str(path / "raw"), str(path / "q")], check=True)
    return (path / "q").read_bytes()


def _mbr(path: Path, tools: ImageTools) -> bytes:
    root, swap = _filesystem(path, tools), b"swap" * 128
    table = [(0x82, 64, 64), (0x83, 2048, len(root) // 512)]
    return mbr(table, {64: swap, 2048: root}, 32 * MIB)


def _gpt(path: Path, tools: ImageTools) -> bytes:
    root = _filesystem(path, tools)
    last = 2048 + len(root) // 512 - 1
    parts = [(LINUX, 128, 256, "boot"), (ROOT_X86_64, 2048, last, "whatever")]
    return gpt(parts, {2048: root}, 32 * MIB)


def _docker(path: Path, _tools: ImageTools) -> bytes:
    layout = Layout().image([LOWER, SYSTEM, UPPER])
    config = next(data for data in layout.files.values() if b"diff_ids" in data)
    manifest = b'[{"Config": "c.json", "RepoTags": null, "Layers": ["0/layer.tar", "1", "2"]}]'
    return archive(
        member("0/layer.tar", data=LOWER),
        *(member("1", data=SYSTEM), member("2", data=UPPER)),
        *(member("c.json", data=config), member("manifest.json", data=manifest)),
    )


SOURCES: dict[str, Make] = {
    "tar": lambda _path, _tools: SYSTEM,
    "tar.gz": lambda _path, _tools: gzip.compress(SYSTEM),
    "tar.xz": lambda _path, _tools: lzma.compress(SYSTEM),
    "tar.bz2": lambda _path, _tools: bz2.compress(SYSTEM),
    "tar.zst": _zstd,
    "squashfs": _squashfs,
    "oci": lambda _path, _tools: Layout().image([LOWER, SYSTEM, UPPER]).tar(),
    "oci.gz": lambda _path, _tools: gzip.compress(
        Layout()
        .image(
            [gzip.compress(SYSTEM)], config={"rootfs": {"diff_ids": [f"sha256:{_sha256(SYSTEM)}"]}}
        )
        .tar()
    ),
    "docker": _docker,
    "raw": _filesystem,
    "qcow2": _qcow2,
    "qcow2 compressed": lambda path, tools: _qcow2(path, tools, "-c"),
    "mbr": _mbr,
    "gpt": _gpt,
}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
async def tools() -> ImageTools:
    return await ImageToolStore(Paths.of(), "x86_64").ensure(_quiet)


@pytest.fixture
def store(tmp_path: Path, tools: ImageTools, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    async def ensure(*_args: object) -> ImageTools:
        return tools

    monkeypatch.setattr("arcboxd.assets.ext4_tools.ImageToolStore.ensure", ensure)
    return ImageStore(Paths(tmp_path / "home", tmp_path / "cache"))


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path, tools: ImageTools) -> Path:
    (tmp_path / "made").mkdir()
    (tmp_path / "source").write_bytes(SOURCES[request.param](tmp_path / "made", tools))
    return tmp_path / "source"


def _quiet(_step: str, _done: int, _total: int) -> None: ...


def _debugfs(image: Path, *requests: str) -> bytes:
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "DEBUGFS_PAGER": "cat"}
    script = "".join(f"{line}\n" for line in requests).encode(errors="surrogateescape")
    argv = ["debugfs", "-f", "-", str(image)]
    done = subprocess.run(argv, input=script, capture_output=True, check=True, env=env)
    return b"\n".join(x for x in done.stdout.split(b"\n") if not x.startswith(b"debugfs:"))


def _check(image: BaseImage, tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(["e2fsck", "-fn", str(image.path)], check=True, env=env, capture_output=True)
    tool = _debugfs(image.path, "stat /srv/tool").decode()
    assert re.search(r"User: +70000 +Group: +3000000 .*Size: 2097152", tool), tool
    assert re.search(r"Mode: +06755", tool)
    assert "Links: 2" in tool
    assert "mtime: 0x6553f100" in tool
    assert "security.capability (20) = 01 00 00 02 00 20" in tool
    inodes = [_debugfs(image.path, f"stat /srv/{n}").split()[1] for n in ("tool", "again")]
    assert inodes[0] == inodes[1]
    assert 'Fast link dest: "/etc/../../x y"' in _debugfs(image.path, "stat /srv/out").decode()
    folder = _debugfs(image.path, "ls -l /").decode()
    assert re.search(r" 41777 .* tmp$", folder, re.MULTILINE)
    assert re.search(r" 42775 \(2\) +1000 +1000 .* srv$", folder, re.MULTILINE)
    for name, content in (("tool", CONTENT), (LONG, b"long"), ("empty", b"")):
        target = tmp_path / "dumped"
        _debugfs(image.path, f"dump /srv/{name} {target}")
        assert target.read_bytes() == content
    names = _debugfs(image.path, "ls -p /srv").split(b"\n")
    assert any(line.split(b"/")[5] == b"odd\xe9" for line in names if line.count(b"/") > 5), names
    assert b"removed" not in _debugfs(image.path, "ls -p /etc")
    assert {
        row.split("/")[5] for row in _debugfs(image.path, "ls -p /").decode().split() if row
    } == {*(".", "..", "lost+found", "etc", "bin", "sbin", "srv", "tmp")}


async def test_the_same_system_comes_of_it(store: ImageStore, source: Path, tmp_path: Path) -> None:
    image = await store.import_file(NewImage(str(source), "mine", arch="amd64"), _quiet)
    assert (image.distro, image.version, image.arch) == ("mine", "1.2", "x86_64")
    assert (image.source, image.format, image.init) == ("file", "raw", "sh")
    assert image.virtual_bytes == image.path.stat().st_size
    assert not image.path.stat().st_mode & 0o222
    _check(image, tmp_path)
    assert await store.find("mine", "", "x86_64") == image
    assert await store.find("mine", "1.2", "amd64") == image
    assert await store.find("mine", "1.3", "amd64") is None
    assert await store.verify(image) == []
    # Once more is nothing new.
    assert await store.import_file(NewImage(str(source), "mine", arch="amd64"), _quiet) == image


async def test_another_digest_leaves_nothing(
    store: ImageStore, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(CorruptError):
        await store.import_file(NewImage(str(source), "mine", sha256="a" * 64), _quiet)
    assert await store.list() == ()
    assert not (tmp_path / "cache").exists()


async def test_cancelled_leaves_nothing(store: ImageStore, source: Path, tmp_path: Path) -> None:
    new = NewImage(str(source), "mine", arch="amd64")
    work = asyncio.ensure_future(store.import_file(new, _quiet))
    while not [*(tmp_path / "cache").glob("images/*.partial")]:  # noqa: ASYNC110
        await asyncio.sleep(0.001)  # a directory has no event
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    left = [path for path in (tmp_path / "cache").rglob("*") if ".locks" not in path.parts]
    assert left == [tmp_path / "cache" / "images"]


async def test_the_newest_of_a_name_is_found(
    store: ImageStore, tmp_path: Path, tools: ImageTools
) -> None:
    (tmp_path / "a").write_bytes(SYSTEM)
    (tmp_path / "b").write_bytes(SYSTEM.replace(b'"1.2"', b'"1.3"'))
    first = await store.import_file(NewImage(str(tmp_path / "a"), "mine"), _quiet)
    second = await store.import_file(NewImage(str(tmp_path / "b"), "mine"), _quiet)
    assert (first.version, second.version) == ("1.2", "1.3")
    assert await store.find("mine", "", "x86_64") == second
    assert await store.find("mine", "1.2", "x86_64") == first
    assert await store.remove(second) > 0
    assert await store.find("mine", "", "x86_64") == first


async def test_a_changed_image_is_told(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(SYSTEM)
    image = await store.import_file(NewImage(str(tmp_path / "a"), "mine"), _quiet)
    image.path.chmod(0o600)
    with image.path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"!")
    assert await store.verify(image) == ["root.img"]
