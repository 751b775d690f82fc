"""What apt says is read right, and a pin needs no apt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arcboxd.assets.apt import Apt, parse_uris
from arcboxd.assets.kernel import kernel_image_package
from arcboxd.assets.mirror import Mirror, parse_indextargets
from arcboxd.errors import AssetBuildError, PreconditionError

DIGEST = "f" * 64
URIS = f"""\
'http://mirror.test/pool/z/z.deb' zlib1g_1%3a1.2.13+x-1_amd64.deb 86684 SHA256:{DIGEST}
'http://mirror.test/pool/l/a.deb' linux-image-6.1.0-9-amd64_6.1.9-1_amd64.deb 7 SHA256:{DIGEST}
'http://mirror.test/pool/l/b.deb' linux-image-amd64_6.1.9-1_amd64.deb 8 SHA256:{DIGEST}
"""


def test_uris() -> None:
    zlib, image, meta = parse_uris(URIS)
    assert (zlib.name, zlib.version, zlib.bytes) == ("zlib1g", "1:1.2.13+x-1", 86684)
    assert zlib.file == "zlib1g_1%3a1.2.13+x-1_amd64.deb"
    assert zlib.identity == f"zlib1g=1:1.2.13+x-1:{DIGEST}"
    packages = {package.name: package for package in (zlib, image, meta)}
    assert kernel_image_package(packages, "x86_64") == image
    with pytest.raises(AssetBuildError):
        kernel_image_package({}, "x86_64")


def test_a_weak_digest_is_refused() -> None:
    with pytest.raises(AssetBuildError, match="SHA-256"):
        parse_uris("'http://mirror.test/a.deb' a_1_all.deb 5 MD5Sum:00\n")


async def test_a_pin_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    apt = Apt(tmp_path, "bookworm", "x86_64")
    assert apt.pinned(["zlib1g"]) is None
    pin = apt.pin(["zlib1g"])
    pin.parent.mkdir(parents=True)
    package = {"name": "zlib1g", "version": "1", "file": "f", "bytes": 1, "sha256": DIGEST}
    pin.write_text(json.dumps([package]))
    assert (await apt.resolve(["zlib1g"]))["zlib1g"].sha256 == DIGEST
    pin.write_text("[{")
    assert apt.pinned(["zlib1g"]) is None


def test_only_debians_own_archives_are_used() -> None:
    text = """\
nodistro|main|Someone|http://other.test/
bookworm|stable|Else|http://third.test/debian/
bookworm|main|Vendor|http://vendor.test/debian/
bookworm|contrib|Debian|http://contrib.test/debian/
bookworm|main|Debian|http://mirror.test/debian/
bookworm-updates|main|Debian|http://mirror.test/debian/
bookworm-security|main|Debian|http://security.test/debian-security/
"""
    mirror = parse_indextargets(text, "bookworm")
    assert mirror == Mirror("http://mirror.test/debian", "http://security.test/debian-security")
    # A mirror has all releases, not only the one that the host uses.
    assert parse_indextargets(text, "trixie") == mirror
    with pytest.raises(PreconditionError, match="trixie"):
        parse_indextargets("nodistro|main|Someone|http://other.test/\n", "trixie")


def test_before_the_hosts_first_update_no_origin_is_known() -> None:
    text = "bookworm|main|$(ORIGIN)|http://mirror.test/debian/\n"
    mirror = parse_indextargets(text, "bookworm")
    assert mirror == Mirror("http://mirror.test/debian", "")
    signed = "[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert mirror.sources("bookworm", "amd64") == (
        f"deb {signed} http://mirror.test/debian bookworm main\n"
        f"deb {signed} http://mirror.test/debian bookworm-updates main\n"
    )
