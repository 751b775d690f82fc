"""How large an image may be, and how deep: what is beyond is refused while it is read."""

from __future__ import annotations

from dataclasses import dataclass

from arcboxd.errors import UnsafeImageError

NAME_BYTES = 255
"""What a name in a directory may have on Linux (NAME_MAX)."""
LINK_BYTES = 4095
"""What a symbolic link may point to (PATH_MAX without its NUL)."""
DEPTH = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one image."""

    members: int = 2_000_000
    """Files, directories and links, in all layers together."""
    total_bytes: int = 64 << 30
    """What all files hold together, and what one stream may unpack to."""
    disk_bytes: int = 2 << 40
    """The size of a disk as its guest would see it, most of which is holes."""
    ratio: int = 200
    """Unpacked bytes to a packed one; text packs to a tenth, and zeros to a thousandth."""
    ratio_from_bytes: int = 64 << 20
    """Below this, no ratio is refused."""
    layers: int = 256
    document_bytes: int = 4 << 20
    """Of a manifest or another JSON document."""

    def check_total(self, count: int) -> None:
        """Refuse more bytes than an image may have.

        Raises:
            UnsafeImageError: There are more.
        """
        if count > self.total_bytes:
            raise UnsafeImageError(
                f"the image holds more than {self.total_bytes >> 20} MiB",
                hint="images are for systems: keep data on disks of the machine's own",
            )

    def check_members(self, count: int) -> None:
        """Refuse more members than an image may have.

        Raises:
            UnsafeImageError: There are more.
        """
        if count > self.members:
            raise UnsafeImageError(f"the image has more than {self.members} files")

    def check_ratio(self, packed: int, unpacked: int) -> None:
        """Refuse what unpacks to far more than a system would.

        Raises:
            UnsafeImageError: It does.
        """
        if unpacked > self.ratio_from_bytes and unpacked > self.ratio * max(packed, 1):
            raise UnsafeImageError(
                f"the image unpacks to more than {self.ratio} times its size",
                hint="if it is meant to hold so many zeros, give it without compression",
            )
