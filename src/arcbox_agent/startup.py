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
        import importlib

        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _is_coroutine_function(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


# What is asked of them during start-up, answered without them.
_LATE: dict[str, dict[str, object]] = {
    "inspect": {"iscoroutinefunction": _is_coroutine_function},
    # For exceptions, whose lines the bundle has no source for.
    "linecache": {},
    "traceback": {},
    # For styles of log formats that nobody uses here: logging takes both names at once.
    "string": {"Template": object, "Formatter": object},
    "asyncio.sslproto": {},
    # protobuf's own timestamps, durations and the like: no message of ours has one.
    "google.protobuf.internal.well_known_types": {"WKTBASES": {}},
    "subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3},
}


def import_main() -> ModuleType:
    """Import `arcbox_agent.main` and the link without what they do not need."""
    import gc

    from arcbox_agent import forker

    gc.disable()  # until all is imported: nothing of it is garbage
    forker.start()
    late = []
    for name, known in _LATE.items():
        if name not in sys.modules:
            module = _Late(name)
            vars(module).update(known)
            sys.modules[name] = module
            late.append(module)
    # There is no TLS on the link; asyncio does without if it has to.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    # protobuf in C does not use its implementation in Python, but imports it.
    sys.modules[_PURE_PROTOBUF] = ModuleType(_PURE_PROTOBUF)
    from arcbox_agent import link, main  # noqa: F401  the link while the stand-ins are there

    for module in late:  # whoever imports them from now on gets the real ones
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
    return main
