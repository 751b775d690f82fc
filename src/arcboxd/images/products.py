"""What a simplestreams server offers, and the one item of it that fits; no I/O.

Source: the simplestreams format ``products:1.0`` as the Linux Containers and the Ubuntu image
servers write it, and as incus reads it (shared/simplestreams).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from arcboxd.assets.mirror import DEBIAN_ARCHES
from arcboxd.errors import CorruptError
from arcboxd.images import json_input
from arcboxd.images.download import SIZE_MAX_BYTES

KINDS = {
    "squashfs": "squashfs",
    "root.squashfs": "squashfs",
    "root.tar.xz": "tar",
    "disk-kvm.img": "disk",
    "disk.qcow2": "disk",
    "disk1.img": "disk",
}
"""What we can use of an image, by the server's names, the best first."""

_CATALOGUES_MAX = 16
_VARIANTS = ("default", "", "cloud", "server")
"""Those that one gets without asking, the best first."""
_ROLLING = frozenset({"", "current", "latest", "default"})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"\d{1,18}")
_SEGMENT = re.compile(r"[^\x00-\x1f\x7f/\\]{1,255}")


@dataclass(frozen=True, slots=True)
class Item:
    """A file on the server."""

    kind: str
    """``squashfs``, ``tar`` or ``disk``."""
    path: str
    """Below the server's address, ready for a URL."""
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """One release of one distribution for one architecture."""

    identity: str
    distros: frozenset[str]
    versions: tuple[str, ...]
    """All names of the release, the server's own first."""
    variant: str
    is_default: bool
    arch: str
    builds: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Choice:
    """The newest build of a product, and the item of it that fits best."""

    version: str
    serial: str
    item: Item


def catalogues(index: Mapping[str, object]) -> list[str]:
    """Give the paths of the product lists that an index names, for use in a URL.

    Raises:
        CorruptError: It is no such index, or a path leads out of the server's tree.
    """
    found = []
    for name, value in json_input.mapping(index.get("index"), "the index's list").items():
        entry = json_input.mapping(value, f"the index's entry {name[:80]!r}")
        if entry.get("datatype") == "image-downloads" and entry.get("format") == "products:1.0":
            found.append(safe_path(json_input.text(entry.get("path"), "a product list's path")))
    if len(found) > _CATALOGUES_MAX:
        raise CorruptError(f"the index names more than {_CATALOGUES_MAX} product lists")
    return found


def products(catalogue: Mapping[str, object]) -> Iterator[Product]:
    """Read a product list; products that are for nothing we know are left out.

    Raises:
        CorruptError: It is no such list.
    """
    if catalogue.get("format") != "products:1.0":
        raise CorruptError("the product list has another format than products:1.0")
    entries = json_input.mapping(catalogue.get("products"), "the list of products")
    for identity, value in entries.items():
        entry = json_input.mapping(value, f"the product {identity[:80]!r}")
        builds = entry.get("versions")
        if isinstance(builds, dict) and json_input.loose_text(entry.get("arch")):
            yield _product(identity, entry, builds)


def choose(offers: Iterable[Product], distro: str, version: str, arch: str) -> Choice | None:
    """Pick the newest build of what a user asks for; None if there is none that we can use.

    Args:
        offers: Those of one server.
        distro: As the server calls it, in any case.
        version: A release's name, number or alias, perhaps with ``/VARIANT``; empty or
            ``current`` for what the server calls its default, else the highest number.
        arch: The kernel's name of an architecture.

    Raises:
        CorruptError: The item has no digest or size, or its path leads out of the server's tree.
    """
    wanted, _, variant = version.lower().partition("/")
    fitting = [
        offer
        for offer in offers
        if distro.lower() in offer.distros
        and offer.arch in {arch, DEBIAN_ARCHES.get(arch)}
        and (offer.variant == variant if variant else offer.variant in _VARIANTS)
    ]
    named = [offer for offer in fitting if wanted and wanted in offer.versions]
    if not named and wanted in _ROLLING:
        named = [o for o in fitting if o.is_default] or fitting
    for offer in sorted(named, key=_order):
        for serial in sorted(offer.builds, key=_natural, reverse=True):
            if (item := _item(offer.builds[serial])) is not None:
                return Choice(offer.versions[0], serial[:64], item)
    return None


