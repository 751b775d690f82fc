"""Logging in to a registry: what it asks for, and what the user's docker configuration knows.

Only names and passwords that ``docker login`` wrote into the file itself are used. Credential
helpers are programs that a file names, and the daemon runs none of them.

Source: the distribution project, "Token Authentication Specification"; docker-login(1).
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from arcboxd.errors import ArcboxError, CorruptError, ImageServerError
from arcboxd.images import json_input
from arcboxd.images.reference import DOCKER_HUB, Reference, is_loopback
from arcboxd.images.web import Patience, Web, read, shown

_CONFIG_MAX_BYTES = 1 << 20
_TOKEN_MAX_BYTES = 256 << 10
_HUB_KEY = "https://index.docker.io/v1/"
_PARAMETER = re.compile(r'([A-Za-z]+)="([^"]*)"')
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for."""

    scheme: str
    realm: str
    service: str


def parse_challenge(header: str) -> Challenge:
    """Read a ``WWW-Authenticate`` header; an unknown one has an empty scheme."""
    scheme, _, rest = header.strip().partition(" ")
    found = {key.lower(): value for key, value in _PARAMETER.findall(rest)}
    known = scheme.lower() if scheme.lower() in {"basic", "bearer"} else ""
    return Challenge(known, found.get("realm", ""), found.get("service", ""))


def credentials(registry: str, environ: Mapping[str, str] | None = None) -> str:
    """Give ``NAME:PASSWORD`` in base64 for a registry, as docker's configuration has it, or "".

    Reads ``$DOCKER_CONFIG/config.json``, else ``~/.docker/config.json``; blocking.
    """
    env = os.environ if environ is None else environ
    home = Path(env.get("HOME") or Path.home())
    path = Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    keys = [registry, f"https://{registry}", f"https://{registry}/", f"http://{registry}"]
    if registry == DOCKER_HUB:
        keys.insert(0, _HUB_KEY)
    # A file that cannot be read is as good as none: the registry then says that it wants a login.
    with contextlib.suppress(OSError, ValueError, ArcboxError):
        if path.stat().st_size > _CONFIG_MAX_BYTES:
            return ""
        config = json_input.parse(path.read_bytes(), str(path))
        auths = json_input.mapping(config.get("auths"), "the logins")
        for key in keys:
            entry = auths.get(key)
            text = json_input.loose_text(entry.get("auth")) if isinstance(entry, dict) else ""
            if b":" in base64.b64decode(text, validate=True):
                return text
    return ""


async def authorization(
    challenge: Challenge, reference: Reference, login: str, web: Web, patience: Patience
) -> str:
    """Give the ``Authorization`` header that the registry asks for; "" if there is none.

    Only the right to pull this repository is asked for, whatever the challenge says.

    Raises:
        CorruptError: The token server's answer is none.
        ImageNotFoundError: There is no token server.
        ImageServerError: The token server does not answer, or its address is plain http.
        PreconditionError: It refuses the login.
    """
    origin = urlsplit(reference.origin)
    if origin.scheme == "http" and not is_loopback(origin.hostname or ""):
        login = ""  # no password goes over the network in the clear
    basic = {"Authorization": f"Basic {login}"} if login else {}
    if challenge.scheme != "bearer":
        return basic.get("Authorization", "") if challenge.scheme else ""
    realm = urlsplit(challenge.realm)
    if realm.scheme != "https" and not (realm.scheme == origin.scheme == "http"):
        raise ImageServerError(
            f"{reference.registry} wants a token from {shown(challenge.realm)}, by no https address"
        )
    query = {"service": challenge.service, "scope": f"repository:{reference.repository}:pull"}
    joint = "&" if realm.query else "?"
    data = await read(
        web,
        f"{challenge.realm}{joint}{urlencode(query)}",
        limit_bytes=_TOKEN_MAX_BYTES,
        what=f"a token for {reference}",
        headers=basic,
        patience=patience,
        hint=f"log in again with: docker login {reference.registry}",
    )
    answer = json_input.parse(data, f"the answer of {shown(challenge.realm)}")
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
        raise CorruptError(f"{shown(challenge.realm)} gave no token for {reference}")
    return f"Bearer {token}"


def login_hint(registry: str) -> str:
    """Tell what to do about a refusal."""
    return f"check the name; for a private image, run: docker login {registry}"
