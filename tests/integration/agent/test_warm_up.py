"""The command that warms a clone's second processor up, forked by a real forker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.agent.conftest import SOURCE

SCRIPT = """
import sys
from arcbox_agent import forker
forker.start()
import json, os, time
from arcbox_agent.cgroup import Cgroups
from arcbox_agent.warm_up import WarmUp

cgroups = Cgroups(sys.argv[1])
warm_up = WarmUp.prepare(cgroups)
pid = warm_up._spare.pid
def state():
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
def cmdline():
    return open(f"/proc/{pid}/comm").read().strip()
found = {"before": cmdline()}
if sys.argv[2] == "killed":
    os.kill(pid, 9)
if sys.argv[2] != "never":
    warm_up.begin()
    warm_up.begin()
    while state() != "Z":
        time.sleep(0.01)
    found["after"] = cmdline()
warm_up.end(cgroups)
found["gone"] = not os.path.exists(f"/proc/{pid}")
found["groups"] = [each for each in os.listdir(f"{sys.argv[1]}/arcbox") if "exec-" in each]
print(json.dumps(found))
"""


@pytest.mark.parametrize("what", ["run", "never", "killed"])
def test_it_becomes_a_command_when_told_and_leaves_nothing(
    cgroup2: str, tmp_path: Path, what: str
) -> None:
    if not cgroup2:
        pytest.skip("no cgroup2 here: the forker is not used")
    program = [sys.executable, "-c", SCRIPT, cgroup2, what]
    done = subprocess.run(
        program,
        check=True,
        env={"PYTHONPATH": str(SOURCE)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        timeout=30,
    )
    found = json.loads(done.stdout)
    assert found["before"] == "arcbox-forker"
    if what == "run":
        assert found["after"] == "true"
    assert found["gone"]
    assert found["groups"] == []