def offered(offers: Iterable[Product], distro: str, arch: str) -> str:
    """Tell in a phrase what there is: the distribution's versions, else the distributions."""
    here = [o for o in offers if o.arch in {arch, DEBIAN_ARCHES.get(arch)}]
    versions = sorted({o.versions[0] for o in here if distro.lower() in o.distros}, key=_natural)
    if versions:
        return f"there is: {', '.join(versions[:40])}"
    names = sorted({min(o.distros, key=len) for o in here if o.distros})
    return f"there is: {', '.join(names[:60])}" if names else ""


def safe_path(path: str) -> str:
    """Quote a path of an index for a URL.

    Raises:
        CorruptError: It is absolute, has ``..`` or an empty part, or control characters.
    """
    segments = path.split("/")
    for segment in segments:
        if segment in {".", ".."} or _SEGMENT.fullmatch(segment) is None:
            raise CorruptError(f"the path {path[:200]!r} leads out of the image server's tree")
    return "/".join(quote(segment, safe=":@+~,=") for segment in segments)


def _product(identity: str, entry: Mapping[str, object], builds: Mapping[str, object]) -> Product:
    def words(key: str) -> str:
        return json_input.loose_text(entry.get(key)).strip().lower()

    aliases = [alias.strip() for alias in words("aliases").split(",") if alias.strip()]
    # The Linux Containers server has `debian/trixie/default`, Ubuntu's has `24.04` and `noble`.
    slashed = [alias.split("/") for alias in aliases if "/" in alias]
    prefix = identity.lower().split(":")[0]
    distros = {words("os"), *(parts[0] for parts in slashed), "" if "." in prefix else prefix}
    versions = [words("release"), words("version"), words("release_title")]
    versions += [words(key).split(" ")[0] for key in ("release_title", "release_codename")]
    versions += [parts[1] for parts in slashed]
    versions += [alias for alias in aliases if "/" not in alias and alias not in distros]
    return Product(
        identity=identity,
        distros=frozenset(distros - {""}),
        versions=tuple(dict.fromkeys(name for name in versions if name)) or ("",),
        variant=words("variant"),
        is_default=any(alias == "default" or alias in distros for alias in aliases),
        arch=words("arch"),
        builds=builds,
    )


def _order(offer: Product) -> tuple[list[int], int, str]:
    # The highest number first: releases without one (edge, sid, testing) come last.
    numbers = [name for name in offer.versions if re.fullmatch(r"\d[\d.]*", name)]
    highest = max((_natural(name) for name in numbers), default=[])
    padded = [-n for n in highest] + [0] * (8 - len(highest))
    rank = _VARIANTS.index(offer.variant) if offer.variant in _VARIANTS else 0
    return padded, rank, offer.identity


def _natural(name: str) -> list[int]:
    return [int(digits) for digits in _NUMBER.findall(name[:64])][:8]


def _item(build: object) -> Item | None:
    items = build.get("items") if isinstance(build, dict) else None
    if not isinstance(items, dict):
        return None
    by_name: dict[str, Mapping[str, object]] = {}
    for name, entry in items.items():
        if isinstance(entry, dict):
            by_name.setdefault(json_input.loose_text(entry.get("ftype")) or name, entry)
            by_name.setdefault(name, entry)
    for name, kind in KINDS.items():
        if (found := by_name.get(name)) is not None:
            return _read_item(name, kind, found)
    return None


def _read_item(name: str, kind: str, entry: Mapping[str, object]) -> Item:
    sha256 = json_input.text(entry.get("sha256"), f"the digest of {name}").lower()
    if _SHA256.fullmatch(sha256) is None:
        raise CorruptError(f"the digest of {name} is no sha256")
    size = json_input.size(entry.get("size"), f"the size of {name}", limit=SIZE_MAX_BYTES)
    path = safe_path(json_input.text(entry.get("path"), f"the path of {name}"))
    return Item(kind, path, sha256, size)
