"""Ubuntu's archive, for images built as Debian's are (`arcboxd.images.debian`)."""

from __future__ import annotations

from pathlib import Path

from arcboxd.errors import PreconditionError

KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")


def sources(mirror: str, suite: str, arch: str) -> str:
    """Write a sources.list of a release with its updates, trusting Ubuntu's own keys only.

    Args:
        mirror: The archive's address; Ubuntu's security updates are in it too.
        suite: The release's name, such as ``noble``.
        arch: Debian's name of the architecture.

    Raises:
        PreconditionError: There is no mirror, or the host lacks Ubuntu's keys.
    """
    if not mirror:
        raise PreconditionError(
            "it is not known where Ubuntu's packages come from",
            hint="set ARCBOX_UBUNTU_MIRROR to the address of a mirror",
        )
    if not KEYRING.exists():
        raise PreconditionError(
            f"Ubuntu's archive keys are missing ({KEYRING})",
            hint="install them with: apt-get install ubuntu-keyring",
        )
    options = f"[arch={arch} signed-by={KEYRING}]"
    suites = (suite, f"{suite}-updates", f"{suite}-security")
    return "".join(f"deb {options} {mirror} {name} main universe\n" for name in suites)
