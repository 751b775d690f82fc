from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from arcboxd.cli.create import parse_mount, read_key
from arcboxd.cli.exec import parse_variable
from arcboxd.cli.main import run
from arcboxd.cli.ssh import ssh_argv
from arcboxd.cli.usage import CliUsageError
from arcboxd.client.views import SshInfo


def test_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_mount("/a:/b") == ("/a", "/b", False)
    assert parse_mount("/a:/b:ro") == ("/a", "/b", True)
    assert parse_mount("/a:/b:rw") == ("/a", "/b", False)
    assert parse_mount("~/src:/src") == ("/home/me/src", "/src", False)
    assert parse_mount("src:/src")[0] == str(Path.cwd() / "src")
    assert parse_mount("/a:b:/c") == ("/a:b", "/c", False)


@pytest.mark.parametrize("text", ["", "/a", "/a:", ":/b", "/a:b", "/a:/b:rx", "/a:/b:ro:"])
def test_what_is_no_mount_is_refused(text: str) -> None:
    with pytest.raises(CliUsageError):
        parse_mount(text)


def test_a_public_key_is_read_and_a_private_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "id"
    key.write_text("\nssh-ed25519 AAAA me\n")
    assert read_key(str(key)) == "ssh-ed25519 AAAA me"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"ssh-rsa B x")))
    assert read_key("-") == "ssh-rsa B x"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(CliUsageError) as caught:
        read_key(str(key))
    assert caught.value.hint == f"give its public half: {key}.pub"
    key.write_text("one\ntwo\n")
    with pytest.raises(CliUsageError):
        read_key(str(key))
    with pytest.raises(CliUsageError, match="No such file"):
        read_key(str(tmp_path / "none"))


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SET_HERE", "yes")
    assert parse_variable("A=b=c") == ("A", "b=c")
    assert parse_variable("A=") == ("A", "")
    assert parse_variable("SET_HERE") == ("SET_HERE", "yes")
    for text in ("", "=x", "NOT_SET_HERE_AT_ALL"):
        with pytest.raises(CliUsageError):
            parse_variable(text)


def test_ssh_from_the_daemons_command_or_the_fields() -> None:
    info = SshInfo("127.0.0.1", 2222, "me", "/s/machines/x/ssh_key", "ssh -o 'A=b c' me@h")
    assert ssh_argv(info, []) == ["ssh", "-o", "A=b c", "me@h"]
    assert ssh_argv(info, ["--", "ls", "-l"])[-3:] == ["--", "ls", "-l"]
    bare = SshInfo(info.host, info.port, info.user, info.identity_file, "")
    assert ssh_argv(bare, ["id"]) == [
        *("ssh", "-i", "/s/machines/x/ssh_key", "-p", "2222", "-o", "IdentitiesOnly=yes"),
        *("-o", "UserKnownHostsFile=/s/machines/x/known_hosts"),
        *("-o", "StrictHostKeyChecking=yes", "me@127.0.0.1", "--", "id"),
    ]


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["machine", "--help"], 0),
        ([], 2),
        (["nonsense"], 2),
        (["create"], 2),
        (["create", "x", "--memory", "lots"], 2),
        (["exec", "x"], 2),
        (["exec", "-e", "", "x", "true"], 2),
        (["suspend"], 2),
        (["clone", "x"], 2),
        (["snapshot"], 2),
        (["snapshot", "restore", "x"], 2),
        (["machine", "snapshot", "rm", "x"], 2),
        (["image", "prepare", "--cpus", "-1"], 2),
        (["image", "prepare", "--disk", "lots"], 2),
        (["template", "rm"], 2),
        (["template", "rm", "0123", "web"], 2),
        (["template", "rm", ""], 2),
        (["template", "rm", "0123ABCD"], 2),
        (["top", "--interval", "soon"], 2),
        (["top", "--interval", "0"], 2),
        (["top", "--interval", "nan"], 2),
        (["top", "--interval", "inf"], 2),
    ],
)
def test_statuses_without_a_daemon(
    argv: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == status
    out, errors = capsys.readouterr()
    assert "Traceback" not in out + errors
    assert bool(errors) == bool(status)


def test_every_machine_verb_has_its_full_name_too(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--help"])
    short = capsys.readouterr().out
    run(["machine", "--help"])
    verbs = [
        line.split()[0]
        for line in capsys.readouterr().out.partition("Commands:")[2].splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    assert len(verbs) > 15
    assert all(f"\n  {verb}" in short for verb in verbs)
