"""What is picked from a simplestreams server's lists, and what is refused in them."""

from __future__ import annotations

from typing import Any

import pytest

from arcboxd.errors import CorruptError
from arcboxd.images.products import Choice, catalogues, choose, offered, products, safe_path

DIGEST = "ab" * 32


def item(ftype: str, path: object = "images/x", **changes: object) -> dict[str, object]:
    return {"ftype": ftype, "path": path, "sha256": DIGEST, "size": 5, **changes}


def builds(*serials: str, ftypes: tuple[str, ...] = ("squashfs",)) -> dict[str, object]:
    return {
        serial: {"items": {name: item(name, f"images/{serial}/{name}") for name in ftypes}}
        for serial in serials
    }


def lxc(os: str, release: str, arch: str, variant: str = "default", *more: str) -> dict[str, Any]:
    """A product as the Linux Containers server has it."""
    name = os.lower()
    aliases = [f"{name}/{release}/{variant}", *more]
    if variant == "default":
        aliases.append(f"{name}/{release}")
    return {
        "aliases": ",".join(aliases),
        "arch": arch,
        "os": os,
        "release": release,
        "release_title": release,
        "variant": variant,
        "versions": builds(f"2026_{variant}"),
    }


LXC = {
    "alpine:3.9:amd64:default": lxc("Alpine", "3.9", "amd64"),
    "alpine:3.23:amd64:default": lxc("Alpine", "3.23", "amd64"),
    "alpine:3.23:amd64:cloud": lxc("Alpine", "3.23", "amd64", "cloud"),
    "alpine:3.24:amd64:tinycloud": lxc("Alpine", "3.24", "amd64", "tinycloud"),
    "alpine:3.23:arm64:default": lxc("Alpine", "3.23", "arm64"),
    "alpine:edge:amd64:default": lxc("Alpine", "edge", "amd64"),
    "debian:bookworm:amd64:default": lxc("Debian", "bookworm", "amd64", "default", "debian/12"),
    "debian:trixie:amd64:default": lxc("Debian", "trixie", "amd64", "default", "debian/13"),
    "debian:sid:amd64:default": lxc("Debian", "sid", "amd64"),
    "archlinux:current:amd64:default": lxc("Archlinux", "current", "amd64"),
    "fedora:43:amd64:cloud": lxc("Fedora", "43", "amd64", "cloud"),
}
UBUNTU = {
    f"com.ubuntu.cloud:server:{number}:amd64": {
        "aliases": aliases,
        "arch": "amd64",
        "os": "ubuntu",
        "release": codename,
        "release_codename": f"{codename.title()} Animal",
        "release_title": title,
        "version": number,
        "versions": builds("20260101", "20260901.1", "20260901"),
    }
    for number, codename, title, aliases in (
        ("22.04", "jammy", "22.04 LTS", "22.04,j,jammy"),
        ("24.04", "noble", "24.04 LTS", "24.04,n,noble,default,lts"),
        ("25.10", "questing", "25.10", "25.10,q,questing"),
    )
}


def catalogue(entries: object) -> dict[str, object]:
    return {"format": "products:1.0", "products": entries}


def pick(entries: object, distro: str, version: str = "", arch: str = "x86_64") -> Choice | None:
    return choose([*products(catalogue(entries))], distro, version, arch)


@pytest.mark.parametrize(
    ("distro", "version", "arch", "found"),
    [
        ("alpine", "3.23", "x86_64", "3.23"),
        ("Alpine", "3.9", "x86_64", "3.9"),
        ("alpine", "3.23", "aarch64", "3.23"),
        ("alpine", "edge", "x86_64", "edge"),
        ("alpine", "", "x86_64", "3.23"),
        ("debian", "13", "x86_64", "trixie"),
        ("debian", "Trixie", "x86_64", "trixie"),
        ("debian", "", "x86_64", "trixie"),
        ("debian", "sid", "x86_64", "sid"),
        ("archlinux", "current", "x86_64", "current"),
        ("archlinux", "", "x86_64", "current"),
        ("fedora", "43", "x86_64", "43"),
        ("alpine", "3.24", "x86_64", None),
        ("alpine", "3.9", "aarch64", None),
        ("alpine", "3.2", "x86_64", None),
        ("gentoo", "", "x86_64", None),
    ],
)
def test_releases_of_the_linux_containers_server(
    distro: str, version: str, arch: str, found: str | None
) -> None:
    choice = pick(LXC, distro, version, arch)
    assert (choice and choice.version) == found


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("24.04", "noble"),
        ("noble", "noble"),
        ("lts", "noble"),
        ("", "noble"),
        ("current", "noble"),
        ("25.10", "questing"),
        ("j", "jammy"),
        ("26.04", None),
    ],
)
def test_releases_of_the_ubuntu_server(version: str, found: str | None) -> None:
    choice = pick(UBUNTU, "ubuntu", version)
    assert (choice and choice.version) == found


