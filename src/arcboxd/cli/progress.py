"""Progress of long operations on stderr: bars on a terminal, plain lines elsewhere."""
# ruff: noqa: PLC0415 - rich costs 130 ms, and most operations are over before they say anything

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from arcboxd.cli.output import printable
from arcboxd.errors import ArcboxError

if TYPE_CHECKING:
    from arcboxd.client.client import Client
    from arcboxd.client.streams import Watch
    from arcboxd.client.views import ProgressEvent

_SUBSCRIBE_S = 0.5
_END_S = 2.0


class Display(Protocol):
    """Shows steps as they come; used from one thread at a time."""

    def show(self, event: ProgressEvent) -> None:
        """Show how a step goes."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was. Idempotent."""
        ...


class Lines:
    """A line a step, for logs and pipes."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self._said: set[str] = set()

    def show(self, event: ProgressEvent) -> None:
        """Say a step when it begins."""
        if event.step and event.step not in self._said:
            self._said.add(event.step)
            sys.stderr.write(f"{event.subject}: {printable(event.step)}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Nothing to put back."""


class Bars:
    """A bar a step, which is gone when the operation is over."""

    def __init__(self) -> None:
        """Take hold of the terminal."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.progress import SpinnerColumn, TimeElapsedColumn  # isort: skip

        self._tasks: dict[str, int] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            # Ours are written after it is closed; what others write is not ours to redirect.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._progress.start()

    def show(self, event: ProgressEvent) -> None:
        """Move a step's bar; without a known total it pulses."""
        from rich.progress import TaskID

        if not event.step:
            return
        text = f"{event.subject}: {printable(event.step)}"
        if text not in self._tasks:
            self._tasks[text] = self._progress.add_task(text, total=None)
        task = TaskID(self._tasks[text])
        total = event.total or (1 if event.finished else None)
        done = total if event.finished else event.done
        self._progress.update(task, total=total, completed=done)

    def close(self) -> None:
        """Stop drawing, show the cursor."""
        self._progress.stop()


@contextlib.contextmanager
def shown(client: Client, ref: str, *, quiet: bool) -> Iterator[None]:
    """Show what the daemon says of a machine while the body runs.

    The body's error passes, and is told after the display is gone. That progress cannot be had is
    no error: the operation matters.
    """
    if quiet:
        yield
        return
    watch = client.watch(ref)
    subscribed = threading.Event()
    thread = threading.Thread(target=_follow, args=(watch, subscribed), daemon=True)
    thread.start()
    try:
        # The first steps are told only to those who watch by then.
        subscribed.wait(_SUBSCRIBE_S)
        yield
    finally:
        watch.cancel()
        thread.join(_END_S)


def _follow(watch: Watch, subscribed: threading.Event) -> None:
    from arcboxd.client.views import ProgressEvent

    display: Display | None = None
    try:
        watch.wait_subscribed()
        subscribed.set()
        for event in watch.events():
            if isinstance(event, ProgressEvent):
                display = display or (Bars() if sys.stderr.isatty() else Lines())
                display.show(event)
    except (ArcboxError, OSError):
        return
    finally:
        subscribed.set()
        if display is not None:
            display.close()
