"""YAML from a guest: plain mappings, lists and texts, bounded before anything is made of it.

ruamel.yaml only tells what comes next (its events), and nothing is constructed by it: a tag names
no class, an alias multiplies nothing, and ``no`` stays a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from arcboxd.errors import CorruptError

SIZE_MAX = 64 << 10
DEPTH_MAX = 10
EVENTS_MAX = 2000

Tree = str | list["Tree"] | dict[str, "Tree"]


def read(text: str) -> Tree:
    """Read one document.

    Raises:
        CorruptError: It is no such YAML, too large, or has anchors, aliases or tags.
    """
    if len(text.encode(errors="replace")) > SIZE_MAX:
        raise CorruptError(f"it is larger than {SIZE_MAX >> 10} KiB")
    try:
        return _Reader(YAML(typ="safe", pure=True).parse(text)).document()
    except (YAMLError, ValueError, RecursionError) as error:
        raise CorruptError(f"it is no YAML: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    words = str(getattr(error, "problem", None) or error) or type(error).__name__
    return words.splitlines()[0][:200]


class _Reader:
    def __init__(self, events: Iterator[Event]) -> None:
        self._events = islice(events, EVENTS_MAX)
        self._documents = 0

    def document(self) -> Tree:
        for event in self._events:
            if isinstance(event, NodeEvent):
                tree = self._node(event, 1)
                for rest in self._events:
                    if isinstance(rest, DocumentStartEvent | NodeEvent):
                        raise CorruptError("it has more than one document")
                return tree
        raise CorruptError("it is empty")

    def _next(self) -> Event:
        event = next(self._events, None)
        if event is None:
            raise CorruptError(f"it has more than {EVENTS_MAX} parts, or ends too early")
        return event

    def _node(self, event: Event, depth: int) -> Tree:
        if depth > DEPTH_MAX:
            raise CorruptError(f"it is nested deeper than {DEPTH_MAX}")
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise CorruptError("it has anchors or aliases")
        # ruamel gives a quoted text no tag, and `!` alone as a tag without a name.
        if getattr(event, "tag", None):
            raise CorruptError("it has tags")
        match event:
            case ScalarEvent():
                return str(event.value)
            case SequenceStartEvent():
                items: list[Tree] = []
                while not isinstance(following := self._next(), SequenceEndEvent):
                    items.append(self._node(following, depth + 1))
                return items
            case MappingStartEvent():
                return self._mapping(depth)
            case _:
                raise CorruptError(f"it has {type(event).__name__} where a value should be")

    def _mapping(self, depth: int) -> Tree:
        mapping: dict[str, Tree] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, str) or key == "<<":
                raise CorruptError("it has a key that is no name")
            if key in mapping:
                raise CorruptError(f"it has {key[:60]!r} twice")
            mapping[key] = self._node(self._next(), depth + 1)
        return mapping
