"""How results look: a table for people, JSON for everything else."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from arcboxd.assets.mirror import host_arch
from arcboxd.hypervisor.base import Accelerator
from arcboxd.hypervisor.qemu.platforms import platform_of
from arcboxd.settings import MIB, host_cpus, host_memory_bytes
from bench.figures import Figure, Spread, Wanted

RESULTS = Path(__file__).parent / "results"
_REPOSITORY = Path(__file__).parent.parent


def table(name: str, figures: Sequence[Figure]) -> str:
    """Lay figures out in columns: median, least to most, the same of the ratio, what is wanted."""
    lines = [(name, "median", "spread", "ratio", "spread", "wanted", "")]
    for figure in figures:
        value, ratio, wanted = figure.value, figure.ratio, figure.wanted
        single = len(figure.samples) == 1
        lines.append(
            (
                f"  {figure.what}",
                amount(value.median, figure.unit),
                "" if single else _between(value, figure.unit),
                "" if ratio is None else f"{_short(ratio.median)} {figure.base}",
                "" if ratio is None or single else _between(ratio),
                "" if wanted is None else want(wanted, figure),
                {None: "", True: "met", False: "MISSED"}[figure.met],
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 5, 6) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def amount(value: float, unit: str) -> str:
    """Write a value with its unit."""
    if unit == "s" and value < 1:
        return f"{_short(value * 1000)} ms"
    return f"{_short(value)} {unit}".rstrip()


def want(wanted: Wanted, figure: Figure) -> str:
    """Write what is wanted of a figure."""

    def one(value: float) -> str:
        return f"{value:g} {figure.base}" if wanted.ratio else amount(value, figure.unit)

    return f"≤ {one(wanted.most)}" + (f", aim {one(wanted.aim)}" if wanted.aim is not None else "")


def save(name: str, figures: Sequence[Figure], facts: dict[str, object]) -> Path:
    """Write ``results/NAME.json``, over an earlier one."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"name": name, **facts, "figures": [_plain(figure) for figure in figures]}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def load(name: str) -> dict[str, Figure]:
    """Read the figures of a saved result, by their keys; none when there is no such result."""
    try:
        document = json.loads((RESULTS / f"{name}.json").read_text())
    except FileNotFoundError:
        return {}
    return {
        each["key"]: Figure(
            each["key"],
            each["what"],
            each["unit"],
            tuple(each["samples"]),
            tuple(each["beside"]),
            each["base"],
            None if each["wanted"] is None else Wanted(**each["wanted"]),
        )
        for each in document["figures"]
    }


def facts(accelerator: Accelerator) -> dict[str, object]:
    """Tell when, of what and where a result is; nothing that names the host."""
    output = subprocess.run(
        [platform_of(host_arch()).program, "--version"], capture_output=True, text=True, check=True
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "host": {
            "processor": _processor(),
            "cpus": host_cpus(),
            "memory_mib": host_memory_bytes() // MIB,
            "kernel": platform.release(),
            "load": round(os.getloadavg()[0], 2),
        },
        "qemu": output.stdout.splitlines()[0].removeprefix("QEMU emulator version "),
        "accelerator": accelerator.name,
    }


def _plain(figure: Figure) -> dict[str, object]:
    wanted = figure.wanted
    return {
        "key": figure.key,
        "what": figure.what,
        "unit": figure.unit,
        "value": _spread(figure.value),
        "base": figure.base,
        "ratio": _spread(figure.ratio),
        "wanted": wanted and {"most": wanted.most, "aim": wanted.aim, "ratio": wanted.ratio},
        "met": figure.met,
        "samples": [round(sample, 6) for sample in figure.samples],
        "beside": [round(sample, 6) for sample in figure.beside],
    }


def _spread(spread: Spread | None) -> dict[str, float] | None:
    return spread and {key: round(value, 6) for key, value in spread._asdict().items()}


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _between(spread: Spread, unit: str = "") -> str:
    scale = 1000 if unit == "s" and spread.median < 1 else 1
    return f"{_short(spread.least * scale)} to {_short(spread.most * scale)}"


def _commit() -> str:
    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(_REPOSITORY), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!bench/results", ":!docs/img")
        return git("rev-parse", "HEAD") + (" and uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
