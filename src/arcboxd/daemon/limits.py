"""What the operating system grants the daemon."""

from __future__ import annotations

import logging
import resource

_log = logging.getLogger(__name__)

_DESCRIPTORS = 1 << 16
"""Enough for thousands of machines. Not all that may be had: the programs that the daemon runs
inherit the limit, and some close every descriptor below it before they begin."""


def raise_descriptors() -> None:
    """Have as many open files as the host allows, within reason: each machine takes some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        _log.warning("the limit of open files stays at %d: %s", soft, error)
