"""Which modules are loaded, and in which order."""

from __future__ import annotations

import struct

import pytest

from arcboxd.assets.kernel import select_early
from arcboxd.assets.modules import ModuleIndex, module_name, without_signature
from arcboxd.errors import AssetBuildError, CorruptError

DEP = """\
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/lib/crc16.ko:
kernel/fs/mbcache.ko:
kernel/fs/jbd2/jbd2.ko:
kernel/fs/squashfs/squashfs.ko:
kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/crypto/crc32c_generic.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci_modern_dev.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_pci_modern_dev.ko \
kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_balloon.ko: kernel/drivers/virtio/virtio.ko \
kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko \
kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio.ko \
kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko \
kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
"""
BUILTIN = "kernel/net/packet/af_packet.ko\nkernel/drivers/char/hw_random/rng-core.ko\n"


@pytest.fixture
def index() -> ModuleIndex:
    return ModuleIndex.parse(DEP, BUILTIN)


def test_names_are_the_kernels() -> None:
    assert module_name("kernel/arch/x86/crypto/crc32c-intel.ko.xz") == "crc32c_intel"


def test_needs_come_first_and_once(index: ModuleIndex) -> None:
    order = index.load_order(["virtio_pci", "virtio_blk", "virtio-rng"])
    assert order == [
        *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci"),
        *("virtio_blk", "virtio_rng"),
    ]


def test_what_is_there_already_is_left_out(index: ModuleIndex) -> None:
    assert index.load_order(["af_packet", "virtio_blk"], loaded=["virtio", "virtio-ring"]) == [
        "virtio_blk"
    ]


def test_an_unknown_module_is_named(index: ModuleIndex) -> None:
    with pytest.raises(AssetBuildError, match="'zfs'"):
        index.load_order(["ext4", "zfs"])


@pytest.mark.parametrize("dep", ["nonsense\n", "a.ko: b.ko\nb.ko: a.ko\n"])
def test_a_damaged_index_is_refused(dep: str) -> None:
    with pytest.raises(CorruptError):
        ModuleIndex.parse(dep, "").load_order(["a"])


def test_the_two_chains_that_run_at_once_do_not_need_each_other(index: ModuleIndex) -> None:
    early = select_early(index, "6.1.0", "x86_64")
    assert early.checksums == ("crc32c_intel", "crc32c_generic")
    assert early.root[-1] == "ext4"
    assert not {*early.root} & {*early.disk}
    loaded: set[str] = {*early.checksums, *index.builtin}
    for chain in (early.root, early.disk):
        seen = set(loaded)
        for name in chain:
            assert {*index.dependencies[name]} <= seen, name
            seen.add(name)
    assert early.network == ("failover", "net_failover", "virtio_net")
    assert early.late == ("squashfs", "virtio_rng", "virtio_balloon")


def test_a_signature_is_cut_off_and_nothing_else() -> None:
    body = b"\x7fELF" + bytes(range(200))
    signature = b"s" * 40
    end = signature + bytes(8) + struct.pack(">I", 40) + b"~Module signature appended~\n"
    assert without_signature(body + end) == body
    assert without_signature(body) == body
    with pytest.raises(CorruptError):
        without_signature(b"x" + end[40:])
