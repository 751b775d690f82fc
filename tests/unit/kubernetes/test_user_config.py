from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from arcboxd.errors import InvalidArgumentError, PreconditionError
from arcboxd.kubernetes.kubeconfig import Credentials
from arcboxd.kubernetes.user_config import SIZE_MAX, Switched, UserConfig
from tests.unit.kubernetes.certificates import pair

SERVER = "https://127.0.0.1:16443"
MINE = """\
# my clusters, by hand
apiVersion: v1
kind: Config
preferences: {}
clusters:
- cluster:
    server: https://192.0.2.1:6443 # the old one
    insecure-skip-tls-verify: true
  name: prod
contexts:
- {context: {cluster: prod, user: "me"}, name: 'prod'}
- context:
    cluster: prod
    user: me
    namespace: other
  name: other
# which one
current-context: prod
users:
# two of them
- name: me
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: aws
      args: [eks, get-token, "--cluster-name", prod]
      interactiveMode: IfAvailable
- name: you
  user: {token: 0123e4, password: no, username: 0x1}
"""


class User:
    """Someone with a kubeconfig."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home / ".kube" / "config"
        self.backup = home / ".kube" / "config.arcbox-backup"
        self.memory = home / "arcbox" / "kubernetes_contexts.json"

    def config(self, kubeconfig: str = "", lock_s: float = 10.0) -> UserConfig:
        found = UserConfig.of_user({"HOME": str(self.home), "KUBECONFIG": kubeconfig}, self.memory)
        found._lock_s = lock_s
        return found

    def enable(self, context: str = "arcbox", server: str = SERVER) -> Switched:
        return self.config().enable(credentials(), context=context, server=server)

    def disable(self, context: str = "arcbox") -> Switched:
        return self.config().disable(context)

    def write(self, text: str) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(text)

    def select(self, context: str) -> None:
        lines = self.file.read_text().splitlines()
        kept = [line for line in lines if not line.startswith("current-context")]
        self.write("\n".join([*kept, f"current-context: {context}", ""]))

    def names(self, key: str = "contexts") -> list[str]:
        return [item["name"] for item in load(self.file.read_text())[key]]


def load(text: str) -> dict[str, Any]:
    return dict(YAML(typ="safe", pure=True).load(text) or {})


def credentials() -> Credentials:
    certificate, key = pair()
    return Credentials(pair("authority")[0], certificate, key)


@pytest.fixture
def me(tmp_path: Path) -> User:
    return User(tmp_path)


def test_a_first_kubeconfig_is_made_for_the_user_alone(me: User) -> None:
    assert me.enable() == Switched("arcbox", "")
    assert stat.S_IMODE(me.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(me.file.parent.stat().st_mode) == 0o700
    found = load(me.file.read_text())
    assert (found["apiVersion"], found["kind"]) == ("v1", "Config")
    assert found["current-context"] == "arcbox"
    cluster = found["clusters"][0]["cluster"]
    assert cluster["server"] == SERVER
    assert cluster["certificate-authority-data"] == credentials().authority
    assert found["users"][0]["user"]["client-key-data"] == credentials().key
    assert me.disable() == Switched("", "arcbox")
    found = load(me.file.read_text())
    assert "current-context" not in found
    assert [found[key] for key in ("clusters", "contexts", "users")] == [[], [], []]


def test_all_that_is_not_ours_stays_to_the_byte(me: User) -> None:
    me.write(MINE)
    assert me.enable() == Switched("arcbox", "prod")
    changed = me.file.read_text()
    assert [line for line in MINE.splitlines() if line not in changed.splitlines()] == [
        "current-context: prod"
    ]
    assert me.names() == ["prod", "other", "arcbox"]
    assert me.disable() == Switched("prod", "arcbox")
    assert me.file.read_text() == MINE


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: v1\ncontexts:\n  - name: a\n    context:\n      cluster: b\n",
        '{"apiVersion": "v1", "kind": "Config", "users": null, "current-context": ""}\n',
        "apiVersion: v1\nkind: Config\ncurrent-context: ''\nclusters:\nusers: []\n",
        "a: &x {b: 1}\nc: *x\ncontexts: []\n",
        "# only a comment\n",
        "{apiVersion: v1, contexts: [{name: a, context: {cluster: b}}]}\n",
        "%YAML 1.2\n---\nkind: Config\n",
    ],
    ids=["indented", "JSON", "empty lists", "anchors", "a comment", "flow", "a directive"],
)
def test_what_was_there_means_the_same_after(me: User, text: str) -> None:
    me.write(text)
    me.enable()
    me.enable("arcbox-web")
    found = load(me.file.read_text())
    assert found["current-context"] == "arcbox-web"
    assert [item["name"] for item in found["users"]] == ["arcbox", "arcbox-web"]
    me.disable("arcbox-web")
    me.disable()
    before, after = load(text), load(me.file.read_text())
    lists = ("clusters", "contexts", "users")
    empty: dict[str, object] = {"apiVersion": "v1", "kind": "Config"} if not before else {}
    assert {k: v for k, v in after.items() if v or k not in lists} == empty | {
        k: v for k, v in before.items() if v or k not in lists
    }
    if "  - " in text:
        assert text in me.file.read_text()


def test_json_stays_json(me: User) -> None:
    me.write('{"kind": "Config", "contexts": []}')
    me.enable()
    assert json.loads(me.file.read_text())["current-context"] == "arcbox"


def test_nothing_is_written_twice(me: User) -> None:
    me.write(MINE)
    me.enable()
    before = me.file.read_text(), me.file.stat().st_mtime_ns, me.backup.read_text()
    me.enable()
    assert (me.file.read_text(), me.file.stat().st_mtime_ns, me.backup.read_text()) == before
    me.disable()
    assert me.disable() == Switched("prod", "prod")
    assert me.file.read_text() == MINE


def test_a_new_cluster_takes_the_place_of_the_old(me: User) -> None:
    me.write(MINE)
    me.enable()
    assert me.enable(server="https://127.0.0.1:16444") == Switched("arcbox", "arcbox")
    found = load(me.file.read_text())
    assert found["clusters"][-1]["cluster"]["server"] == "https://127.0.0.1:16444"
    assert me.names("users") == ["me", "you", "arcbox"]
    me.disable()
    assert me.file.read_text() == MINE


def test_what_the_user_selected_since_stays(me: User) -> None:
    me.write(MINE)
    me.enable()
    me.select("other")
    assert me.disable() == Switched("other", "other")
    assert me.names() == ["prod", "other"]


def test_a_former_context_that_is_gone_is_not_selected(me: User) -> None:
    me.write(MINE)
    me.enable()
    me.write(me.file.read_text().replace("name: 'prod'", "name: renamed"))
    assert me.disable() == Switched("", "arcbox")


def test_ours_one_after_the_other(me: User) -> None:
    me.write(MINE)
    me.enable()
    me.enable("arcbox-web")
    assert me.disable() == Switched("arcbox-web", "arcbox-web")
    assert me.disable("arcbox-web") == Switched("prod", "arcbox-web")
    assert me.file.read_text() == MINE


def test_what_somebody_else_made_is_not_touched(me: User) -> None:
    text = MINE.replace("name: you", "name: arcbox")
    me.write(text)
    with pytest.raises(PreconditionError, match=r"a user 'arcbox' in .* not arcbox's") as caught:
        me.enable()
    assert "kubectl config unset users.arcbox" in caught.value.hint
    assert me.disable() == Switched("prod", "prod")
    assert me.file.read_text() == text
    assert not me.backup.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"a: b: c\n",
        b"- a\n",
        b"text\n",
        b"\xff\xfe",
        b"kind: List\n",
        b"clusters: {}\n",
        b"contexts: [x]\n",
        b"users: [{name: [1]}]\n",
        b"users: [{name: a, user: x}]\n",
        b"current-context: [a]\n",
        b"kind: Config\nkind: Config\n",
        b"kind: Config\n---\nkind: Config\n",
        b'{"kind": "Config"',
        b"a: " + b"[" * 600,
        b"#" * (SIZE_MAX + 1),
    ],
    ids=lambda content: content[:20].decode(errors="replace"),
)
def test_a_malformed_file_is_refused_and_not_touched(me: User, content: bytes) -> None:
    me.file.parent.mkdir()
    me.file.write_bytes(content)
    for change in (me.enable, me.disable):
        with pytest.raises(PreconditionError) as caught:
            change()
        assert str(me.file) in caught.value.message
    assert me.file.read_bytes() == content
    assert sorted(path.name for path in me.file.parent.iterdir()) == ["config"]


def test_what_is_no_file_is_refused(me: User) -> None:
    me.file.mkdir(parents=True)
    with pytest.raises(PreconditionError):
        me.enable()
    me.file.rmdir()
    os.mkfifo(me.file)
    with pytest.raises(PreconditionError, match="is no file"):
        me.enable()
    me.file.unlink()
    me.file.symlink_to("config")
    with pytest.raises(PreconditionError):
        me.enable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_read_only_file_is_left_alone(me: User) -> None:
    me.write(MINE)
    me.file.chmod(0o400)
    with pytest.raises(PreconditionError, match="may not be written"):
        me.enable()


def test_links_are_followed_and_kept(me: User) -> None:
    real = me.home / "dotfiles" / "kube"
    real.parent.mkdir()
    real.write_text(MINE)
    me.file.parent.mkdir()
    me.file.symlink_to("../dotfiles/kube")
    me.enable()
    assert me.file.is_symlink()
    assert "arcbox" in real.read_text()
    assert [path.name for path in real.parent.iterdir()] == ["kube"]
    assert me.backup.read_text() == MINE


def test_the_newest_backups_are_kept(me: User) -> None:
    me.write(MINE)
    texts = [MINE]
    for n in range(4):
        me.enable(f"arcbox-m{n}")
        texts.append(me.file.read_text())
    names = ("config.arcbox-backup", "config.arcbox-backup.1", "config.arcbox-backup.2")
    found = [(me.file.parent / name).read_text() for name in names]
    assert found == texts[3:0:-1]
    assert sorted(path.name for path in me.file.parent.iterdir()) == ["config", *names]
    assert stat.S_IMODE(me.backup.stat().st_mode) == 0o600


def test_the_first_file_that_exists_is_changed(me: User) -> None:
    first, second = me.home / "one", me.home / "two"
    second.write_text(MINE)
    config = me.config(f"{first}::{second}")
    assert config.path == second
    config.enable(credentials(), context="arcbox", server=SERVER)
    assert not first.exists()
    assert not me.file.exists()
    first.write_text("kind: Config\n")
    both = me.config(f"{first}:{second}")
    assert both.path == first
    assert me.config(f"{me.home}/none:{me.home}/nothing").path == me.home / "none"


def test_a_former_context_of_another_file_is_put_back(me: User) -> None:
    first, second = me.home / "one", me.home / "two"
    first.write_text("current-context: prod\n")
    second.write_text(MINE)
    config = me.config(f"{first}:{second}")
    config.enable(credentials(), context="arcbox", server=SERVER)
    assert config.disable("arcbox") == Switched("prod", "arcbox")
    assert load(first.read_text())["current-context"] == "prod"


def test_who_else_changes_it_is_waited_for(me: User) -> None:
    me.write(MINE)
    lock = me.file.with_name("config.lock")
    lock.touch()
    with pytest.raises(PreconditionError, match=r"config\.lock is there") as caught:
        me.config(lock_s=0.1).enable(credentials(), context="arcbox", server=SERVER)
    assert f"rm {lock}" in caught.value.hint
    assert lock.exists()
    assert me.file.read_text() == MINE
    timer = threading.Timer(0.1, lock.unlink)
    timer.start()
    me.enable()
    timer.join()
    assert not lock.exists()


def test_many_at_once_lose_nothing(me: User) -> None:
    me.write(MINE)
    names = [f"arcbox-m{n}" for n in range(8)]
    threads = [threading.Thread(target=me.enable, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(me.names()) == sorted(["prod", "other", *names])
    for name in names:
        me.disable(name)
    assert me.file.read_text() == MINE


def test_a_failed_write_leaves_the_file_and_no_lock(
    me: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    me.write(MINE)

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("arcboxd.durable.write", fail)
    with pytest.raises(RuntimeError):
        me.enable()
    assert me.file.read_text() == MINE
    assert sorted(path.name for path in me.file.parent.iterdir()) == ["config"]


def test_names_that_are_not_ours_are_never_written(me: User) -> None:
    with pytest.raises(InvalidArgumentError):
        me.enable("prod")
    with pytest.raises(InvalidArgumentError):
        me.enable(server="https://evil.example:1")
    assert not me.file.exists()


def test_nothing_is_made_to_take_out_what_is_not_there(me: User) -> None:
    assert me.disable() == Switched("", "")
    assert list(me.home.iterdir()) == []


def test_comments_behind_ours_are_kept(me: User) -> None:
    me.write("contexts:\n- name: a\n  context: {}\n# tail\nusers: []\n")
    me.enable()
    me.write(me.file.read_text().replace("users:\n", "# since\nusers:\n"))
    me.disable()
    text = "contexts:\n- name: a\n  context: {}\n# tail\n# since\nusers: []\n"
    assert me.file.read_text().startswith(text)
