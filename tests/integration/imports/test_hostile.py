"""Images of strangers: each is refused with a sentence, and nothing of it is left."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import resource
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from arcboxd.assets.ext4_tools import ImageTools
from arcboxd.domain.image import NewImage
from arcboxd.errors import ArcboxError, CorruptError, ErrorKind
from arcboxd.images.store import ImageStore
from arcboxd.paths import Paths
from tests.integration.imports.makers import (
    ARM_ELF,
    LINUX,
    MIB,
    RELEASE,
    Layout,
    archive,
    bomb,
    ext4,
    gpt,
    mbr,
    member,
    qcow2,
    records,
    system,
)

MEMORY_BYTES = 400 << 20
"""Of any process that reads a hostile image; the interpreter itself takes 40 MB."""

Make = Callable[[Path], bytes]
CASES: dict[str, tuple[Make, str]] = {}


def case(words: str) -> Callable[[Make], Make]:
    """Add an image that is refused with these words."""

    def add(make: Make) -> Make:
        CASES[make.__name__.removeprefix("_")] = (make, words)
        return make

    return add


def plain(words: str, **cases: bytes) -> None:
    """Add images that need no directory to be made in."""
    for name, data in cases.items():
        CASES[name] = (lambda _path, data=data: data, words)  # type: ignore[misc]


plain("is absolute", tar_absolute=system(member("/etc/cron.d/x", data=b"x")))
plain(
    "leads upwards",
    tar_upwards=system(member("../../etc/passwd", data=b"x")),
    tar_upwards_within=system(member("etc/../../x", data=b"x")),
    tar_upwards_in_extension=system(records(path="a/../../b") + member("x", data=b"x")),
    tar_hard_link_upwards=system(member("x", tarfile.LNKTYPE, linkname="../../etc/shadow")),
)
plain(
    "a newline or a NUL",
    tar_newline=system(member("etc/a\nb", data=b"x")),
    tar_nul=system(records(path="etc/a\0b") + member("x", data=b"x")),
)
plain("longer than a name", tar_long_name=system(member("etc/" + "n" * 256, data=b"x")))
plain("more than 256 parts", tar_deep=system(member("d/" * 300 + "x", data=b"x")))
plain("character device", tar_device=system(member("dev/mem", tarfile.CHRTYPE, devmajor=1)))
plain("block device", tar_disk=system(member("dev/sda", tarfile.BLKTYPE, devmajor=8)))
plain("named pipe", tar_pipe=system(member("run/pipe", tarfile.FIFOTYPE)))
plain(
    "sparse",
    tar_sparse=system(member("x", tarfile.GNUTYPE_SPARSE)),
    tar_sparse_extension=system(records(GNU__sparse__major="1") + member("x", data=b"x")),
)
plain("no image needs", tar_unknown_kind=system(member("x", b"Z")))
plain("another volume", tar_volume=system(member("x", b"M")))
plain(
    "goes through the symlink",
    tar_through_link=system(
        member("out", tarfile.SYMTYPE, linkname="/etc"), member("out/passwd", data=b"x")
    ),
    tar_hard_through_link=system(
        member("out", tarfile.SYMTYPE, linkname="/etc"),
        member("x", tarfile.LNKTYPE, linkname="out/shadow"),
    ).replace(b"goes", b"goes"),
)
CASES["tar_hard_through_link"] = (CASES["tar_hard_through_link"][0], "goes through a symlink")
plain("goes through the file", tar_through_file=system(member("bin/sh/x", data=b"x")))
plain("is absolute", tar_hard_link_out=system(member("x", tarfile.LNKTYPE, linkname="/etc/shadow")))
plain("is of nothing", tar_hard_link_nowhere=system(member("x", tarfile.LNKTYPE, linkname="y")))
plain("of a directory", tar_hard_link_folder=system(member("x", tarfile.LNKTYPE, linkname="etc")))
plain(
    "twice",
    tar_folder_then_link=system(
        member("srv", tarfile.DIRTYPE), member("srv", tarfile.SYMTYPE, linkname="/")
    ),
)
plain("no directory", tar_root_is_link=archive(member("./", tarfile.SYMTYPE, linkname="/")))
plain("leads nowhere", tar_empty_link=system(member("x", tarfile.SYMTYPE, linkname="")))
plain("larger than", tar_huge_extension=system(member("x", tarfile.XHDTYPE, b"1" * (2 * MIB))))
plain(
    "capabilities that cannot be",
    tar_capabilities=system(records(SCHILY__xattr__security__capability="y" * 4000) + member("x")),
)
plain("ends too early", tar_cut=system()[:3000])
plain("ends in the middle", tar_cut_in_file=system()[:3172])
plain("damaged", tar_bad_checksum=system().replace(b"os-release", b"os_release"))
plain("damaged", tar_bad_extension=system(member("x", tarfile.XHDTYPE, b"99 a=b\n")))
plain("cannot be", tar_negative=system(records(size="-1") + member("x")))
plain("cannot be unpacked", gzip_damaged=gzip.compress(system())[:-20] + b"x" * 20)
plain("cannot be unpacked", gzip_cut=gzip.compress(system())[:-20])
plain("cannot be unpacked", xz_cut=lzma.compress(system())[:-40])
plain("200 times", gzip_bomb=bomb(zlib.compressobj(9, wbits=31)))
plain("200 times", bzip2_bomb=bomb(bz2.BZ2Compressor()))
plain("200 times", xz_bomb=bomb(lzma.LZMACompressor(preset=1)))
plain("no Linux system", tar_of_nothing=archive(member("readme", data=b"hello")))
plain(
    "are for aarch64",
    tar_other_processor=archive(
        member("etc/os-release", data=RELEASE), member("bin/sh", data=ARM_ELF)
    ),
)


@case("200 times")
def _zstd_bomb(path: Path) -> bytes:
    (path / "bomb.gz").write_bytes(bomb(zlib.compressobj(1, wbits=31)))
    pipe = f"gzip -dc {path}/bomb.gz | zstd -qc > {path}/bomb.zst"
    subprocess.run(["sh", "-c", pipe], check=True)
    return (path / "bomb.zst").read_bytes()


@case("cannot be unpacked")
def _zstd_window(path: Path) -> bytes:
    (path / "w").write_bytes(system(member("x", data=bytes(range(256)) * 4096)))
    argv = ["zstd", "-q", "--ultra", "--long=31", "--no-content-size", str(path / "w")]
    with (path / "w").open("rb") as file:
        done = subprocess.run([*argv[:-1], "-c"], stdin=file, capture_output=True, check=True)
    return done.stdout


# Disks.

plain("backing file", qcow2_backing=qcow2(backing=b"/etc/shadow"))
plain("backing file", qcow2_json_backing=qcow2(backing=b'json:{"driver":"nbd"}'))
plain("backing file", qcow2_old_backing=qcow2(version=2, backing=b"nbd://10.0.0.1"))
plain("another file", qcow2_external_data=qcow2(incompatible=4))
plain(
    "another file",
    qcow2_external_name=qcow2(extensions=struct.pack(">II8s", 0x44415441, 8, b"/dev/sda")),
)
plain("encrypted", qcow2_encrypted=qcow2(crypt=2))
plain("unknown qcow2 features", qcow2_features=qcow2(incompatible=1 << 40))
plain("marked as damaged", qcow2_corrupt=qcow2(incompatible=2))
plain("unknown header extension", qcow2_extension=qcow2(extensions=struct.pack(">II", 7, 0)))
plain("no end", qcow2_endless_extension=qcow2(extensions=struct.pack(">II", 0x6803F857, 1 << 16)))
plain("version 9", qcow2_version=qcow2(version=9))
plain("cluster size", qcow2_clusters=qcow2(bits=31))
plain("too large", qcow2_petabytes=qcow2(size=1 << 50, l1_count=1))
plain("no such size", qcow2_table_size=qcow2(l1_count=1 << 30))
plain("not in the file", qcow2_table_place=qcow2(l1_at=1 << 40))
plain("larger than any disk", qcow2_snapshots=qcow2(snapshots=1 << 20))
plain("header cannot be", qcow2_header=qcow2(header_bytes=1 << 20))
plain(
    "more than 65536 MiB",
    qcow2_bomb=qcow2(
        size=256 << 30,
        l1=struct.pack(">Q", 4 << 16 | 1 << 63) * 512,
        rest=struct.pack(">Q", 5 << 16 | 1 << 63) * 8192 + b"\xaa" * (1 << 16),
    ),
)
plain("not in the file", qcow2_data_place=qcow2(l1=struct.pack(">Q", 1 << 50 | 1 << 63)))
plain("no qcow2 file", qcow2_cut=b"QFI\xfb" + bytes(20))
plain("VMDK", vmdk=b"KDMV" + bytes(4096))
plain("VMDK", vmdk_text=b"# Disk DescriptorFile\nversion=1\n" + bytes(600))
plain("VHDX", vhdx=b"vhdxfile" + bytes(4096))
plain("VDI", vdi=b"<<< VirtualBox >>>".ljust(64) + b"\x7f\x10\xda\xbe" + bytes(4096))
plain("ISO", iso=bytes(0x8001) + b"CD001" + bytes(4096))
plain("encrypted", luks=b"LUKS\xba\xbe" + bytes(4096))
plain("XFS", xfs=b"XFSB" + bytes(4096))
plain("Btrfs", btrfs=bytes(0x10040) + b"_BHRfS_M" + bytes(4096))
plain("ZIP", zip_file=b"PK\x03\x04" + bytes(4096))
plain("no kind that is known", text=b"hello, world\n" * 200)
plain("nothing but zeros", zeros=bytes(1 * MIB))
plain("is not on the disk", mbr_outside=mbr([(0x83, 64, 1 << 30)], {}, 2 * MIB))
plain("is not on the disk", mbr_zero=mbr([(0x83, 0, 64)], {}, 2 * MIB))
plain("ext4 root", mbr_empty=mbr([(0x83, 64, 64)], {}, 2 * MIB))
plain("XFS", mbr_xfs=mbr([(0x83, 64, 1024)], {64: b"XFSB"}, 2 * MIB))
plain(
    "no end",
    mbr_endless=mbr(
        [(0x05, 64, 64)],
        {64: mbr([(0, 0, 0), (0x05, 1, 1)], {}, 512), 65: mbr([(0, 0, 0), (5, 1, 1)], {}, 512)},
        2 * MIB,
    ),
)
plain("chain breaks", mbr_broken=mbr([(0x05, 64, 64)], {}, 2 * MIB))
plain("no GPT header", gpt_missing=mbr([(0xEE, 1, 4000)], {}, 2 * MIB))
plain("not on the disk", gpt_outside=gpt([(LINUX, 64, 1 << 40, "root")], {}, 2 * MIB))
plain("not on the disk", gpt_backwards=gpt([(LINUX, 900, 64, "root")], {}, 2 * MIB))
plain("no such size", gpt_entries=gpt([(LINUX, 64, 99, "x")], {}, 2 * MIB, count=1 << 20))
plain(
    "checksum",
    gpt_checksum=gpt([(LINUX, 64, 99, "root")], {}, 2 * MIB).replace(b"EFI PART\0", b"EFI PART\1"),
)


def _superblock(path: Path, offset: int, data: bytes) -> bytes:
    disk = bytearray(ext4(path / "fs").read_bytes())
    disk[1024 + offset : 1024 + offset + len(data)] = data
    return bytes(disk)


@case("block size")
def _ext4_block_size(path: Path) -> bytes:
    return _superblock(path, 0x18, struct.pack("<I", 40))


@case("larger than its partition")
def _ext4_larger(path: Path) -> bytes:
    return _superblock(path, 0x4, struct.pack("<I", 0xFFFFFFFF))


@case("groups cannot be")
def _ext4_groups(path: Path) -> bytes:
    return _superblock(path, 0x20, bytes(4))


@case("inode size")
def _ext4_inode_size(path: Path) -> bytes:
    return _superblock(path, 0x58, struct.pack("<H", 3))


@case("features that guests cannot mount")
def _ext4_features(path: Path) -> bytes:
    return _superblock(path, 0x60, struct.pack("<I", 1 << 30))


@case("features that guests cannot mount")
def _ext4_journal_device(path: Path) -> bytes:
    return _superblock(path, 0x60, struct.pack("<I", 8))


@case("journal on another disk")
def _ext4_external_journal(path: Path) -> bytes:
    return _superblock(path, 0xE0, struct.pack("<I", 0))


@case("no such number of inodes|inode is outside|damaged")
def _ext4_inodes(path: Path) -> bytes:
    return _superblock(path, 0x0, struct.pack("<I", 0xFFFFFFF0))


@case("neither /etc/os-release")
def _ext4_empty(path: Path) -> bytes:
    return ext4(path / "fs").read_bytes()


@case("root is no directory|damaged")
def _ext4_zeroed(path: Path) -> bytes:
    disk = bytearray(ext4(path / "fs").read_bytes())
    disk[8192 : 24 * MIB] = bytes(24 * MIB - 8192)
    return bytes(disk)


@case("squashfs")
def _squashfs_tables(path: Path) -> bytes:
    disk = bytearray(_squashfs(path))
    disk[64:96] = b"\xff" * 7 + b"\x7f" + disk[72:96]
    return bytes(disk)


@case("more than 2000000 files")
def _squashfs_inodes(path: Path) -> bytes:
    disk = bytearray(_squashfs(path))
    disk[4:8] = b"\xff" * 4
    return bytes(disk)


@case("larger than its file")
def _squashfs_cut(path: Path) -> bytes:
    return _squashfs(path)[:200]


def _squashfs(path: Path) -> bytes:
    (path / "tree").mkdir()
    (path / "tree" / "x").write_bytes(bytes(range(256)) * 64)
    argv = ["mksquashfs", str(path / "tree"), str(path / "s"), "-quiet", "-no-progress"]
    subprocess.run(argv, check=True)
    return (path / "s").read_bytes()


# OCI and docker archives.

_IMAGE = "application/vnd.oci.image.manifest.v1+json"
_ABSENT = "sha256:" + "0" * 64
plain(
    "not what its digest says",
    oci_layer_digest=Layout().image([system()]).tar().replace(b"testos", b"tastos"),
)
plain("lacks", oci_layer_missing=Layout().image([system()], layer={"digest": _ABSENT}).tar())
plain(
    "no SHA-256 digest",
    oci_digest_path=Layout().image([system()], layer={"digest": "sha256:../../etc"}).tar(),
    oci_manifest_path=Layout().image([system()], entry={"digest": "../../../etc/passwd"}).tar(),
    oci_digest_number=Layout().image([system()], layer={"digest": 7}).tar(),
)
plain("lies elsewhere", oci_urls=Layout().image([system()], layer={"urls": ["http://x"]}).tar())
plain(
    "layer of the kind",
    oci_foreign=Layout()
    .image(
        [system()],
        layer={"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
    )
    .tar(),
)
plain("not 1 to 256", oci_layers=Layout().image([archive()] * 300).tar())
plain("not 1 to 256", oci_no_layers=Layout().image([]).tar())
plain(
    "in two ways",
    oci_more_diffs=Layout()
    .image([system()], config={"rootfs": {"diff_ids": [_ABSENT, _ABSENT]}})
    .tar(),
)
plain(
    "unpacks to something else",
    oci_diff=Layout().image([system()], config={"rootfs": {"diff_ids": [_ABSENT]}}).tar(),
)
plain(
    "is not for x86_64",
    oci_platform=Layout().image([system()], entry={"platform": {"architecture": "s390x"}}).tar(),
)
plain(
    "for linux on arm64",
    oci_config=Layout().image([system()], config={"architecture": "arm64"}).tar(),
)
plain("not of its form", oci_index_list=Layout().index("x" * 100).tar())
plain("larger than", oci_index_large=Layout().index("x" * (5 * MIB)).tar())
plain(
    "for x86_64",
    oci_two=Layout()
    .index(
        [
            {
                "mediaType": _IMAGE,
                "digest": f"sha256:{n * 64}",
                "platform": {"architecture": "amd64"},
            }
            for n in "ab"
        ]
    )
    .tar(),
)
plain(
    "removes nothing", oci_whiteout_up=Layout().image([system(), archive(member(".wh..."))]).tar()
)
plain(
    "goes through the symlink",
    oci_whiteout_link=Layout()
    .image(
        [
            system(member("out", tarfile.SYMTYPE, linkname="/etc")),
            archive(member("out/.wh.passwd")),
        ]
    )
    .tar(),
    oci_write_through_link=Layout()
    .image(
        [
            system(member("out", tarfile.SYMTYPE, linkname="/etc")),
            archive(member("out/passwd", data=b"x")),
        ]
    )
    .tar(),
)
plain(
    "character device",
    oci_overlay_whiteout=Layout().image([system(), archive(member("etc", tarfile.CHRTYPE))]).tar(),
)
plain("200 times", oci_bomb=Layout().image([bomb(zlib.compressobj(9, wbits=31))]).tar())


@case("without an end")
def _oci_endless(_path: Path) -> bytes:
    layout = Layout()
    entry: dict[str, object] = {}
    for _ in range(5):
        entry = layout.json({"schemaVersion": 2, "manifests": [entry]})
    return layout.index([entry]).tar()


@case("no JSON|without an end|not of its form")
def _oci_nested(_path: Path) -> bytes:
    layout = Layout()
    layout.files["index.json"] = b"[" * 100_000
    return layout.tar()


def _docker(**image: object) -> bytes:
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [_ABSENT]}}
    described = {"Config": "config.json", "Layers": ["layer.tar"], **image}
    return archive(
        member("manifest.json", data=json.dumps([described]).encode()),
        member("config.json", data=json.dumps(config).encode()),
        member("layer.tar", data=system()),
    )


plain("cannot be in it", docker_absolute=_docker(Config="/etc/passwd"))
plain("leads upwards", docker_upwards=_docker(Layers=["a/../../layer.tar"]))
plain("unpacks to something else", docker_diff=_docker())
plain("lacks", docker_missing=_docker(Layers=["other.tar"]))
plain("2 images", docker_two=archive(member("manifest.json", data=b"[{}, {}]")))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    """A store whose mke2fs and sqfs2tar succeed at doing nothing: they are not to be reached."""

    async def tools(*_args: object) -> ImageTools:
        return ImageTools(tmp_path / "tools")

    (tmp_path / "tools" / "lib").mkdir(parents=True)
    true = shutil.which("true")
    assert true is not None
    shutil.copy(true, tmp_path / "tools" / "lib" / "ld-linux-x86-64.so.2")
    monkeypatch.setattr("arcboxd.assets.ext4_tools.ImageToolStore.ensure", tools)
    return ImageStore(Paths(tmp_path / "home", tmp_path / "cache"))


def test_there_are_enough() -> None:
    assert len(CASES) >= 40


def _largest_child_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10


@pytest.mark.parametrize("name", CASES)
async def test_it_is_refused_and_nothing_is_left(
    name: str, store: ImageStore, tmp_path: Path
) -> None:
    make, words = CASES[name]
    (tmp_path / "made").mkdir()
    (tmp_path / "image").write_bytes(make(tmp_path / "made"))
    new = NewImage(path=str(tmp_path / "image"), name="evil", arch="x86_64")
    before = _largest_child_bytes()
    with pytest.raises(ArcboxError, match=words) as refused:
        await store.import_file(new, lambda _step, _done, _total: None)
    assert refused.value.kind in {ErrorKind.INVALID, ErrorKind.CORRUPT, ErrorKind.UNSUPPORTED}
    left = [path for path in (tmp_path / "cache").rglob("*") if ".locks" not in path.parts]
    assert left == [tmp_path / "cache" / "images"]
    # It is the largest child of all so far, which an earlier test may have had.
    assert _largest_child_bytes() <= max(before, MEMORY_BYTES)


async def test_another_digest_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(system())
    new = NewImage(str(tmp_path / "image"), "evil", arch="x86_64", sha256="0" * 64)
    with pytest.raises(CorruptError, match="digest"):
        await store.import_file(new, lambda _step, _done, _total: None)
    assert not (tmp_path / "cache").exists()


async def test_what_is_no_file(store: ImageStore, tmp_path: Path) -> None:
    for path in (str(tmp_path), "/dev/zero", "/nonexistent", "relative", "/a\0b"):
        with pytest.raises(ArcboxError) as refused:
            await store.import_file(NewImage(path, "evil"), lambda _s, _d, _t: None)
        assert refused.value.kind is ErrorKind.INVALID
