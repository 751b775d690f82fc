"""``arcbox doctor``: what this host has, what it lacks, and how to mend that."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import sys

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import colours, plain, print_json

_MARKS = {"ok": ("✓", "OK", "32"), "warning": ("!", "!", "33"), "missing": ("✗", "X", "31")}


def doctor(ctx: typer.Context, as_json: params.Json = False) -> None:
    """Check this host; exit with 1 when something is missing that machines need."""
    from arcboxd.cli import checks

    findings = []
    for finding in checks.every(session.paths(ctx)):
        findings.append(finding)
        if not as_json:
            _print(finding.name, finding.verdict, finding.detail, finding.mend)
    healthy = all(f.verdict is not checks.Verdict.MISSING for f in findings)
    if as_json:
        print_json({"healthy": healthy, "checks": plain(findings)})
    if not healthy:
        raise typer.Exit(1)


def _print(name: str, verdict: str, detail: str, mend: str) -> None:
    mark, ascii_mark, colour = _MARKS[verdict]
    if "utf" not in (sys.stdout.encoding or "").lower():
        mark = ascii_mark
    if colours(sys.stdout):
        mark = f"\x1b[{colour}m{mark}\x1b[0m"
    print(f"{mark} {name}: {detail}")
    if mend:
        print(f"    → {mend}" if "utf" in sys.stdout.encoding.lower() else f"    -> {mend}")
