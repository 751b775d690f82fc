"""Have the user's docker client talk to a machine, and put back what it talked to before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arcboxd.docker.contexts import DEFAULT, DockerContexts
from arcboxd.former import Former


@dataclass(frozen=True, slots=True)
class Switched:
    """What is selected now, and what was before."""

    selected: str
    before: str


class Switch:
    """Remembers, for each context of ours, the one that was selected before it."""

    def __init__(self, contexts: DockerContexts, memory: Path) -> None:
        """Change these contexts; ``memory`` is a file of ours."""
        self._contexts = contexts
        self._former = Former(memory, contexts.directory)

    def enable(self, name: str, endpoint: str, description: str) -> Switched:
        """Make a context, and select it. Idempotent: the former one stays remembered.

        Raises:
            PreconditionError: The user's settings cannot be read, or the context is not ours.
            CommandError: The docker client failed.
            StoreError: Something cannot be written.
        """
        before = self._contexts.selected()
        self._contexts.put(name, endpoint, description)
        if before != name:
            # First: whatever happens next, the way back is known.
            self._former.write(self._former.read() | {name: before})
            self._contexts.select(name)
        return Switched(name, before)

    def disable(self, name: str) -> Switched:
        """Select what was selected before, unless the user chose another since; remove ours.

        Idempotent.

        Raises:
            PreconditionError: The user's settings cannot be read.
            CommandError: The docker client failed.
            StoreError: Something cannot be written.
        """
        contexts, former = self._contexts, self._former.read()
        before = contexts.selected()
        wanted = former.get(name) or DEFAULT
        if not contexts.exists(wanted):
            wanted = DEFAULT
        if before == name:
            contexts.select(wanted)
        if contexts.is_ours(name):
            contexts.remove(name)
        if former.pop(name, None) is not None:
            # Others of ours may have come after this one.
            self._former.write({k: wanted if v == name else v for k, v in former.items()})
        return Switched(contexts.selected(), before)
