"""What is said of a QEMU that does not come up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd.errors import HypervisorError
from arcboxd.hypervisor.qemu import hypervisor
from arcboxd.hypervisor.qemu.fingerprint import Program
from arcboxd.hypervisor.qemu.hypervisor import QemuHypervisor
from arcboxd.hypervisor.qemu.monitor import Monitor
from arcboxd.paths import MachinePaths
from tests.unit.hypervisor.test_argv import TCG, config


async def test_why_it_ended_is_told_although_its_monitor_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\nsleep 0.1\necho no such kernel >&2\n")
    program.chmod(0o755)
    directory = tmp_path / "machine"
    directory.mkdir()

    async def reset(_monitor: Monitor) -> None:
        raise HypervisorError("the monitor does not answer")

    monkeypatch.setattr(hypervisor, "_program", lambda _arch: Program.at(str(program)))
    monkeypatch.setattr(Monitor, "connect", reset)
    wanted = replace(config(), machine_type="pc-q35-7.2", paths=MachinePaths(directory))
    with pytest.raises(HypervisorError, match="ended at once: no such kernel"):
        await QemuHypervisor(TCG).launch(wanted)
    assert not [*directory.glob("*.sock")]
