"""What a saved state depends on, as one digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from arcboxd.domain.image import BootAssets
from arcboxd.errors import HypervisorError
from arcboxd.hypervisor.base import Accelerator, MemoryFile, VmConfig
from arcboxd.hypervisor.qemu.argv import build_argv
from arcboxd.paths import MachinePaths
from arcboxd.process import run

_HELP_TIMEOUT_S = 20.0
_CPU_LINES = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")


@dataclass(frozen=True, slots=True)
class Program:
    """One build of QEMU, told from any other."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: str) -> Program:
        """Look at the file."""
        found = Path(path).stat()
        return cls(path, found.st_size, found.st_mtime_ns)


async def newest_board(program: Program, board: str) -> str:
    """Ask a QEMU for the exact name of the newest such board, which later ones will know too.

    Raises:
        HypervisorError: It does not say.
    """
    output = await run([program.path, "-machine", "help"], timeout_s=_HELP_TIMEOUT_S)
    for line in output.stdout.decode(errors="replace").splitlines():
        name, _, rest = line.partition(" ")
        if name == board and (alias := rest.partition("(alias of ")[2]):
            return alias.rstrip(")")
    raise HypervisorError(f"{program.path} has no board {board!r}", hint="see: arcbox doctor")


def fingerprint(config: VmConfig, accelerator: Accelerator, program: Program, cpuinfo: Path) -> str:
    """Digest a configuration without what is only this machine's.

    The command line holds it all: board, devices, sizes, the kernel's parameters. Boot files stand
    for themselves by the key of what they were made from.
    """
    nowhere = Path("/-")
    common = replace(
        config,
        machine_id="",
        name="",
        uuid="",
        mac="",
        paths=MachinePaths(nowhere),
        assets=BootAssets("", nowhere, nowhere, nowhere, nowhere, ""),
        forwards=(),
        runtime_disk=None,
        memory_file=None if config.memory_file is None else MemoryFile(nowhere, shared=True),
    )
    facts = {
        "argv": build_argv(common, accelerator, qmp_fd=0, link_fd=0, shares_fd=0),
        "assets": config.assets.key,
        # Its directory's name is a key of what it was made from.
        "runtime": str(config.runtime_disk or ""),
        "program": [program.path, program.size, program.mtime_ns],
        "processor": _processor(cpuinfo),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _processor(cpuinfo: Path) -> list[str]:
    """Describe the first processor: emulation offers guests what the host has, too."""
    first = cpuinfo.read_text().split("\n\n", 1)[0]
    return [line for line in first.splitlines() if line.startswith(_CPU_LINES)]
