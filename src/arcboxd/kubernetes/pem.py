"""Certificates and keys as a kubeconfig carries them: base64 of PEM, of the kinds wanted only."""

from __future__ import annotations

import base64
import binascii
import re
import textwrap

from arcboxd.errors import CorruptError

CERTIFICATES = ("CERTIFICATE",)
KEYS = ("PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY")

_TEXT_MAX = 48 << 10
_BLOCKS_MAX = 8
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]{1,40})-----\n([A-Za-z0-9+/=\n]+)-----END \1-----\n+")
_SEQUENCE, _LONG = 0x30, 0x80


def checked(data: str, kinds: tuple[str, ...], what: str, *, most: int = _BLOCKS_MAX) -> str:
    """Check a value and give it anew, with its blocks and nothing else.

    Args:
        data: Base64 of PEM, as a kubeconfig has it.
        kinds: The labels that are allowed.
        what: The field, for people.
        most: How many blocks there may be.

    Raises:
        CorruptError: It is something else.

    Source: RFC 7468, and X.690 8.1.3 for a DER value's length.
    """
    if len(data) > _TEXT_MAX:
        raise CorruptError(f"its {what} is larger than {_TEXT_MAX >> 10} KiB")
    try:
        text = base64.b64decode(data, validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise CorruptError(f"its {what} is no base64 of PEM") from error
    text = text.replace("\r\n", "\n").strip() + "\n"
    blocks: list[str] = []
    at = 0
    while at < len(text):
        found = _BLOCK.match(text, at)
        if found is None or found[1] not in kinds or len(blocks) == most:
            raise CorruptError(f"its {what} has more than {' or '.join(kinds).lower()} in PEM")
        blocks.append(_block(found[1], found[2], what))
        at = found.end()
    return base64.b64encode("".join(blocks).encode()).decode()


def _block(label: str, body: str, what: str) -> str:
    try:
        der = base64.b64decode(body.replace("\n", ""), validate=True)
    except binascii.Error as error:
        raise CorruptError(f"its {what} is no PEM: {error}") from error
    if not _is_one_sequence(der):
        raise CorruptError(f"its {what} is no DER")
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def _is_one_sequence(der: bytes) -> bool:
    if len(der) < 2 or der[0] != _SEQUENCE:  # noqa: PLR2004 - the tag and a length
        return False
    if der[1] < _LONG:
        return len(der) == 2 + der[1]
    count = der[1] - _LONG
    return 0 < count <= 4 and len(der) == 2 + count + int.from_bytes(der[2 : 2 + count])  # noqa: PLR2004
