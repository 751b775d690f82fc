"""A guest's kubeconfig made anew on the host, of the few fields that it needs. No I/O.

What a kubeconfig may say is dangerous where it is used: it can name programs to run, files of the
user's to send, and servers to send them to. So nothing of the guest's is passed on but what
`credentials` checks; what it does not know it refuses, since it may change what the rest means.

Source: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from arcboxd.errors import CorruptError, InvalidArgumentError
from arcboxd.kubernetes import pem, yaml_tree
from arcboxd.kubernetes.yaml_tree import Tree

CONTEXT = "arcbox"
"""Of the default machine; another's has its name behind a dash."""

_CONTEXT = re.compile(r"arcbox(-[a-z0-9][a-z0-9-]{0,62})?")
_SERVER = re.compile(r"https://127\.0\.0\.1:([1-9]\d{0,4})")
_TOKEN = re.compile(r"[!-~]{1,8192}")
_PORT_MAX = 65535

_AUTHORITY, _CERTIFICATE, _KEY = (
    "certificate-authority-data",
    "client-certificate-data",
    "client-key-data",
)
_DROPPED: Mapping[str, frozenset[str]] = {
    # Ours takes the place of the server; compression and a first namespace are tastes.
    "cluster": frozenset({"server", "disable-compression", "extensions"}),
    "context": frozenset({"namespace", "extensions"}),
    "user": frozenset({"extensions"}),
}
_FALSE = "false"
_HINT = "the guest may be damaged, or hostile; nothing of it was used"


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a cluster proves itself, and its user: by certificate and key, or by a token."""

    authority: str
    """Base64 of PEM, as the other two."""
    certificate: str = ""
    key: str = ""
    token: str = ""


def context_name(machine: str, default_machine: str) -> str:
    """Name the context of a machine."""
    return CONTEXT if machine == default_machine else f"{CONTEXT}-{machine}"


def rebuild(guest_yaml: str, *, context: str, server: str) -> bytes:
    """Make a kubeconfig of a guest's, with names and the address of the host's choosing.

    Args:
        guest_yaml: What the guest says, whatever it is.
        context: ``arcbox`` or ``arcbox-NAME``; the cluster and the user are called the same.
        server: ``https://127.0.0.1:PORT``.

    Raises:
        CorruptError: The guest's is not one that can be used, or has what must not be passed on.
        InvalidArgumentError: The name or the address is not ours to give.
    """
    return render(credentials(guest_yaml), context=context, server=server)


def render(found: Credentials, *, context: str, server: str) -> bytes:
    """Write a kubeconfig; arguments and errors are those of `rebuild`."""
    check_place(context, server)
    user = {"token": found.token} if found.token else {_CERTIFICATE: found.certificate}
    if found.key:
        user[_KEY] = found.key
    # JSON's texts are YAML's, whatever is in them.
    lines = [f"    {field}: {json.dumps(value)}" for field, value in user.items()]
    return "\n".join(
        (
            "apiVersion: v1",
            "kind: Config",
            "clusters:",
            f"- name: {context}",
            "  cluster:",
            f"    {_AUTHORITY}: {json.dumps(found.authority)}",
            f"    server: {server}",
            "contexts:",
            f"- name: {context}",
            "  context:",
            f"    cluster: {context}",
            f"    user: {context}",
            f"current-context: {context}",
            "users:",
            f"- name: {context}",
            "  user:",
            *lines,
            "",
        )
    ).encode("ascii")


def check_place(context: str, server: str) -> None:
    """Refuse names and addresses that are not ours.

    Raises:
        InvalidArgumentError: It is one.
    """
    if _CONTEXT.fullmatch(context) is None:
        raise InvalidArgumentError(f"{context[:80]!r} is no name of a context of ours")
    address = _SERVER.fullmatch(server)
    if address is None or int(address[1]) > _PORT_MAX:
        raise InvalidArgumentError(f"{server[:80]!r} is not where a cluster of ours is reached")


def credentials(text: str) -> Credentials:
    """Take from a kubeconfig what proves the cluster and its user, checked; see `rebuild`.

    Raises:
        CorruptError: It is not one that can be used, or has what must not be passed on.
    """
    try:
        return _credentials(yaml_tree.read(text))
    except CorruptError as error:
        raise CorruptError(f"the kubeconfig was refused: {error.message}", hint=_HINT) from error


def _credentials(document: Tree) -> Credentials:
    if not isinstance(document, dict):
        raise CorruptError("it is no mapping")
    for key, wanted in (("apiVersion", "v1"), ("kind", "Config")):
        if document.get(key) != wanted:
            raise CorruptError(f"its {key} is not {wanted}")
    cluster_name, cluster = _only(document, "cluster")
    user_name, user = _only(document, "user")
    context_name_, context = _only(document, "context")
    if document.get("current-context", context_name_) not in {context_name_, ""}:
        raise CorruptError("its current-context is not the one that it has")
    if (_text(context, "cluster"), _text(context, "user")) != (cluster_name, user_name):
        raise CorruptError("its context is of another cluster or user than it has")
    _finish("context", context)
    authority = _authority(cluster)
    certificate, key, token = (_text(user, f, "") for f in (_CERTIFICATE, _KEY, "token"))
    _finish("user", user)
    if bool(certificate or key) == bool(token):
        raise CorruptError("its user has neither a certificate nor a token, or both")
    if token:
        if _TOKEN.fullmatch(token) is None:
            raise CorruptError("its token is none")
        return Credentials(authority, token=token)
    return Credentials(
        authority,
        pem.checked(certificate, pem.CERTIFICATES, _CERTIFICATE),
        pem.checked(key, pem.KEYS, _KEY, most=1),
    )


def _authority(cluster: dict[str, Tree]) -> str:
    if cluster.pop("insecure-skip-tls-verify", _FALSE) != _FALSE:
        raise CorruptError("it would have the cluster trusted unseen")
    authority = _text(cluster, _AUTHORITY)
    _finish("cluster", cluster)
    return pem.checked(authority, pem.CERTIFICATES, _AUTHORITY)


def _finish(kind: str, rest: dict[str, Tree]) -> None:
    """Refuse what is left and not known to be harmless."""
    if unknown := rest.keys() - _DROPPED[kind]:
        raise CorruptError(f"its {kind} has {min(unknown)[:60]!r}, which is not passed on")


def _only(document: dict[str, Tree], kind: str) -> tuple[str, dict[str, Tree]]:
    """Give the name and the content of the one cluster, context or user."""
    items = document.get(f"{kind}s")
    if not isinstance(items, list) or len(items) != 1:
        raise CorruptError(f"it has not exactly one {kind}")
    item = items[0]
    content = item.get(kind) if isinstance(item, dict) else None
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(content, dict) or not isinstance(name, str):
        raise CorruptError(f"its {kind} has no name or no content")
    if item.keys() != {kind, "name"}:
        raise CorruptError(f"its {kind} has more than a name and a content")
    return name, content


def _text(mapping: dict[str, Tree], field: str, otherwise: str | None = None) -> str:
    value = mapping.pop(field, otherwise)
    if not isinstance(value, str):
        raise CorruptError(f"its {field} is missing, or no text")
    return value
