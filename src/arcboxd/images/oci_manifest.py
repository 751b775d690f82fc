"""Manifests of OCI and Docker images: what is in them that we use; no I/O.

Only layers with a digest that come from the registry itself are taken: addresses (``urls``) in a
manifest are never followed, and annotations mean nothing here.

Source: the OCI image specification, "Image Manifest", "Image Index" and "Content Descriptors";
Docker's "Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from arcboxd.errors import CorruptError, ImageNotFoundError, UnsupportedError
from arcboxd.images import json_input

OCI_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
LAYER_TYPES = frozenset(
    {
        *(f"application/vnd.oci.image.layer.v1.tar{end}" for end in ("", "+gzip", "+zstd")),
        *(f"application/vnd.docker.image.rootfs.diff.tar{end}" for end in ("", ".gzip", ".zstd")),
    }
)
CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)

MANIFEST_MAX_BYTES = 4 << 20
"""As registries limit it themselves (OCI distribution specification)."""
CONFIG_MAX_BYTES = 8 << 20
LAYERS_MAX = 512
LAYERS_MAX_BYTES = 64 << 30
"""Of all layers of an image together."""

_ENTRIES_MAX = 1000
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob, by its digest."""

    media_type: str
    digest: str
    """``sha256:`` and 64 hexadecimal digits."""
    size: int

    @property
    def sha256(self) -> str:
        """Give the digest's hexadecimal digits, which are the blob's name in a layout."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image of one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def descriptor(value: object, what: str, *, limit: int) -> Descriptor:
    """Read a descriptor of a blob of at most ``limit`` bytes.

    Raises:
        CorruptError: It is none.
        UnsupportedError: Its digest is of another kind than sha256.
    """
    entry = json_input.mapping(value, what)
    digest = json_input.text(entry.get("digest"), f"the digest of {what}")
    if _DIGEST.fullmatch(digest) is None:
        if re.fullmatch(r"sha(384|512):[0-9a-f]{96,128}", digest):
            raise UnsupportedError(f"the digest of {what} is not a sha256")
        raise CorruptError(f"the digest of {what} is no digest")
    return Descriptor(
        media_type=json_input.text(entry.get("mediaType"), f"the type of {what}"),
        digest=digest,
        size=json_input.size(entry.get("size"), f"the size of {what}", limit=limit),
    )


def is_index(document: Mapping[str, object], what: str) -> bool:
    """Tell an index of platforms from the manifest of one.

    Raises:
        CorruptError: It is neither, or could be read as both.
        UnsupportedError: It is of the format before 2016.
    """
    if document.get("schemaVersion") == 1:
        raise UnsupportedError(f"{what} has a manifest of the outdated schema 1")
    media_type = document.get("mediaType")
    index, single = "manifests" in document, "layers" in document or "config" in document
    if document.get("schemaVersion") != 2 or index == single:  # noqa: PLR2004
        raise CorruptError(f"{what} has neither an image manifest nor an index")
    if media_type is not None and media_type not in (INDEX_TYPES if index else MANIFEST_TYPES):
        raise CorruptError(f"the manifest of {what} is not of the type that it says")
    return index


def choose_platform(index: Mapping[str, object], arch: str, what: str) -> Descriptor:
    """Pick the manifest for Linux and ``arch``, the kernel's name of an architecture.

    Raises:
        CorruptError: It is no such index.
        ImageNotFoundError: There is none for it; the hint names those that there are.
    """
    there: list[str] = []
    for value in json_input.sequence(index.get("manifests"), "the index", limit=_ENTRIES_MAX):
        entry = json_input.mapping(value, "an entry of the index")
        platform = entry.get("platform")
        if entry.get("mediaType") not in MANIFEST_TYPES or not isinstance(platform, dict):
            continue
        system, machine = platform.get("os"), platform.get("architecture")
        if system == "linux" and machine == OCI_ARCHES[arch]:
            return descriptor(entry, "the image's manifest", limit=MANIFEST_MAX_BYTES)
        if system != "unknown":  # as attestations say
            there.append(json_input.loose_text(machine)[:32])
    raise _not_for(arch, what, ", ".join(dict.fromkeys(there)))


def read_manifest(document: Mapping[str, object], what: str) -> Manifest:
    """Read a manifest.

    Raises:
        CorruptError: It is none, or has too many or too large layers.
        UnsupportedError: It has layers that come from elsewhere, or is no image.
    """
    config = descriptor(document.get("config"), "the image's config", limit=CONFIG_MAX_BYTES)
    if config.media_type not in CONFIG_TYPES:
        raise UnsupportedError(f"{what} is no container image, but {config.media_type[:80]!r}")
    values = json_input.sequence(document.get("layers"), "the list of layers", limit=LAYERS_MAX)
    layers = tuple(descriptor(value, "a layer", limit=LAYERS_MAX_BYTES) for value in values)
    for layer in layers:
        if layer.media_type not in LAYER_TYPES:
            raise UnsupportedError(
                f"{what} has a layer of a kind that is not supported: {layer.media_type[:80]!r}",
                hint="layers that must be fetched from elsewhere, or are encrypted, cannot be used",
            )
    if sum(layer.size for layer in layers) > LAYERS_MAX_BYTES:
        raise CorruptError(f"the layers of {what} have more than {LAYERS_MAX_BYTES} bytes together")
    if not layers:
        raise CorruptError(f"{what} has no layers")
    return Manifest(config, layers)


def check_config(config: Mapping[str, object], arch: str, what: str) -> None:
    """Check that an image's config is for Linux and ``arch``.

    Raises:
        ImageNotFoundError: It is for another platform.
    """
    if config.get("os") != "linux" or config.get("architecture") != OCI_ARCHES[arch]:
        there = json_input.loose_text(config.get("architecture"))[:32]
        raise _not_for(arch, what, there)


def _not_for(arch: str, what: str, there: str) -> ImageNotFoundError:
    return ImageNotFoundError(
        f"{what} has no image for Linux on {arch}", hint=f"there is: {there}" if there else ""
    )
