"""Where Debian's packages come from: the host's own mirror, as apt knows it."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from arcboxd.domain.image import ARCH_ALIASES
from arcboxd.errors import MissingToolError, PreconditionError
from arcboxd.process import run, tool

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = {"bookworm": "12"}
"""The Debian releases that we know, and their version numbers."""

_ROLLING = {"sid"}
"""Releases without updates of their own."""
_CODENAMES = ("bookworm", "trixie", "forky", "sid", "bullseye")

DEBIAN_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Our names of architectures (the kernel's), and Debian's."""


def host_arch() -> str:
    """Name the host's own architecture, as the kernel does: what it builds with is of that one."""
    return ARCH_ALIASES.get(platform.machine(), platform.machine())


_HINT = "set ARCBOX_DEBIAN_MIRROR and ARCBOX_DEBIAN_SECURITY_MIRROR to the address of a mirror"


@dataclass(frozen=True, slots=True)
class Mirror:
    """The addresses of a Debian archive and of its security updates."""

    archive: str
    security: str

    def sources(self, suite: str, arch: str) -> str:
        """Write a sources.list of a release with its updates, trusting Debian's own keys only.

        Args:
            suite: The release's name, such as ``bookworm``.
            arch: Debian's name of the architecture.
        """
        options = f"[arch={arch} signed-by={KEYRING}]"
        rows = [(self.archive, suite)]
        if suite not in _ROLLING:
            rows += [(self.archive, f"{suite}-updates"), (self.security, f"{suite}-security")]
        return "".join(f"deb {options} {uri} {name} main\n" for uri, name in rows if uri)


def require_keyring() -> None:
    """Check that Debian's public keys are on the host.

    Raises:
        MissingToolError: They are not.
    """
    if not KEYRING.exists():
        raise MissingToolError(
            f"Debian's archive keys are missing ({KEYRING})",
            hint="install them with: apt-get install debian-archive-keyring",
        )


@functools.cache
def host_codename() -> str:
    """Name the host's release if it is a Debian that we know, else the newest that we know."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        text = ""
    pairs = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    name = pairs.get("VERSION_CODENAME", "").strip('"')
    return name if name in SUITES else list(SUITES)[-1]


async def host_mirror(suite: str) -> Mirror:
    """Ask apt which mirror the host itself uses for a release.

    Other archives that the host has besides Debian's are not considered.

    Raises:
        MissingToolError: The host has no apt.
        PreconditionError: The host uses no Debian mirror.

    Source: apt-get(8), indextargets.
    """
    line = "$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(REPO_URI)"
    argv = [
        tool("apt-get", package="apt"),
        "indextargets",
        "--format",
        line,
        "Created-By: Packages",
    ]
    return parse_indextargets((await run(argv, timeout_s=30)).stdout.decode(), suite)


def parse_indextargets(text: str, suite: str) -> Mirror:
    """Pick the mirror from apt's list of ``RELEASE|COMPONENT|ORIGIN|URI`` lines.

    Raises:
        PreconditionError: No line is of that Debian release.
    """
    found: dict[str, str] = {}
    for row in text.splitlines():
        release, component, origin, uri = [*row.split("|"), "", "", ""][:4]
        # The origin is known only after the host's own `apt-get update`; a false guess is caught by
        # the signatures, which we check against Debian's keys alone.
        if component == "main" and (origin == "Debian" or not origin or origin.startswith("$(")):
            found.setdefault(release.removesuffix("/updates"), uri.rstrip("/"))
    # A mirror has all releases, whichever of them the host uses.
    for name in (suite, *_CODENAMES):
        if archive := found.get(name, ""):
            return Mirror(archive, found.get(f"{name}-security", ""))
    raise PreconditionError(f"apt on this host names no Debian mirror with {suite}", hint=_HINT)
