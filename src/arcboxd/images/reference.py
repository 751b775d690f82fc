"""Names of images in registries, as users write them; no I/O.

Source: the reference grammar of the distribution project; the OCI distribution specification,
"Pulling manifests".
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from arcboxd.errors import InvalidArgumentError

DOCKER_HUB = "docker.io"
_HUB_ORIGIN = "https://registry-1.docker.io"
_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})

_LENGTH_MAX = 512
_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry."""

    registry: str
    """Its host and port, as users and docker's own configuration name it."""
    origin: str
    """The address to ask: scheme, host and port."""
    repository: str
    tag: str
    digest: str
    """``sha256:…``; empty when only a tag is named."""

    @property
    def manifest(self) -> str:
        """Tell what to ask for: the digest if there is one, since it cannot change."""
        return self.digest or self.tag

    def __str__(self) -> str:
        """Give the whole name, with what a user may leave out."""
        end = f"@{self.digest}" if self.digest else f":{self.tag}"
        return f"{self.registry}/{self.repository}{end}"


def parse_reference(text: str) -> Reference:
    """Read ``[HOST[:PORT]/]NAME[:TAG][@DIGEST]``, perhaps behind ``https://`` or ``docker://``.

    Without a host it is Docker Hub's. Plain HTTP is for registries on this host, and for those
    behind an explicit ``http://``.

    Raises:
        InvalidArgumentError: It is no such name.
    """
    scheme, rest = "", text.strip()
    for known in ("https", "http", "docker"):
        if rest.startswith(f"{known}://"):
            scheme, rest = known.replace("docker", ""), rest[len(known) + 3 :]
            break
    rest, at, digest = rest.partition("@")
    host, slash, path = rest.partition("/")
    if not slash or not (scheme or {".", ":"} & {*host} or host == "localhost"):
        host, path = DOCKER_HUB, rest
    path, colon, tag = path.partition(":")
    valid = (
        len(text) <= _LENGTH_MAX
        and _HOST.fullmatch(host) is not None
        and all(_PART.fullmatch(part) for part in path.split("/"))
        and (not colon or _TAG.fullmatch(tag) is not None)
        and (not at or _DIGEST.fullmatch(digest) is not None)
    )
    if not valid:
        raise InvalidArgumentError(
            f"{text[:_LENGTH_MAX]!r} is no image reference",
            hint="write it as NAME:TAG, HOST/NAME:TAG or HOST/NAME@sha256:DIGEST",
        )
    if host in _HUB_NAMES:
        if scheme == "http":
            raise InvalidArgumentError("Docker Hub is not asked by plain http")
        host, origin = DOCKER_HUB, _HUB_ORIGIN
        path = path if "/" in path else f"library/{path}"
    else:
        scheme = scheme or ("http" if is_loopback(_name_of(host)) else "https")
        origin = f"{scheme}://{host}"
    return Reference(host, origin, path, tag or "latest", digest)


def is_loopback(host: str) -> bool:
    """Tell whether a host's name or address, without a port, is of this host itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name_of(host: str) -> str:
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name.strip("[]")
