"""What was typed makes no sense: exit status 2, as the shell's own programs have it."""

from __future__ import annotations

from arcboxd.errors import InvalidArgumentError


class CliUsageError(InvalidArgumentError):
    """An argument was refused before anything was asked of the daemon."""
