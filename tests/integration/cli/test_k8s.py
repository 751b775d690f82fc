from __future__ import annotations

import json
from pathlib import Path

from ruamel.yaml import YAML

from arcboxd.errors import PreconditionError, UnsupportedError
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon


def load(file: Path) -> dict[str, object]:
    return dict(YAML(typ="safe", pure=True).load(file.read_text()))


def test_a_cluster_is_started_and_looked_at(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("k8s", "start", "-q", "--no-wait", "web")
    assert (done.returncode, done.stdout) == (0, b"https://127.0.0.1:16443\n")
    assert b"k3s: it begins\n  hint: see how it goes on: arcbox k8s status web" in done.stderr
    daemon.host.cluster_ready_after = 3
    assert json.loads(arcbox.run("k8s", "start", "-q", "--json").stdout)["api_ready"] is True
    assert daemon.host.cluster_ready_after == 0, "it waits"
    text = arcbox.run("k8s", "status", "web").stdout.decode()
    assert [line.split() for line in text.splitlines() if "k3s" in line] == [
        ["k3s", "ready", "v1.36.4"]
    ]
    assert arcbox.run("k8s", "stop", "web").returncode == 0
    assert arcbox.run("k8s", "delete", "web").returncode == 0
    assert b"no machine 'nothing'" in arcbox.run("k8s", "status", "nothing").stderr


def test_what_does_not_start_or_stop_is_told(arcbox: Arcbox, daemon: StubDaemon) -> None:
    daemon.host.cluster_runs = False
    done = arcbox.run("k8s", "start", "-q", "--no-wait")
    assert (done.returncode, done.stdout) == (1, b"")
    done = arcbox.run("k8s", "stop")
    assert (done.returncode, done.stderr) == (1, b"arcbox: it hangs\n")


def test_an_agent_without_kubernetes_is_told_as_it_says(arcbox: Arcbox, daemon: StubDaemon) -> None:
    words = "This version of the agent cannot run a Kubernetes cluster."
    daemon.host.cluster_error = UnsupportedError(words)
    for verb in ("start", "stop", "delete", "status", "kubeconfig", "enable"):
        done = arcbox.run("k8s", verb, "web")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.endswith(f"arcbox: {words}\n".encode())


def test_the_kubeconfig_alone_is_printed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    text = arcbox.run("k8s", "kubeconfig", "web").stdout.decode()
    assert YAML(typ="safe", pure=True).load(text)["current-context"] == "arcbox-web"


def test_enable_and_disable_put_everything_back(arcbox: Arcbox, daemon: StubDaemon) -> None:
    file = arcbox.home / "my config"
    before = "kind: Config\ncontexts:\n- name: prod\n  context: {}\ncurrent-context: prod # mine\n"
    file.write_text(before)
    env = {"KUBECONFIG": str(file)}
    assert arcbox.run("k8s", "enable", env=env).stdout == b"arcbox\n"
    assert arcbox.run("k8s", "enable", "web", env=env).stdout == b"arcbox-web\n"
    assert load(file)["current-context"] == "arcbox-web"
    daemon.close()
    # Without a daemon, and the default machine by its name too.
    assert arcbox.run("k8s", "disable", "web", env=env).stdout == b"arcbox\n"
    assert arcbox.run("k8s", "disable", "default", env=env).stdout == b"prod\n"
    assert load(file)["current-context"] == "prod"
    assert load(file)["contexts"] == [{"name": "prod", "context": {}}]
    assert not (arcbox.home / ".kube").exists()


def test_enable_without_a_cluster_changes_nothing(arcbox: Arcbox, daemon: StubDaemon) -> None:
    daemon.host.cluster_error = PreconditionError(
        "machine 'web' has no Kubernetes cluster", hint="make one with: arcbox k8s start web"
    )
    done = arcbox.run("k8s", "enable", "web")
    assert done.returncode == 1
    assert b"hint: make one with: arcbox k8s start web" in done.stderr
    assert not (arcbox.home / ".kube").exists()


def test_a_malformed_kubeconfig_is_not_touched(arcbox: Arcbox, daemon: StubDaemon) -> None:
    file = arcbox.home / ".kube" / "config"
    file.parent.mkdir()
    file.write_text("contexts: [\n")
    done = arcbox.run("k8s", "enable")
    assert done.returncode == 1
    assert b"was not touched" in done.stderr
    assert file.read_text() == "contexts: [\n"
