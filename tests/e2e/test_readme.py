"""The README's first command, as a user types it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.vm
@pytest.mark.timeout(1500)
def test_the_demo_makes_uses_and_removes_a_machine() -> None:
    with tempfile.TemporaryDirectory(prefix="abx-") as home:
        done = subprocess.run(
            ["./dev", "demo"],
            cwd=ROOT,
            env={**os.environ, "ARCBOX_HOME": home},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=1400,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"^Linux demo-\d+ .* GNU/Linux$", done.stdout, re.MULTILINE)
        assert 'PRETTY_NAME="Debian GNU/Linux 12' in done.stdout
        assert re.search(r"^demo-\d+ +running ", done.stdout, re.MULTILINE)
        assert list(Path(home, "machines").iterdir()) == []
        # The daemon that the demo started is gone too.
        assert not Path(home, "run/arcbox.sock").exists()


@pytest.mark.timeout(120)
def test_the_readme_names_only_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    arcbox = str(ROOT / ".venv/bin/arcbox")
    verbs = set(re.findall(r"^\$ arcbox ([a-z0-9]+)", text, re.MULTILINE))
    assert verbs
    for verb in verbs:
        done = subprocess.run([arcbox, verb, "--help"], capture_output=True, check=False)
        assert done.returncode == 0, (verb, done.stderr)
