from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon

DOCKER = shutil.which("docker")


class Client:
    """The user's docker client, with settings of its own."""

    def __init__(self, arcbox: Arcbox, program: str | None, empty: Path) -> None:
        self.config = arcbox.home / "docker config"
        self.file = self.config / "config.json"
        path = os.environ["PATH"] if program else str(empty)
        self.env = {"DOCKER_CONFIG": str(self.config), "PATH": path}

    def docker(self, *args: str) -> str:
        if DOCKER is None:
            pytest.skip("no docker client")
        env = {"DOCKER_CONFIG": str(self.config), "HOME": "/nonexistent", "PATH": os.defpath}
        argv = [DOCKER, *args]
        return subprocess.check_output(argv, env=env, text=True, timeout=10).strip()

    def settings(self) -> dict[str, object]:
        return dict(json.loads(self.file.read_text()))


@pytest.fixture(params=["by docker", "by hand"])
def client(request: pytest.FixtureRequest, arcbox: Arcbox, tmp_path: Path) -> Client:
    program = DOCKER if request.param == "by docker" else None
    if request.param == "by docker" and program is None:
        pytest.skip("no docker client")
    return Client(arcbox, program, tmp_path)


def test_runtime_verbs(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert arcbox.run("runtime", "ensure", "-q").stdout == b"started\n"
    answer = json.loads(arcbox.run("runtime", "ensure", "-q", "web", "--json").stdout)
    assert answer == {
        "ready": True,
        "endpoint": "unix:///var/run/docker.sock",
        "message": "",
        "status": "started",
    }
    daemon.host.failure = "containerd: it ended with status 1: disk full"
    done = arcbox.run("runtime", "ensure", "-q", "web")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"arcbox: containerd: it ended with status 1: disk full\n")
    done = arcbox.run("machine", "runtime", "status", "web")
    assert b"Docker:     not ready\n" in done.stdout
    assert b"containerd   ready       1.7.24\n" in done.stdout
    assert b"dockerd      not_ready   -\n" in done.stdout
    done = arcbox.run("runtime", "status")
    assert (done.returncode, done.stderr) == (1, b"arcbox: there is no machine 'default'\n")


def test_env_can_be_evaluated(arcbox: Arcbox, daemon: StubDaemon) -> None:
    for name, socket in (("", "run/docker.sock"), ("web", "machines/id-web/docker.sock")):
        line = arcbox.run("docker", "env", *filter(None, [name])).stdout.decode()
        told = subprocess.check_output(["sh", "-c", f'{line} printf %s "$DOCKER_HOST"'], text=True)
        assert told == f"unix://{arcbox.home}/s/{socket}"
        assert line == f"export DOCKER_HOST={shlex.quote(told)}\n"
    assert arcbox.run("docker", "env", "ghost").returncode == 1


def test_enable_and_disable(arcbox: Arcbox, daemon: StubDaemon, client: Client) -> None:
    done = arcbox.run("docker", "enable", env=client.env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"arcbox\n", b"")
    assert client.settings()["currentContext"] == "arcbox"
    if DOCKER:
        assert client.docker("context", "show") == "arcbox"
        endpoint = client.docker("context", "inspect", "arcbox", "-f", "{{.Endpoints.docker.Host}}")
        assert endpoint == f"unix://{arcbox.home}/s/run/docker.sock"
    # Twice is as once, and the way back is that of the first.
    assert arcbox.run("docker", "enable", env=client.env).stdout == b"arcbox\n"
    status = json.loads(arcbox.run("docker", "status", "--json", env=client.env).stdout)
    assert status["context"] == status["selected_context"] == "arcbox"
    assert status["socket"] == f"{arcbox.home}/s/run/docker.sock"
    assert b"docker uses it: yes" in arcbox.run("docker", "status", env=client.env).stdout
    assert arcbox.run("docker", "disable", env=client.env).stdout == b"default\n"
    assert "currentContext" not in client.settings()
    assert not list((client.config / "contexts").glob("*/*/meta.json"))
    assert arcbox.run("docker", "disable", env=client.env).stdout == b"default\n"


