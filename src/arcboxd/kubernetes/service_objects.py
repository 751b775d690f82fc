"""A cluster's Services, as far as the host forwards to them: read from the API's JSON. No I/O.

All of it is a guest's word, and whatever runs in the cluster may have made a Service. So each value
is checked; what makes no sense in one Service is left out, and the others are taken all the same.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/ for lists and watches,
    https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from arcboxd.errors import CorruptError

PORTS_MAX = 64
"""Of one Service; what it has more is left out."""
PAGE_ITEMS = 500

_REACHED = frozenset({"NodePort", "LoadBalancer"})
_PROTOCOLS = {"TCP": "tcp", "UDP": "udp"}
_LAST_PORT = (1 << 16) - 1
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""Of a namespace, and of a Service: RFC 1123 and 1035 labels."""
_VERSION = re.compile(r"[!-~]{1,128}")
_TOKEN = re.compile(r"[!-~]{1,16384}")
_CHANGES = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK"})


class ListAnewError(Exception):
    """What was followed cannot be followed on; never leaves this package and its one user."""


@dataclass(frozen=True, slots=True)
class NodePort:
    """A port at which every node serves a Service."""

    protocol: str
    """tcp or udp."""
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """A Service, and the ports at which nodes serve it: none where it is for the cluster alone."""

    namespace: str
    name: str
    ports: tuple[NodePort, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    services: tuple[Service, ...]
    version: str
    """From where to watch."""
    rest: str
    """What asks for the next part; empty: there is none."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells."""

    service: Service | None
    """As it is now; without ports if it was deleted. None: nothing that concerns the host."""
    version: str
    """From where to watch on; empty: it does not say."""


def page(data: bytes) -> Page:
    """Read a part of a list.

    Raises:
        CorruptError: It is none.
    """
    document = _object(data, "the list of services")
    metadata, items = document.get("metadata"), document.get("items", [])
    if not isinstance(metadata, dict) or not isinstance(items, list | None):
        raise CorruptError("the list of services is none")
    version, rest = metadata.get("resourceVersion"), metadata.get("continue") or ""
    if not isinstance(version, str) or _VERSION.fullmatch(version) is None:
        raise CorruptError("the list of services has no version")
    if not isinstance(rest, str) or (rest and _TOKEN.fullmatch(rest) is None):
        raise CorruptError("the list of services does not say where it goes on")
    found = (_service(item) for item in (items or ())[:PAGE_ITEMS])
    return Page(tuple(service for service in found if service is not None), version, rest)


def change(line: bytes) -> Change:
    """Read a line of a watch.

    Raises:
        ListAnewError: The server says that it cannot go on.
        CorruptError: It is no such line.
    """
    document = _object(line, "what the watch of services tells")
    kind, thing = document.get("type"), document.get("object")
    if kind == "ERROR":
        code = thing.get("code") if isinstance(thing, dict) else None
        raise ListAnewError(f"the watch has ended with status {str(code)[:20]!r}")
    if kind not in _CHANGES or not isinstance(thing, dict):
        raise CorruptError("what the watch of services tells is no change")
    metadata = thing.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or _VERSION.fullmatch(version) is None:
        version = ""
    service = None if kind == "BOOKMARK" else _service(thing)
    if service is not None and kind == "DELETED":
        service = Service(service.namespace, service.name)
    return Change(service, version)


def _object(data: bytes, what: str) -> dict[str, object]:
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what} is no JSON") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{what} is no object")
    return value


def _service(item: object) -> Service | None:
    """Read one; None if it cannot even be named."""
    metadata = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(metadata, dict):
        return None
    namespace, name = metadata.get("namespace"), metadata.get("name")
    for text in (namespace, name):
        if not isinstance(text, str) or _NAME.fullmatch(text) is None:
            return None
    spec = item.get("spec")
    return Service(str(namespace), str(name), _ports(spec) if isinstance(spec, dict) else ())


def _ports(spec: dict[str, object]) -> tuple[NodePort, ...]:
    kind, entries = spec.get("type"), spec.get("ports")
    if not isinstance(kind, str) or kind not in _REACHED or not isinstance(entries, list):
        return ()
    found = (_port(entry) for entry in entries[:PORTS_MAX])
    return tuple(dict.fromkeys(port for port in found if port is not None))


def _port(entry: object) -> NodePort | None:
    if not isinstance(entry, dict):
        return None
    protocol, port = entry.get("protocol", "TCP"), entry.get("nodePort")
    if not isinstance(protocol, str) or protocol not in _PROTOCOLS:
        return None  # SCTP, too, which the ports machinery has not
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port <= _LAST_PORT:
        return None
    return NodePort(_PROTOCOLS[protocol], port)
