"""What is to be done again whenever a guest begins anew."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from arcboxd.machines.context import Context, Running


def at_each_session(
    ctx: Context,
    running: Running,
    name: str,
    *,
    wanted: Callable[[], bool],
    work: Callable[[], Coroutine[object, object, None]],
) -> None:
    """Do work in the background now and at each new session with the agent, while it is wanted.

    It is done once at a time, and once more if a session began meanwhile.

    Args:
        ctx: Whose background.
        running: The machine.
        name: Of the work, for logs.
        wanted: Asked each time.
        work: Does it, and raises nothing.
    """
    due = busy = False

    async def go_on() -> None:
        nonlocal due, busy
        try:
            while due:
                due = False
                await work()
        finally:
            busy = False

    def again() -> None:
        nonlocal due, busy
        if wanted():
            due = True
            if not busy:
                busy = True
                ctx.in_background(go_on(), name)

    running.agent.on_session(again)
    again()
