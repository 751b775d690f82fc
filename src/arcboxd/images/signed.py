"""Texts with a signature around them: checked by gpgv, with the keys of one keyring alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from arcboxd.errors import CorruptError, PreconditionError
from arcboxd.process import CommandError, run, tool

_BEGIN = b"-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = b"-----BEGIN PGP SIGNATURE-----"
_END = b"-----END PGP SIGNATURE-----"
_TIMEOUT_S = 30.0
_BAD = ("BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NO_PUBKEY", "NODATA")


async def verified(data: bytes, keyring: Path, what: str) -> bytes:
    """Give the text that is signed, and nothing that is not.

    Args:
        data: A cleartext-signed message, and nothing before or behind it.
        keyring: A binary keyring, as gpgv reads it.
        what: What it is, for people.

    Raises:
        CorruptError: It is not signed, not by one of these keys, or was changed.
        MissingToolError: The host has no gpgv.
        PreconditionError: There is no such keyring.

    Source: RFC 9580, section 7; gpgv(1); GnuPG's doc/DETAILS for the status lines.
    """
    if not await asyncio.to_thread(keyring.is_file):
        raise PreconditionError(
            f"the keyring {keyring} is missing", hint="correct the setting image_keyring"
        )
    lines = [line.rstrip() for line in data.strip().splitlines()]
    framed = bool(lines) and lines[0] == _BEGIN and lines[-1] == _END
    # A second message, or text around the first, would confuse one reader or another.
    if not framed or any(lines.count(mark) != 1 for mark in (_BEGIN, _SIGNATURE, _END)):
        raise CorruptError(f"{what} is not signed", hint="see the setting image_keyring")
    # A name without a slash would be looked for among the user's own keyrings.
    trusted = str(Path.cwd() / keyring)
    argv = [tool("gpgv"), "--status-fd", "2", "--keyring", trusted, "--output", "-", "-"]
    try:
        output = await run(argv, timeout_s=_TIMEOUT_S, stdin=data)
    except CommandError as error:
        raise CorruptError(f"{what} has no good signature: {error.stderr[-500:]}") from error
    status = [
        line.split(" ")[1]
        for line in output.stderr.decode(errors="replace").splitlines()
        if line.startswith("[GNUPG:] ")
    ]
    if "GOODSIG" not in status or "VALIDSIG" not in status or any(bad in status for bad in _BAD):
        raise CorruptError(f"{what} has no good signature: {' '.join(status)}")
    return output.stdout
