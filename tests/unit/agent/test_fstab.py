"""What becomes of the fstab of an image of a whole disk."""

from __future__ import annotations

from arcbox_agent.fstab import LEFT_OUT, without_missing

UBUNTU = (
    "LABEL=cloudimg-rootfs\t/\text4\tdiscard,commit=30,errors=remount-ro\t0 1\n"
    "LABEL=BOOT\t/boot\text4\tdefaults\t0 2\n"
    "LABEL=UEFI\t/boot/efi\tvfat\tumask=0077\t0 1\n"
)


def test_partitions_that_did_not_come_along_are_left_out() -> None:
    root, boot, efi = UBUNTU.splitlines(keepends=True)
    told = without_missing(UBUNTU, lambda name: name == "LABEL=cloudimg-rootfs")
    assert told == root + LEFT_OUT + boot + LEFT_OUT + efi
    assert without_missing(told, lambda _: False).count(LEFT_OUT) == 2


def test_a_root_by_its_partition_is_the_root_disk() -> None:
    line = "PARTUUID=0c6a  /  ext4  rw,x-systemd.growfs 0 1\n"
    assert without_missing(line, lambda _: False) == "/dev/vda  /  ext4  rw,x-systemd.growfs 0 1\n"


def test_what_is_no_disk_or_comes_later_stays() -> None:
    text = (
        "# a comment with UUID=1 in it\n\n"
        "tmpfs /tmp tmpfs defaults 0 0\n"
        "/srv/a /srv/b none bind 0 0\n"
        "server:/export /mnt nfs defaults 0 0\n"
        "/dev/mapper/vg-data /data ext4 defaults 0 2\n"
        "/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n"
        "UUID=1 /mnt/usb ext4 user,noauto 0 0\n"
        "UUID\n"
    )
    assert without_missing(text, lambda _: False) == text


def test_names_are_asked_for_without_their_quotes() -> None:
    line = 'LABEL="swap" none swap sw 0 0'
    assert without_missing(line, lambda name: name == "LABEL=swap") == line
