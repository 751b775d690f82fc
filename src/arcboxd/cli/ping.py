"""``arcbox ping``: does a machine's agent answer?"""

from __future__ import annotations

import time

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import print_json, printable


def ping(ctx: typer.Context, name: params.Machine, as_json: params.Json = False) -> None:
    """Ask a machine's agent for an answer, and tell how long that took."""
    with session.connect(ctx) as client:
        # Once before the clock runs, so that our own connecting is not measured.
        client.ping(name)
        began = time.perf_counter()
        pong = client.ping(name)
        milliseconds = round((time.perf_counter() - began) * 1000, 3)
    if as_json:
        print_json({"time_ms": milliseconds, "message": pong.message, "version": pong.version})
    else:
        print(f"{name}: agent {printable(pong.version)} answered in {milliseconds:.1f} ms")
