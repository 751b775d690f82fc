"""Run measurements: ``python -m bench [NAME…]``; without a name, all of them. See docs/bench.md."""

from __future__ import annotations

import argparse
import importlib
import sys

from arcboxd.errors import ArcboxError
from bench import report
from bench.figures import Figure, NotAvailableError
from bench.host import Floor, end_in_order, host, limited

NAMES = (
    "floor",
    "cold",
    "warm",
    "staged",
    "suspend",
    "exec",
    "memory",
    "many",
    "clones",
    "create",
    "calls",
    "docker",
    "kubernetes",
)
PLOTS = "plots"
LIMIT_S = 3600.0
"""For each measurement, with what it builds when the cache is empty."""
INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Run the named measurements, each with a daemon of its own; a failed one stops no other."""
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure, print tables and write bench/results/NAME.json."
    )
    known = (*NAMES, PLOTS)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(NAMES)} (default: all); {PLOTS}: draw docs/img/*.svg from the results",
    )
    names = parser.parse_args(argv).names or NAMES
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if PLOTS in names:
        from bench import plots  # noqa: PLC0415 - measuring works without the library

        for path in plots.draw():
            print(path)
    names = [name for name in NAMES if name in names]
    if not names:
        return 0
    end_in_order()
    try:
        return measure(names)
    except KeyboardInterrupt:
        print("bench: interrupted; nothing of it is left", file=sys.stderr)
        return INTERRUPTED


def measure(names: list[str]) -> int:
    """Measure; give 1 if a measurement failed, whatever the figures."""
    floor = Floor.prepared()
    facts = report.facts(floor.accelerator)
    print(f"{facts['accelerator']}, QEMU {facts['qemu']}, {facts['host']}")
    print(
        "F is a bare kernel's way to a busybox init; a ratio is the median of pairs taken in turns"
    )
    failed = False
    with host(floor) as one:
        for name in names:
            print(f"bench: measuring {name}", file=sys.stderr)
            try:
                with limited(LIMIT_S):
                    figures: list[Figure] = importlib.import_module(f"bench.{name}").run(one)
            except NotAvailableError as error:
                print(f"\n{name}: not available: {error}", flush=True)
            except (ArcboxError, AssertionError) as error:
                hint = error.hint if isinstance(error, ArcboxError) else ""
                print(f"\n{name}: FAILED: {error}{hint and f' - {hint}'}", flush=True)
                failed = True
            else:
                report.save(name, figures, facts)
                print("\n" + report.table(name, figures), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