def test_the_former_context_comes_back(arcbox: Arcbox, daemon: StubDaemon, client: Client) -> None:
    client.docker("context", "create", "work", "--docker", "host=unix:///w.sock")
    client.docker("context", "use", "work")
    assert arcbox.run("docker", "enable", env=client.env).stdout == b"arcbox\n"
    assert arcbox.run("docker", "enable", "web", env=client.env).stdout == b"arcbox-web\n"
    # The first one is no more: the second one's way back goes past it.
    assert arcbox.run("docker", "disable", env=client.env).stdout == b"arcbox-web\n"
    assert arcbox.run("docker", "disable", "web", env=client.env).stdout == b"work\n"
    assert client.docker("context", "ls", "-q").split() == ["default", "work"]


def test_what_the_user_selected_since_stays(
    arcbox: Arcbox, daemon: StubDaemon, client: Client
) -> None:
    client.docker("context", "create", "work", "--docker", "host=unix:///w.sock")
    arcbox.run("docker", "enable", env=client.env)
    client.docker("context", "use", "work")
    assert arcbox.run("docker", "disable", env=client.env).stdout == b"work\n"
    assert client.docker("context", "show") == "work"
    # And one that is gone is not selected.
    client.docker("context", "use", "default")
    client.docker("context", "use", "work")
    arcbox.run("docker", "enable", env=client.env)
    client.docker("context", "rm", "work")
    assert arcbox.run("docker", "disable", env=client.env).stdout == b"default\n"


def test_nothing_of_the_users_is_damaged(
    arcbox: Arcbox, daemon: StubDaemon, client: Client
) -> None:
    client.config.mkdir()
    client.file.write_text('{"auths": {"a"')
    for verb in ("enable", "disable"):
        done = arcbox.run("docker", verb, env=client.env)
        assert done.returncode == 1
        assert b"is no JSON, and was not touched" in done.stderr
    assert client.file.read_text() == '{"auths": {"a"'
    assert [p.name for p in client.config.iterdir()] == ["config.json"]
    client.file.write_text('{"currentContext": 7}')
    assert arcbox.run("docker", "enable", env=client.env).returncode == 1
    client.file.unlink()
    client.docker("context", "create", "arcbox", "--docker", "host=unix:///mine.sock")
    done = arcbox.run("docker", "enable", env=client.env)
    assert done.returncode == 1
    assert b"that is not arcbox's" in done.stderr
    assert arcbox.run("docker", "disable", env=client.env).stdout == b"default\n"
    assert client.docker("context", "ls", "-q").split() == ["arcbox", "default"]


def test_settings_keep_what_we_do_not_know(
    arcbox: Arcbox, daemon: StubDaemon, tmp_path: Path
) -> None:
    client = Client(arcbox, None, tmp_path)
    client.config.mkdir()
    real = arcbox.home / "dotfiles.json"
    real.write_text('{"auths": {"r": {"auth": "x"}}, "novel": [1], "currentContext": "default"}')
    real.chmod(0o640)
    client.file.symlink_to(real)
    assert arcbox.run("docker", "enable", env=client.env).stdout == b"arcbox\n"
    assert client.file.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    expected = {"auths": {"r": {"auth": "x"}}, "novel": [1], "currentContext": "arcbox"}
    assert client.settings() == expected
    assert arcbox.run("docker", "disable", env=client.env).stdout == b"default\n"
    assert client.settings() == {"auths": {"r": {"auth": "x"}}, "novel": [1]}


def test_a_variable_that_docker_heeds_first_is_told(
    arcbox: Arcbox, daemon: StubDaemon, client: Client
) -> None:
    env = {**client.env, "DOCKER_HOST": "unix:///other.sock"}
    done = arcbox.run("docker", "enable", env=env)
    assert (done.returncode, done.stdout) == (0, b"arcbox\n")
    assert b"DOCKER_HOST is set here" in done.stderr
    assert b"docker uses it: no" in arcbox.run("docker", "status", env=env).stdout
