"""The agent's first module: keeps what libraries import and the agent never uses out.

Python runs ten to twenty times slower under emulation, and the agent's imports are half of the time
that it takes to answer. The stand-ins take a fifth off them (114 against 141 ms beyond a bare
Python, the least of fifteen on a busy host with two cores).
"""

# This module is about importing late.
# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from types import ModuleType

_CO_COROUTINE = 0x80
_PURE_PROTOBUF = "google.protobuf.internal.python_message"


class _Late(ModuleType):
    """Stands in for a module that is imported at start and used later: loads it then."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        import importlib

        return getattr(importlib.import_module(self.__name__), name)


class _LatePattern:
    """A regular expression that is compiled when it is first used after start-up."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = arguments

    def __getattr__(self, name: str) -> object:
        if "re" in _standing_in and name == "search":
            # Only `logging` asks during start-up, whether its own default format is one.
            return _true
        import re

        return getattr(re.compile(*self._arguments), name)  # type: ignore[call-overload]


def _true(*_arguments: object) -> bool:
    return True


def _is_coroutine_function(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


def _extract_stack(*arguments: object) -> object:
    import traceback

    return traceback.extract_stack(*arguments)  # type: ignore[arg-type]


def _as_it_is(annotated: object) -> object:
    return annotated


def _nothing(*_arguments: object, **_options: object) -> None:
    return None


# What is asked of them during start-up, answered without them.
_LATE: dict[str, dict[str, object]] = {
    # For annotations, which nobody looks at. Types can be subscripted as these can.
    "typing": {
        "TYPE_CHECKING": False,
        "ClassVar": None,
        "NoReturn": None,
        "Optional": type,
        "Type": type,
        "TypeVar": _nothing,
        "final": _as_it_is,
    },
    "inspect": {"iscoroutinefunction": _is_coroutine_function},
    # For what checks styles of log formats.
    "re": {"compile": _LatePattern, "I": 2},
    # For exceptions, whose lines the bundle has no source for.
    "linecache": {},
    "traceback": {"extract_stack": _extract_stack},
    # For styles of log formats that nobody uses here: logging takes both names at once.
    "string": {"Template": object, "Formatter": object},
    "asyncio.sslproto": {},
    # For connections to a host that has several addresses.
    "asyncio.staggered": {},
    # protobuf's own timestamps, durations and the like: no message of ours has one.
    "google.protobuf.internal.well_known_types": {"WKTBASES": {}},
    # For protobuf's implementation in Python.
    "google.protobuf.descriptor_database": {},
    "google.protobuf.text_encoding": {},
    "subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3},
}
_standing_in: dict[str, _Late] = {}


def import_main() -> ModuleType:
    """Import `arcbox_agent.main` and the link without what they do not need."""
    import gc

    gc.disable()  # until all is imported: nothing of it is garbage
    for name, known in _LATE.items():
        if name not in sys.modules:
            module = sys.modules[name] = _standing_in[name] = _Late(name)
            vars(module).update(known)
    # There is no TLS on the link; asyncio does without if it has to.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    # protobuf in C does not use its implementation in Python, but imports it.
    sys.modules[_PURE_PROTOBUF] = ModuleType(_PURE_PROTOBUF)
    from arcbox_agent import forker

    forker.start()
    from arcbox_agent import link, main  # noqa: F401  the link while the stand-ins are there

    # Whoever imports them from now on gets the real ones; but most modules of ours want no more of
    # `typing` than whether types are checked.
    if (typing := _standing_in.pop("typing", None)) is not None:
        for name in _LATE["typing"].keys() - {"TYPE_CHECKING"}:
            del vars(typing)[name]
    for name, module in _standing_in.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _standing_in.clear()
    return main