def test_a_variant_is_given_to_who_asks_for_it() -> None:
    for version, serial in (
        ("3.23", "2026_default"),
        ("3.23/cloud", "2026_cloud"),
        ("3.24/tinycloud", "2026_tinycloud"),
    ):
        choice = pick(LXC, "alpine", version)
        assert choice is not None
        assert choice.serial == serial


def test_the_newest_build_with_something_to_use_is_taken() -> None:
    product = {**LXC["alpine:3.23:amd64:default"]}
    product["versions"] = {
        **builds("20251120_13:00", "20251119_13:00"),
        **builds("20251121_13:00", ftypes=("incus.tar.xz", "manifest")),
        "20251122_13:00": {"items": []},
        "20251123_13:00": None,
    }
    choice = pick({"x": product}, "alpine")
    assert choice is not None
    assert choice.serial == "20251120_13:00"
    assert choice.item.path == "images/20251120_13:00/squashfs"


@pytest.mark.parametrize(
    ("there", "kind"),
    [
        (("disk-kvm.img", "root.tar.xz", "squashfs", "incus.tar.xz"), "squashfs"),
        (("disk-kvm.img", "root.tar.xz"), "tar"),
        (("lxd.tar.xz", "disk1.img"), "disk"),
        (("disk.qcow2",), "disk"),
    ],
)
def test_items_by_preference(there: tuple[str, ...], kind: str) -> None:
    product = {**LXC["alpine:3.23:amd64:default"], "versions": builds("1", ftypes=there)}
    choice = pick({"x": product}, "alpine")
    assert choice is not None
    assert choice.item.kind == kind


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/etc/passwd"},
        {"path": "../../x"},
        {"path": "images/./x"},
        {"path": "images//x"},
        {"path": "a\\..\\b"},
        {"path": "a\nb"},
        {"path": "https://example.com/x"},
        {"path": ""},
        {"path": None},
        {"path": ["x"]},
        {"sha256": "ab"},
        {"sha256": 7},
        {"sha256": "../" * 20 + "abcd"},
        {"size": -1},
        {"size": True},
        {"size": "5"},
        {"size": 1 << 60},
        {"size": 1e9},
    ],
    ids=repr,
)
def test_a_hostile_item_is_refused(change: dict[str, object]) -> None:
    version = {"items": {"x": {**item("squashfs"), **change}}}
    product = {**LXC["alpine:3.23:amd64:default"], "versions": {"1": version}}
    with pytest.raises(CorruptError):
        pick({"x": product}, "alpine")


@pytest.mark.parametrize("entries", [None, [], "x", {"a": 1}, {"a": []}], ids=repr)
def test_no_list_of_products(entries: object) -> None:
    with pytest.raises(CorruptError):
        pick(entries, "alpine")
    with pytest.raises(CorruptError):
        [*products({"format": "products:2.0", "products": {}})]


def test_odd_products_are_left_out() -> None:
    odd = {
        "a": {"arch": "amd64"},
        "b": {"arch": ["amd64"], "versions": {}},
        "c": {"arch": "amd64", "versions": {}, "aliases": 7, "os": {"x": 1}, "variant": []},
        "d": {"arch": "amd64", "versions": {"9" * 10_000: 1}, "os": "alpine", "version": "9" * 99},
    }
    choice = pick({**odd, **LXC}, "alpine", "3.23")
    assert choice is not None
    assert choice.serial == "2026_default"


def test_a_hint_names_what_there_is() -> None:
    found = [*products(catalogue(LXC))]
    assert offered(found, "Alpine", "x86_64") == "there is: edge, 3.9, 3.23, 3.24"
    assert "debian" in offered(found, "plan9", "x86_64")
    assert offered(found, "plan9", "riscv64") == ""


def test_catalogues_of_images_alone() -> None:
    entry = {"format": "products:1.0", "datatype": "image-downloads"}
    index = {
        "a": {**entry, "path": "streams/v1/com.ubuntu.cloud:released:download.json"},
        "b": {**entry, "datatype": "image-ids", "path": "streams/v1/ids.json"},
    }
    found = catalogues({"index": index})
    assert found == ["streams/v1/com.ubuntu.cloud:released:download.json"]
    for bad in ({"index": None}, {"index": {"a": 1}}, {"index": {"a": {**entry, "path": "../x"}}}):
        with pytest.raises(CorruptError):
            catalogues(bad)
    with pytest.raises(CorruptError):
        catalogues({"index": {str(n): {**entry, "path": "x"} for n in range(99)}})


def test_characters_with_a_meaning_in_addresses_lose_it() -> None:
    assert safe_path("a b/c?d#e/f%2e%2e") == "a%20b/c%3Fd%23e/f%252e%252e"
