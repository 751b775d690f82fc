"""Images from simplestreams servers, such as the Linux Containers and the Ubuntu image servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from arcboxd import durable
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import ImageNotFoundError, ImageServerError, PreconditionError
from arcboxd.images import json_input
from arcboxd.images.download import download
from arcboxd.images.products import Product, catalogues, choose, offered, products
from arcboxd.images.reference import is_loopback
from arcboxd.images.signed import verified
from arcboxd.images.web import PATIENCE, Patience, Web, read, shown

INDEX_MAX_BYTES = 4 << 20
CATALOGUE_MAX_BYTES = 16 << 20
"""The largest that we know of, of all releases and architectures, has 5 MB."""

_NAMES = {"squashfs": "root.squashfs", "tar": "root.tar.xz", "disk": "disk.img"}


@dataclass(frozen=True, slots=True)
class Fetched:
    """An image that was downloaded and has the digest that the server's index promised."""

    path: Path
    kind: str
    """``squashfs``, ``tar`` or ``disk``."""
    distro: str
    version: str
    arch: str
    serial: str
    sha256: str


async def fetch(  # noqa: PLR0917 - what is asked for, and where it goes
    servers: Sequence[str],
    distro: str,
    version: str,
    arch: str,
    target: Path,
    progress: ProgressFn,
    *,
    keyring: Path | None = None,
    patience: Patience = PATIENCE,
) -> Fetched:
    """Get the newest image of a distribution from the first server that has one.

    Cancelled, or broken off, it leaves what came of the image in ``target``, and goes on from there
    when it is called again.

    Args:
        servers: Addresses; below each is ``streams/v1/index.json``.
        distro: A distribution's name.
        version: A release's name, number or alias; empty for the server's default or newest.
        arch: The kernel's name of an architecture.
        target: The directory to put the file in; made if it is missing.
        progress: Told of each step.
        keyring: With one, the servers' lists must be signed by one of its keys.
        patience: How long a server may take, and how often it is asked again.

    Raises:
        CorruptError: A list or the image is not what was promised or signed.
        ImageNotFoundError: No server has such an image; the hint names what there is.
        ImageServerError: A server does not answer, and no other has the image.
        MissingToolError: There is a keyring, but no gpgv.
        NoRoomError: The disk is full.
        PreconditionError: An address is plain http without a keyring; or the keyring is missing.
        StoreError: The file cannot be written.
    """
    with durable.storing(f"make {target}"):
        await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
    unreachable: ImageServerError | None = None
    hints: list[str] = []
    async with Web(patience) as web:
        for server in servers:
            base = server.rstrip("/")
            _require_trust(base, keyring)
            progress(f"asking {urlsplit(base).hostname} for {distro}", 0, 0)
            try:
                offers = await _offers(web, base, keyring, patience)
            except ImageServerError as error:
                unreachable = unreachable or error
                continue
            choice = choose(offers, distro, version, arch)
            if choice is None:
                hints.append(offered(offers, distro, arch))
                continue
            item = choice.item
            path = await download(
                f"{base}/{item.path}",
                target / _NAMES[item.kind],
                sha256=item.sha256,
                size=item.size,
                progress=progress,
                what=f"{distro} {choice.version}",
                opener=web,
                patience=patience,
            )
            return Fetched(
                path, item.kind, distro, choice.version, arch, choice.serial, item.sha256
            )
    if unreachable is not None:
        raise unreachable
    raise ImageNotFoundError(
        f"no image server has {distro} {version or '(any version)'} for {arch}",
        hint="; ".join(hint for hint in hints if hint) or "see the setting image_servers",
    )


async def _offers(web: Web, base: str, keyring: Path | None, patience: Patience) -> list[Product]:
    async def document(path: str, limit_bytes: int) -> dict[str, object]:
        if keyring is not None:
            # A signed list is named .sjson; its index may still name the unsigned one.
            path = f"{path.removesuffix('.json').removesuffix('.sjson')}.sjson"
        what = f"the image list {path.rpartition('/')[2]} of {shown(base)}"
        try:
            data = await read(
                web, f"{base}/{path}", limit_bytes=limit_bytes, what=what, patience=patience
            )
        except ImageNotFoundError as error:
            raise ImageServerError(error.message, hint="see the setting image_servers") from error
        if keyring is not None:
            data = await verified(data, keyring, what)
        return await asyncio.to_thread(json_input.parse, data, what)

    index = await document("streams/v1/index.json", INDEX_MAX_BYTES)
    found: list[Product] = []
    for path in catalogues(index):
        catalogue = await document(path, CATALOGUE_MAX_BYTES)
        found += await asyncio.to_thread(lambda c: [*products(c)], catalogue)
    return found


def _require_trust(base: str, keyring: Path | None) -> None:
    # The digests of the images are only as good as the list that they are in.
    parts = urlsplit(base)
    if parts.scheme == "http" and keyring is None and not is_loopback(parts.hostname or ""):
        raise PreconditionError(
            f"{shown(base)} is plain http, so that anyone on the way could change its images",
            hint="use https, or name the server's keys by the setting image_keyring",
        )
