"""Have the user's docker client talk to a machine, and put back what it talked to before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from arcboxd import durable
from arcboxd.docker.contexts import DEFAULT, DockerContexts


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
        self._memory = memory

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
            self._remember(self._former() | {name: before})
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
        contexts, former = self._contexts, self._former()
        before = contexts.selected()
        wanted = former.get(name, DEFAULT)
        if not contexts.exists(wanted):
            wanted = DEFAULT
        if before == name:
            contexts.select(wanted)
        if contexts.is_ours(name):
            contexts.remove(name)
        if former.pop(name, None) is not None:
            # Others of ours may have come after this one.
            self._remember({k: wanted if v == name else v for k, v in former.items()})
        return Switched(contexts.selected(), before)

    def _former(self) -> dict[str, str]:
        mine = self._all().get(str(self._contexts.directory))
        return {k: str(v) for k, v in mine.items()} if isinstance(mine, dict) else {}

    def _remember(self, former: dict[str, str]) -> None:
        every = self._all() | {str(self._contexts.directory): former}
        with durable.storing(f"write {self._memory}"):
            self._memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(self._memory, json.dumps(every, indent=1).encode())

    def _all(self) -> dict[str, object]:
        try:
            every = json.loads(self._memory.read_bytes())
        except (OSError, ValueError):
            return {}
        return every if isinstance(every, dict) else {}
