"""Keeps clones ready, so that a start is to let one go on: few, and while memory lasts."""

from __future__ import annotations

import asyncio
import logging

from arcboxd.domain.guest import ExecSpec
from arcboxd.errors import ArcboxError
from arcboxd.machines import template as templates
from arcboxd.machines.context import Context
from arcboxd.machines.guest import no_input
from arcboxd.machines.launch import first_answer, vm_config
from arcboxd.machines.staged import Pool, Staged
from arcboxd.machines.template_store import Template
from arcboxd.machines.undo import Undo
from arcboxd.machines.usage import available_bytes
from arcboxd.paths import MachinePaths
from arcboxd.settings import MIB, host_memory_bytes

_log = logging.getLogger(__name__)

_KEEPER = "staged clones"
_WATCH_S = 5.0
_ANSWER_S = 10.0
_ROUNDS = 4
"""Of rehearsal: emulation translates what runs, and what it has translated runs at once."""
_PRESSURE_SHARE = 0.08
_PRESSURE_BYTES = 512 * MIB
"""Of the host's memory left: below the larger of these, no clone waits."""


def want(ctx: Context, template: Template) -> None:
    """Keep clones of this template from now on, and of no other."""
    pool = ctx.staged
    if not ctx.settings.staged_clones:
        return
    pool.wanted = template
    pool.changed.set()
    if not ctx.works_on(_KEEPER):
        ctx.in_background(_keep(ctx, pool), _KEEPER)


async def _keep(ctx: Context, pool: Pool) -> None:
    """Fill the pool, one clone after another; empty it when memory runs short, and at the end."""
    try:
        while (template := pool.wanted) is not None:
            pool.changed.clear()
            await pool.give_up(except_of=None if under_pressure() else template)
            if len(pool.ready) < ctx.settings.staged_clones and not under_pressure():
                try:
                    pool.ready.append(await _stage(ctx, template))
                except ArcboxError as error:
                    _log.warning("clones are staged no more: %s", error)
                    pool.wanted = None
                continue
            try:
                async with asyncio.timeout(_WATCH_S):
                    await pool.changed.wait()
            except TimeoutError:
                continue
    finally:
        await pool.give_up()


def under_pressure() -> bool:
    """Tell whether the host has too little memory left for clones that nobody uses."""
    least = max(_PRESSURE_BYTES, int(host_memory_bytes() * _PRESSURE_SHARE))
    return available_bytes() < least


async def _stage(ctx: Context, template: Template) -> Staged:
    machine = templates.stand_in(ctx, templates.spec(template), template.shape.image_key)
    paths = MachinePaths(ctx.paths.work / machine.id)
    config = await vm_config(ctx, machine, paths)
    async with Undo() as undo:
        paths.directory.mkdir(mode=0o700, parents=True)
        undo.push_async_callback(templates.delete, paths.directory)
        vm = await templates.restore(ctx, template, config, template.shape.disk_bytes)
        undo.push_async_callback(vm.kill)
        timeout_s = ctx.scaled(_ANSWER_S, machine)
        agent = await first_answer(
            ctx,
            machine,
            paths,
            vm,
            None,
            timeout_s=timeout_s,
            paused=True,
            frozen=template.link_mark,
        )
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(_ROUNDS):
                    await agent.settle(timeout_s)
                    async for _output in agent.exec(ExecSpec(("true",)), no_input()):
                        pass
                    await agent.ping("")
        except TimeoutError as error:
            raise ArcboxError("a clone did not answer in time") from error
        finally:
            await agent.close()
        await vm.pause()
        undo.pop_all()
    return Staged(template, vm, paths)
