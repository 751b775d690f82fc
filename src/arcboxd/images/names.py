"""What users call images, and where an image of that name comes from. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

from arcboxd.domain.image import ARCH_ALIASES
from arcboxd.errors import InvalidArgumentError
from arcboxd.images.reference import parse_reference

OCI = "oci:"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution that we can build images of."""

    name: str
    default: str
    versions: dict[str, str]
    """Canonical versions by all the names that are understood."""


def _by_both(releases: dict[str, str]) -> dict[str, str]:
    return {name: suite for suite, number in releases.items() for name in (suite, number) if name}


DISTRIBUTIONS = {
    "debian": Distribution(
        "debian",
        # Not trixie: kernel and agent are of bookworm, and all was measured with it.
        default="bookworm",
        versions=_by_both({"bookworm": "12", "trixie": "13", "forky": "14", "sid": "unstable"}),
    ),
    "ubuntu": Distribution(
        "ubuntu", default="noble", versions=_by_both({"jammy": "22.04", "noble": "24.04"})
    ),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image that was asked for, by canonical names."""

    kind: str
    """``built``, ``oci``, or ``named``: imported, or else from an image server."""
    distro: str
    version: str
    arch: str

    @property
    def title(self) -> str:
        """Name it for people."""
        return f"{self.distro} {self.version}".strip()


def canonical_arch(arch: str) -> str:
    """Give the kernel's name of an architecture.

    Raises:
        InvalidArgumentError: Nobody knows it.
    """
    if (found := ARCH_ALIASES.get(arch.lower())) is None:
        known = ", ".join(sorted(set(ARCH_ALIASES.values())))
        raise InvalidArgumentError(f"unknown architecture {arch[:80]!r}", hint=f"known: {known}")
    return found


def wanted(distro: str, version: str, arch: str) -> Wanted:
    """Read what a user asks for.

    Args:
        distro: A distribution's name, an imported image's, or ``oci:`` and a reference; empty for
            Debian.
        version: A version, its number or its name; empty for the default or the newest.
        arch: An architecture, by the kernel's or Debian's name.

    Raises:
        InvalidArgumentError: There can be no such image; the hint names what there is.
    """
    machine = canonical_arch(arch)
    if distro.startswith(OCI):
        if version:
            raise InvalidArgumentError(
                "the version of an OCI image is part of its reference",
                hint=f"write {distro[:200]}:{version[:80]}",
            )
        return Wanted("oci", f"{OCI}{parse_reference(distro.removeprefix(OCI))}", "", machine)
    name = distro.lower() or "debian"
    if (known := DISTRIBUTIONS.get(name)) is not None:
        return _built(known, version, machine)
    check_name(name)
    return Wanted("named", name, check_version(version) if version else "", machine)


def check_name(name: str) -> str:
    """Refuse what no image can be called.

    Raises:
        InvalidArgumentError: It is that.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"{name[:80]!r} can be no image's name",
            hint="a distribution such as debian or alpine, the name of an imported image (a-z, 0-9"
            " and '-', at most 32), or oci: and the reference of a container image",
        )
    return name


def check_version(version: str) -> str:
    """Refuse what no image's version can be.

    Raises:
        InvalidArgumentError: It is that.
    """
    if _VERSION.fullmatch(version) is None:
        raise InvalidArgumentError(
            f"{version[:80]!r} can be no image's version",
            hint="letters, digits and . _ + -, at most 64",
        )
    return version


def _built(known: Distribution, version: str, arch: str) -> Wanted:
    found = known.versions.get((version or known.default).lower())
    if found is None:
        names = ", ".join(known.versions)
        raise InvalidArgumentError(
            f"unknown version {version[:80]!r} of {known.name}", hint=f"known: {names}"
        )
    return Wanted("built", known.name, found, arch)
