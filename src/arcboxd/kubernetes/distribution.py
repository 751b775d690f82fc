"""Which Kubernetes machines get: the user's file, else the default beside this module."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from arcboxd.errors import InvalidArgumentError, PreconditionError, UnsupportedError

K3S: Literal["k3s"] = "k3s"
UPSTREAM: Literal["upstream"] = "upstream"
LOCAL_VERSION = "local"
"""Of a k3s that the user names: what it is only it can tell, and it runs in guests only."""

_VERSION = re.compile(r"v\d{1,4}\.\d{1,4}\.\d{1,4}([+-][0-9A-Za-z.+-]{1,60})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SOURCE = re.compile(r"(https?:/)?/[^\s\x00-\x1f\x7f]{1,2000}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_TABLES: Mapping[str, frozenset[str]] = {
    K3S: frozenset({"version", "url", "x86_64", "aarch64"}),
    UPSTREAM: frozenset({"version", "bundle", "sha256"}),
}


@dataclass(frozen=True, slots=True)
class Pin:
    """One Kubernetes, by its content."""

    distribution: Literal["k3s", "upstream"]
    version: str
    source: str
    """An http or https address, or an absolute path on the host."""
    sha256: str
    """Of the k3s program, or of the bundle."""

    @property
    def path(self) -> Path | None:
        """Name the file on this host; None if it has to be fetched."""
        return Path(self.source) if self.source.startswith("/") else None


def load(file: Path, arch: str, k3s_binary: str = "") -> Pin:
    """Tell which Kubernetes machines of an architecture get.

    Args:
        file: The user's; the default holds where there is none.
        arch: The kernel's name of the architecture.
        k3s_binary: A k3s on this host that is taken instead; its digest is computed.

    Raises:
        InvalidArgumentError: The file is not as it should be.
        PreconditionError: It lacks a digest or a bundle, or the program named is not there.
        UnsupportedError: It has nothing for that architecture.
    """
    if k3s_binary:
        return Pin(K3S, LOCAL_VERSION, k3s_binary, _digest(Path(k3s_binary)))
    document = {**_parse(_default(), "the default"), **_read(file)}
    where = str(file)
    if unknown := document.keys() - {"distribution", K3S, UPSTREAM}:
        raise _wrong(where, f"{min(unknown)!r} is unknown")
    match document["distribution"]:
        case "k3s":
            return _k3s(_table(document, K3S, where), arch, where)
        case "upstream":
            return _upstream(_table(document, UPSTREAM, where), arch, where)
        case other:
            raise _wrong(where, f"the distribution cannot be {other!r}; it is k3s or upstream")


def _k3s(table: Mapping[str, object], arch: str, where: str) -> Pin:
    release = table.get(arch)
    if release is None:
        raise UnsupportedError(f"{where} names no k3s for {arch}")
    if not isinstance(release, dict):
        raise _wrong(where, f"k3s.{arch} is no table")
    version = _matching(table, "version", _VERSION, where)
    file = _matching(release, "file", _FILE, where)
    template = _text(table, "url", where)
    source = template.replace("{version}", quote(version, safe="")).replace("{file}", file)
    _check_source(source, where, "k3s.url")
    return Pin(K3S, version, source, _sha256(release, f"k3s {version} for {arch}", where))


def _upstream(table: Mapping[str, object], arch: str, where: str) -> Pin:
    if arch != "x86_64":
        raise UnsupportedError(f"a bundle of Kubernetes' own programs is for x86_64, not {arch}")
    source = _text(table, "bundle", where)
    if not source:
        raise PreconditionError(
            "there is no bundle of Kubernetes' own programs",
            hint=f"name one, its version and its digest in {where}, under [upstream]",
        )
    _check_source(source, where, "upstream.bundle")
    version = _matching(table, "version", _VERSION, where)
    return Pin(UPSTREAM, version, source, _sha256(table, f"the bundle of {version}", where))


def _check_source(source: str, where: str, key: str) -> None:
    if _SOURCE.fullmatch(source) is None:
        raise _wrong(where, f"{key} is neither an http or https address nor an absolute path")


def _sha256(table: Mapping[str, object], what: str, where: str) -> str:
    digest = _text(table, "sha256", where).lower()
    if not digest:
        raise PreconditionError(
            f"the digest of {what} is not known, so it is not used",
            hint=f"write its sha256, from where its authors publish it, into {where}",
        )
    if _SHA256.fullmatch(digest) is None:
        raise _wrong(where, f"the sha256 of {what} is not 64 hexadecimal digits")
    return digest


def _table(document: Mapping[str, object], name: str, where: str) -> Mapping[str, object]:
    table = document[name]
    if not isinstance(table, dict):
        raise _wrong(where, f"{name} is no table")
    if unknown := table.keys() - _TABLES[name]:
        raise _wrong(where, f"{min(unknown)!r} in [{name}] is unknown")
    return table


def _matching(table: Mapping[str, object], key: str, rule: re.Pattern[str], where: str) -> str:
    text = _text(table, key, where)
    if rule.fullmatch(text) is None:
        raise _wrong(where, f"the {key} cannot be {text[:80]!r}")
    return text


def _text(table: Mapping[str, object], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise _wrong(where, f"{key!r} is missing, or no text")
    return value


def _read(file: Path) -> dict[str, object]:
    try:
        return _parse(file.read_text(), str(file))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(str(file), str(error)) from error


def _parse(text: str, where: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _wrong(where, str(error)) from error


def _default() -> str:
    return (resources.files("arcboxd.kubernetes") / "default.toml").read_text()


def _wrong(where: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{where} does not say which Kubernetes is meant: {why}",
        hint="put it right, or remove it and get the default",
    )


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PreconditionError(
            f"the k3s that ARCBOX_K3S_BINARY names cannot be read: {path}: {error.strerror}",
            hint="name a program that is there, or unset the variable",
        ) from error
