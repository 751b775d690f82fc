"""Wait until a machine has booted, which its start does not: the agent answers before init runs."""

from __future__ import annotations

from collections.abc import Sequence

from arcboxd.machines.context import Context

_STARTS = 10
"""Times `start_timeout_s`: init may run anything, and systemd gives each service 90 s."""


async def wait_booted(ctx: Context, ref: str) -> Sequence[str]:
    """Return once init has started all that it starts at boot; name the services that failed.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run.
        AgentUnreachableError: Its agent does not answer.
        TooLateError: It takes too long; the message says what init is at.
    """
    machine, running = await ctx.running_machine(ref, "wait for")
    report = ctx.reporter(machine)
    report("waiting for its init", 0, 0)
    timeout_s = ctx.scaled(_STARTS * ctx.settings.start_timeout_s, machine)
    failed = await running.agent.wait_booted(timeout_s)
    report("waiting for its init", 1, 1)
    return failed
