"""OCI layouts and docker's archives: which layers an image has, each checked by its digest.

Source: OCI image specification 1.1 (image-layout, index, manifest, config); docker's
`manifest.json` of ``docker save``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from arcboxd.errors import CorruptError, InvalidArgumentError, UnsafeImageError, UnsupportedError
from arcboxd.images import rootfs
from arcboxd.images.limits import Limits
from arcboxd.images.streams import Slice, opened, read_all, sha256, whole
from arcboxd.images.tree import Tree

_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_LAYERS = re.compile(
    r"application/vnd\.oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?"
    r"|application/vnd\.docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?"
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_INDEX_DEPTH = 3

Blobs = Callable[[str], contextlib.AbstractContextManager[Slice]]
"""Opens a file of the layout by its name."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image."""

    name: str
    digest: str
    """Of the file as it lies there; empty if nothing tells it."""
    diff: str
    """Of what it unpacks to."""


def directory_blobs(root: Path) -> Blobs:
    """Read a layout that is a directory of ours; no link in it is followed."""

    @contextlib.contextmanager
    def blob(name: str) -> Iterator[Slice]:
        try:
            fd = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CorruptError(f"the image lacks {name}: {error.strerror}") from error
        with os.fdopen(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UnsafeImageError(f"{name} in the image is no file")
            yield whole(file)

    return blob


def tree_blobs(tree: Tree) -> Blobs:
    """Read a layout that was an archive."""

    @contextlib.contextmanager
    def blob(name: str) -> Iterator[Slice]:
        found = rootfs.find(tree, name)
        if found is None or found[0].kind != "file":
            raise CorruptError(f"the image lacks {name[:80]!r}")
        yield tree.content(found[0])

    return blob


def layout_of(tree: Tree) -> str:
    """Tell which kind of image an archive holds, ``oci`` or ``docker``; empty for none."""
    names = {*(tree.root.children or {})}
    if {"oci-layout", "index.json"} <= names:
        return "oci"
    return "docker" if "manifest.json" in names and not {"etc", "usr"} & names else ""


def layers(blobs: Blobs, layout: str, arch: str, limits: Limits) -> list[Layer]:
    """Give the layers of the one image for an architecture, lowest first.

    Raises:
        CorruptError: A document is damaged, or is not what its digest says.
        InvalidArgumentError: There is no such image, or there are several.
        UnsafeImageError: It names what is not in it, or more than an image may have.
        UnsupportedError: It is of another architecture or kind.
    """
    config, rows = _docker(blobs, limits) if layout == "docker" else _oci(blobs, arch, limits)
    _check_platform(config, arch)
    diffs = [
        _digest(diff, "a layer") for diff in _list(_dict(config.get("rootfs")).get("diff_ids"))
    ]
    if not rows or len(rows) > limits.layers:
        raise UnsafeImageError(f"the image has {len(rows)} layers, not 1 to {limits.layers}")
    if len(diffs) != len(rows):
        raise CorruptError("the image is damaged: it lists its layers in two ways")
    return [Layer(name, digest, diff) for (name, digest), diff in zip(rows, diffs, strict=True)]


def flatten(  # noqa: PLR0917
    blobs: Blobs,
    found: list[Layer],
    tree: Tree,
    scratch: Path,
    limits: Limits,
    step: Callable[[int], None],
) -> None:
    """Put an image's layers over each other; each is checked before it is unpacked.

    Raises:
        CorruptError: A layer is damaged, or is not what its digest says.
        UnsafeImageError: It has what no image needs.
    """
    for number, layer in enumerate(found):
        step(number)
        with blobs(layer.name) as blob:
            if layer.digest and sha256(blob) != layer.digest:
                raise CorruptError(f"the layer {layer.digest[:12]} is not what its digest says")
            with opened(blob, scratch, limits) as stream:
                tree.add(stream, whiteouts=True)
                if stream.drain() != layer.diff:
                    raise CorruptError(f"the layer {layer.diff[:12]} unpacks to something else")


def _oci(
    blobs: Blobs, arch: str, limits: Limits
) -> tuple[dict[str, object], list[tuple[str, str]]]:
    index = _document(blobs, "index.json", "", limits)
    for _ in range(_INDEX_DEPTH):
        entry = _choose(_dict(index), arch)
        digest = _digest(entry.get("digest"), "a manifest")
        _no_urls(entry)
        manifest = _dict(_document(blobs, f"blobs/sha256/{digest}", digest, limits))
        kind = manifest.get("mediaType") or entry.get("mediaType")
        if kind not in _INDEXES and "manifests" not in manifest:
            break
        index = manifest
    else:
        raise UnsafeImageError("the image is an index of indexes without an end")
    digest = _digest(_dict(manifest.get("config")).get("digest"), "the configuration")
    config = _dict(_document(blobs, f"blobs/sha256/{digest}", digest, limits))
    rows = []
    for row in map(_dict, _list(manifest.get("layers"))):
        kind = row.get("mediaType")
        if not isinstance(kind, str) or not _LAYERS.fullmatch(kind):
            raise UnsupportedError(f"the image has a layer of the kind {str(kind)[:80]!r}")
        _no_urls(row)
        digest = _digest(row.get("digest"), "a layer")
        rows.append((f"blobs/sha256/{digest}", digest))
    return config, rows


def _docker(blobs: Blobs, limits: Limits) -> tuple[dict[str, object], list[tuple[str, str]]]:
    images = _list(_document(blobs, "manifest.json", "", limits))
    if len(images) != 1:
        raise InvalidArgumentError(
            f"the archive has {len(images)} images", hint="save one image: docker save IMAGE"
        )
    image = _dict(images[0])
    config = _dict(_document(blobs, _name(image.get("Config")), "", limits))
    return config, [(_name(name), "") for name in _list(image.get("Layers"))]


def _choose(index: dict[str, object], arch: str) -> dict[str, object]:
    """Give the entry for an architecture; the only one if none says what it is for."""
    entries = [_dict(entry) for entry in _list(index.get("manifests"))]
    said = [
        (entry, platform)
        for entry in entries
        if (platform := _dict(entry.get("platform") or {})).get("architecture")
        not in {None, "unknown"}
    ]
    fitting = [
        entry
        for entry, platform in said
        if platform.get("architecture") == _NAMES[arch] and platform.get("os", "linux") == "linux"
    ]
    silent = [entry for entry in entries if not entry.get("platform")]
    if not fitting and not said and len(silent) == 1:
        return silent[0]
    if not fitting:
        names = ", ".join(sorted({str(p.get("architecture"))[:20] for _, p in said})) or "nothing"
        raise UnsupportedError(f"the image is not for {arch}", hint=f"it is for {names}")
    if len({str(entry.get("digest")) for entry in fitting}) > 1:
        raise InvalidArgumentError(
            f"the archive has {len(fitting)} images for {arch}", hint="give one with a single image"
        )
    return fitting[0]


def _check_platform(config: dict[str, object], arch: str) -> None:
    system, processor = config.get("os", "linux"), config.get("architecture")
    if system != "linux" or processor not in {_NAMES[arch], None, ""}:
        raise UnsupportedError(
            f"the image is for {str(system)[:20]} on {str(processor)[:20]}, not for {arch}"
        )


def _document(blobs: Blobs, name: str, digest: str, limits: Limits) -> object:
    with blobs(name) as blob:
        data = read_all(blob, limits.document_bytes, f"{name} in the image")
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise CorruptError(f"{name} in the image is not what its digest says")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{name} in the image is no JSON: {error}") from error


def _digest(value: object, what: str) -> str:
    match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise CorruptError(f"the image is damaged: {what} has no SHA-256 digest")
    return match[1]


def _name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}", value):
        raise UnsafeImageError("the image names a file that cannot be in it")
    if ".." in value.split("/"):
        raise UnsafeImageError(f"the name {value[:80]!r} in the image leads upwards")
    return value


def _no_urls(row: dict[str, object]) -> None:
    if row.get("urls"):
        raise UnsafeImageError("the image has a part that lies elsewhere (urls)")


def _dict(value: object) -> dict[str, object]:
    return _typed(value, dict)


def _list(value: object) -> list[object]:
    return _typed(value, list)


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise CorruptError("the image is damaged: a document of it is not of its form")
    return value
