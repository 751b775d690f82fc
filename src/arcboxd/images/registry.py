"""Images from registries, as OCI layout directories; every byte is checked against its digest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from arcboxd import durable
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import ArcboxError, CorruptError, UnsupportedError
from arcboxd.images import json_input
from arcboxd.images.download import download
from arcboxd.images.oci_manifest import (
    INDEX_TYPES,
    MANIFEST_MAX_BYTES,
    MANIFEST_TYPES,
    OCI_ARCHES,
    Descriptor,
    Manifest,
    check_config,
    choose_platform,
    is_index,
    read_manifest,
)
from arcboxd.images.reference import Reference, parse_reference
from arcboxd.images.registry_login import authorization, credentials, login_hint, parse_challenge
from arcboxd.images.web import PATIENCE, Patience, Web, origin_of, read

if TYPE_CHECKING:
    import httpx2

PARALLEL = 3
"""Layers at a time, as docker does it."""

_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))


async def pull(
    reference: str,
    arch: str,
    target: Path,
    progress: ProgressFn,
    *,
    patience: Patience = PATIENCE,
) -> Path:
    """Get the image for ``arch`` and make ``target`` an OCI layout that holds it and nothing else.

    Cancelled, or broken off, it leaves what came in ``target``, and goes on from there when it is
    called again; ``index.json`` is written last.

    Args:
        reference: ``[HOST[:PORT]/]NAME[:TAG][@DIGEST]``; see `parse_reference`.
        arch: The kernel's name of an architecture.
        target: A directory; made if it is missing.
        progress: Told of the bytes that came, of all layers together.
        patience: How long the registry may take, and how often it is asked again.

    Raises:
        CorruptError: Something is not what its digest promises, or no image at all.
        ImageNotFoundError: There is no such image, or none for that architecture.
        ImageServerError: The registry does not answer.
        InvalidArgumentError: It is no reference.
        NoRoomError: The disk is full.
        PreconditionError: The registry asks for a login.
        StoreError: The files cannot be written.
        UnsupportedError: The image has parts of a kind that we cannot use.

    Source: the OCI distribution specification, "Pull"; the OCI image layout specification.
    """
    named = parse_reference(reference)
    if arch not in OCI_ARCHES:
        raise UnsupportedError(
            f"no image is known for {arch}", hint=f"known: {', '.join(OCI_ARCHES)}"
        )
    with durable.storing(f"make {target}"):
        blobs = await asyncio.to_thread(_begin, target)
    progress(f"asking {named.registry} for {named.repository}", 0, 0)
    async with Web(patience) as web:
        registry = _Registry(named, web, patience)
        described, body, manifest = await registry.manifest(arch)
        job = _Pull(registry, blobs, manifest, progress)
        await job.blob(manifest.config)
        config = await asyncio.to_thread((blobs / manifest.config.sha256).read_bytes)
        check_config(json_input.parse(config, "the image's config"), arch, str(named))
        await job.layers()
    with durable.storing(f"write {target}"):
        await asyncio.to_thread(_finish, target, described, body, manifest, arch)
    return target


class _Pull:
    """The blobs of one image, and how much of them came."""

    def __init__(
        self, registry: _Registry, blobs: Path, manifest: Manifest, progress: ProgressFn
    ) -> None:
        self._registry, self._blobs, self._manifest = registry, blobs, manifest
        self._wanted = {blob.digest: blob for blob in (manifest.config, *manifest.layers)}
        self._done = dict.fromkeys(self._wanted, 0)
        self._total = sum(blob.size for blob in self._wanted.values())
        self._progress = progress
        self._slots = asyncio.Semaphore(PARALLEL)

    async def layers(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for blob in self._wanted.values():
                    if blob is not self._manifest.config:
                        group.create_task(self.blob(blob))
        except BaseExceptionGroup as errors:
            # One is enough for the user, and ours says most.
            ours = errors.subgroup(ArcboxError)
            raise (ours or errors).exceptions[0] from None

    async def blob(self, blob: Descriptor) -> None:
        def count(_: str, done: int, __: int) -> None:
            self._done[blob.digest] = done
            self._progress(
                f"downloading {self._registry.reference}", sum(self._done.values()), self._total
            )

        async with self._slots:
            await download(
                self._registry.address("blobs", blob.digest),
                self._blobs / blob.sha256,
                sha256=blob.sha256,
                size=blob.size,
                progress=count,
                what=f"a part of {self._registry.reference}",
                opener=self._registry,
                patience=self._registry.patience,
            )
        count("", blob.size, 0)


class _Registry:
    """One repository of a registry; an `Opener` that logs in when it is asked to."""

    def __init__(self, reference: Reference, web: Web, patience: Patience) -> None:
        self.reference = reference
        self.patience = patience
        self._web = web
        self._authorization = ""
        self._logging_in = asyncio.Lock()

    def address(self, kind: str, name: str) -> str:
        return f"{self.reference.origin}/v2/{self.reference.repository}/{kind}/{name}"

    @contextlib.asynccontextmanager
    async def open(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        used = self._authorization
        async with self._web.open(url, _with(headers, used)) as response:
            if not self._asks_for_login(response):
                yield response
                return
            asked = response.headers.get("www-authenticate", "")
        async with self._logging_in:
            if self._authorization == used:
                await self._log_in(asked)
        async with self._web.open(url, _with(headers, self._authorization)) as response:
            yield response

    def _asks_for_login(self, response: httpx2.Response) -> bool:
        # Only the registry itself, not the server of blobs that it may redirect to.
        here = origin_of(str(response.url)) == origin_of(self.reference.origin)
        return here and response.status_code == 401  # noqa: PLR2004

    async def _log_in(self, asked: str) -> None:
        login = await asyncio.to_thread(credentials, self.reference.registry)
        self._authorization = await authorization(
            parse_challenge(asked), self.reference, login, self._web, self.patience
        )

    async def manifest(self, arch: str) -> tuple[Descriptor, bytes, Manifest]:
        """Give the manifest for an architecture, as bytes and as what they say."""
        what = str(self.reference)
        digest, body = await self._document(self.reference.manifest, self.reference.digest)
        document = json_input.parse(body, f"the manifest of {what}")
        if is_index(document, what):
            chosen = choose_platform(document, arch, what)
            digest, body = await self._document(chosen.digest, chosen.digest)
            document = json_input.parse(body, f"the manifest of {what}")
            if is_index(document, what):
                raise CorruptError(f"{what} has an index where its manifest should be")
        # Only an OCI manifest may leave its type out, and `is_index` has checked one that is there.
        stated = json_input.loose_text(document.get("mediaType")) or MANIFEST_TYPES[0]
        return Descriptor(stated, digest, len(body)), body, read_manifest(document, what)

    async def _document(self, name: str, digest: str) -> tuple[str, bytes]:
        body = await read(
            self,
            self.address("manifests", name),
            limit_bytes=MANIFEST_MAX_BYTES,
            what=f"the image {self.reference}",
            headers={"Accept": _ACCEPT},
            patience=self.patience,
            hint=login_hint(self.reference.registry),
        )
        actual = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if digest and digest != actual:
            raise CorruptError(
                f"the manifest of {self.reference} has not the digest that it was asked for by",
                hint="nothing of it was kept; try again, or use another registry",
            )
        return actual, body


def _with(headers: Mapping[str, str], authorization: str) -> dict[str, str]:
    return {**headers, **({"Authorization": authorization} if authorization else {})}


def _begin(target: Path) -> Path:
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (target / "index.json").unlink(missing_ok=True)
    return blobs


def _finish(
    target: Path, described: Descriptor, body: bytes, manifest: Manifest, arch: str
) -> None:
    blobs = target / "blobs" / "sha256"
    durable.write(blobs / described.sha256, body)
    kept = {blob.sha256 for blob in (described, manifest.config, *manifest.layers)}
    for path in blobs.iterdir():
        if path.name not in kept:
            path.unlink()
    durable.sync(blobs)
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPES[0],
        "manifests": [
            {
                "mediaType": described.media_type,
                "digest": described.digest,
                "size": described.size,
                "platform": {"os": "linux", "architecture": OCI_ARCHES[arch]},
            }
        ],
    }
    durable.write(target / "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    durable.write(target / "index.json", json.dumps(index).encode())
