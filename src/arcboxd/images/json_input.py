"""JSON that others wrote: parsed within bounds, and each value checked before it is used."""

from __future__ import annotations

import json

from arcboxd.errors import CorruptError

_TEXT_MAX = 4096


def parse(data: bytes, what: str) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        CorruptError: It is none.
    """
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what} is no JSON") from error
    return mapping(value, what)


def mapping(value: object, what: str) -> dict[str, object]:
    """Take a JSON object.

    Raises:
        CorruptError: It is something else.
    """
    if not isinstance(value, dict):
        raise CorruptError(f"{what} is not a JSON object")
    return value


def sequence(value: object, what: str, *, limit: int) -> list[object]:
    """Take a list of at most ``limit`` values.

    Raises:
        CorruptError: It is something else, or longer.
    """
    if not isinstance(value, list) or len(value) > limit:
        raise CorruptError(f"{what} is not a list of at most {limit} entries")
    return value


def text(value: object, what: str) -> str:
    """Take a string.

    Raises:
        CorruptError: It is something else, or far too long.
    """
    if not isinstance(value, str) or len(value) > _TEXT_MAX:
        raise CorruptError(f"{what} is not a text of at most {_TEXT_MAX} characters")
    return value


def loose_text(value: object) -> str:
    """Take a string that may be missing; anything else counts as missing too."""
    return value if isinstance(value, str) and len(value) <= _TEXT_MAX else ""


def size(value: object, what: str, *, limit: int) -> int:
    """Take a number of bytes.

    Raises:
        CorruptError: It is something else, negative, or above ``limit``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise CorruptError(f"{what} is not a size of at most {limit} bytes")
    return value
