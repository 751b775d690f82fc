"""What Debian's kubectl, which is not ours, makes of the kubeconfigs that we write."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from arcboxd.kubernetes.kubeconfig import render
from tests.unit.kubernetes.test_user_config import MINE, SERVER, User, credentials
from tests.vm.docker_client import debian_program

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]
PROGRAM = "usr/bin/kubectl"
# kubectl takes no numbers for texts.
THEIRS = MINE.replace("token: 0123e4, password: no, username: 0x1", 'token: "0123e4"')


@pytest.fixture
async def kubectl() -> Path:
    return await debian_program("kubernetes-client", PROGRAM)


def view(kubectl: Path, file: Path) -> dict[str, Any]:
    """Give what kubectl understands of a file."""
    return dict(json.loads(run(kubectl, file, "view", "--raw", "-o", "json")))


def run(kubectl: Path, file: Path, *words: str) -> str:
    env = {**os.environ, "KUBECONFIG": str(file)}
    return subprocess.check_output([kubectl, "config", *words], env=env, text=True, timeout=30)


async def test_it_reads_what_we_rebuild(kubectl: Path, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_bytes(render(credentials(), context="arcbox-web", server=SERVER))
    assert run(kubectl, file, "current-context").strip() == "arcbox-web"
    found = view(kubectl, file)
    assert found["clusters"][0]["cluster"]["server"] == SERVER
    assert found["users"][0]["user"]["client-key-data"] == credentials().key


async def test_it_reads_what_we_merge_and_we_what_it_writes(kubectl: Path, tmp_path: Path) -> None:
    me = User(tmp_path)
    me.write(THEIRS)
    before = view(kubectl, me.file)
    me.enable()
    merged = view(kubectl, me.file)
    assert {c["name"] for c in merged["contexts"]} == {"prod", "other", "arcbox"}
    assert merged["current-context"] == "arcbox"
    contexts = run(kubectl, me.file, "get-contexts", "--no-headers")
    chosen = next(line for line in contexts.splitlines() if line.startswith("*"))
    assert chosen.split()[1:] == ["arcbox", "arcbox", "arcbox"]
    # It writes the whole file anew, in its own order, and keeps our marks.
    run(kubectl, me.file, "set-context", "third", "--cluster=prod")
    me.disable()
    after = view(kubectl, me.file)
    assert after["current-context"] == "prod"
    assert after["users"] == before["users"]
    assert after["clusters"] == before["clusters"]
    assert {c["name"] for c in after["contexts"]} == {"prod", "other", "third"}


async def test_it_and_we_wait_for_each_other(kubectl: Path, tmp_path: Path) -> None:
    me = User(tmp_path)
    me.write(THEIRS)
    lock = me.file.with_name("config.lock")
    lock.touch()
    # The same file keeps kubectl out: this is the lock that it takes.
    with pytest.raises(subprocess.CalledProcessError):
        run(kubectl, me.file, "use-context", "other")
