"""Clones that wait, restored, warmed up and paused; `arcboxd.machines.staging` keeps them."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field

from arcboxd.hypervisor.base import Vm
from arcboxd.machines.template_store import Template
from arcboxd.paths import MachinePaths


@dataclass(frozen=True, slots=True)
class Staged:
    """A clone that waits: paused, and nobody's yet."""

    template: Template
    vm: Vm
    paths: MachinePaths

    async def end(self) -> None:
        """Kill it, and delete its files."""
        await self.vm.kill()
        await asyncio.to_thread(shutil.rmtree, self.paths.directory, ignore_errors=True)


@dataclass(slots=True)
class Pool:
    """The clones that wait, and the template that they should be of."""

    ready: list[Staged] = field(default_factory=list)
    wanted: Template | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self, template: Template) -> int:
        """Count the clones of a template that wait."""
        return sum(1 for each in self.ready if each.template.key == template.key)

    def take(self, template: Template) -> Staged | None:
        """Take a clone of a template out of the pool; None when none waits."""
        for each in self.ready:
            if each.template.key == template.key:
                self.ready.remove(each)
                self.changed.set()
                return each
        return None

    async def give_up(self, *, except_of: Template | None = None) -> None:
        """End the clones that wait, but those of one template."""
        kept = except_of.key if except_of is not None else ""
        doomed = [each for each in self.ready if each.template.key != kept]
        self.ready = [each for each in self.ready if each.template.key == kept]
        for each in doomed:
            await each.end()
