"""Run measurements: ``python -m bench [NAME…]``; without a name, all of them.

Prints a table and writes ``bench/out/NAME.json``. Each measurement takes its A and its B in one
run, since no two runs on a shared machine compare.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

from bench.measure import Row

NAMES = ("cold", "calls")
OUT = Path(__file__).parent / "out"


def show(name: str, rows: list[Row]) -> None:
    """Print one measurement as a table."""
    print(f"\n{name}")
    for row in rows:
        target = f"   wanted {row.wanted}" if row.wanted else ""
        print(f"  {row.what:<58} {row.value:>12.3f} {row.unit:<6}{target}")


def main(names: list[str]) -> int:
    """Run the named measurements."""
    if unknown := set(names) - set(NAMES):
        print(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    OUT.mkdir(exist_ok=True)
    for name in names or NAMES:
        rows: list[Row] = importlib.import_module(f"bench.{name}").run()
        show(name, rows)
        (OUT / f"{name}.json").write_text(
            json.dumps({"at": time.time(), "rows": [row._asdict() for row in rows]}, indent=1)
        )
    return 0


sys.exit(main(sys.argv[1:]))
