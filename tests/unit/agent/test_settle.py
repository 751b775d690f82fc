"""Settling: when a system is at rest, what init says, and what is taken away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from arcbox_agent import activity, configure, inits, settle
from arcbox_agent.activity import busiest, parse_busy_ticks, parse_process
from arcbox_agent.cgroup import Cgroups
from arcbox_agent.clone import Clone
from arcbox_agent.inits import (
    OpenRc,
    Systemd,
    find_init,
    parse_active,
    parse_failed,
    parse_jobs,
)
from arcbox_agent.kernel import NoKernel
from arcbox_agent.settle import NoSystem
from arcboxd.errors import ArcboxError, TooLateError, UnsupportedError
from arcboxd.wire.pb.arcbox.ext.v1.guest_pb2 import ConfigureRequest, SshHostKey, User

KEY = "ssh-ed25519 AAAA me@host"


def test_waiting_is_not_being_busy() -> None:
    #             user nice system idle iowait irq softirq steal guest
    assert parse_busy_ticks("cpu  1 20 300 9999 9999 4000 50000 9999 0 0\n") == 54321


def test_a_process_may_have_any_name() -> None:
    rest = " ".join(str(n) for n in range(4, 60))
    assert parse_process(f"7 (a) b (c) S {rest}") == ("a) b (c", 14 + 15)


def test_the_busiest_come_first_and_the_idle_not_at_all() -> None:
    before = {(1, "init"): 500, (2, "old"): 7, (3, "idle"): 9}
    after = {(1, "init"): 510, (3, "idle"): 9, (4, "new"): 11, (5, "a"): 1, (6, "b"): 2}
    assert busiest(before, after) == ["new (process 4)", "init (process 1)", "b (process 6)"]


async def test_rest_is_a_whole_window_with_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 150, 161, 171])
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(activity, "_busy_ticks", lambda: next(ticks))
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    monkeypatch.setattr("asyncio.sleep", sleep)
    await activity.wait_at_rest(2.0)
    assert slept == [2.0, 2.0, 2.0]


def test_jobs() -> None:
    text = (
        "77 systemd-journald.service start waiting\n"
        " 74 arcbox-clone.service     start running\n"
        "\n2 jobs listed.\nNo jobs running.\n"
    )
    assert parse_jobs(text) == [
        ("systemd-journald.service", "start", "waiting"),
        ("arcbox-clone.service", "start", "running"),
    ]


def test_failed_units_are_named() -> None:
    text = (
        "cups.service       loaded failed failed CUPS Scheduler\n"
        "mnt-a\\x20b.mount  not-found failed failed mnt-a\\x20b.mount\n"
    )
    assert parse_failed(text) == ["cups.service", "mnt-a\\x20b.mount"]
    assert parse_failed("\n") == []


def test_a_unit_with_two_names_is_one() -> None:
    text = (
        "Id=systemd-journald.service\nActiveState=active\n\n"
        "Id=ssh.service\nActiveState=active\n\nId=ssh.service\nActiveState=active\n\n"
        "Id=other.service\nActiveState=inactive\n\n"
        "Id=fstrim.timer\nActiveState=active\nTransient=no\n\n"
        "Id=run-u1.timer\nActiveState=active\nTransient=yes\n\n"
        "Id=kept.timer\nActiveState=active\nCanStart=yes\nCanStop=no\nTransient=no\n"
    )
    assert parse_active(text) == ["systemd-journald.service", "ssh.service", "fstrim.timer"]


class FakeSystemctl:
    """Answers like systemd; a restarted unit's job waits once it is `holding`."""

    def __init__(self, *, fails: str = "", stops: bool = True) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.fails = fails
        waiting = "6 ssh.service start waiting\n7 fstrim.timer start waiting"
        self._jobs = [
            "",
            "5 arcbox-clone.service start running",
            "5 arcbox-clone.service start running\n6 ssh.service restart running",
            f"5 arcbox-clone.service start running\n{waiting}",
        ][: 4 if stops else 3]

    async def __call__(self, *argv: str, cgroups: Cgroups) -> tuple[int, str]:
        self.calls.append(argv[1:])
        if argv[1] == self.fails:
            return 1, "Failed to reload daemon.\n"
        match argv[1]:
            case "list-jobs":
                return 0, self._jobs.pop(0) if len(self._jobs) > 1 else self._jobs[0]
            case "show":
                found = {
                    "ssh.service": "active",
                    "sshd.service": "inactive",
                    "*.timer": "active",
                    "systemd-udevd.service": "active",
                }
                return 0, "\n".join(
                    f"Id={unit.replace('*', 'fstrim')}\nActiveState={found[unit]}\n"
                    for unit in argv
                    if unit in found
                )
            case _:
                return 0, ""


async def test_systemd_holds_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl = FakeSystemctl()
    monkeypatch.setattr(inits, "run", systemctl)
    monkeypatch.setattr(inits, "_POLL_S", 0)
    fifo = tmp_path / "fifo"
    async with asyncio.timeout(5):
        assert await Systemd(Cgroups(""), str(tmp_path)).hold(str(fifo)) == []
    assert fifo.is_fifo()
    assert f"<{fifo}" in (tmp_path / "arcbox-clone.service").read_text()
    for unit in ("ssh.service", "fstrim.timer"):
        drop_in = tmp_path / f"{unit}.d/arcbox-clone.conf"
        assert drop_in.read_text() == "[Unit]\nAfter=arcbox-clone.service\n"
    verbs = [each[0] for each in systemctl.calls if each[0] != "list-jobs"]
    assert verbs == ["show", "daemon-reload", "start", "restart", "show", "stop"]
    assert systemctl.calls[-3][0] == "list-jobs"  # they were waited for
    assert systemctl.calls[-1] == ("stop", "systemd-udevd.service")


async def test_services_that_do_not_stop_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = FakeSystemctl(stops=False)
    monkeypatch.setattr(inits, "run", systemctl)
    monkeypatch.setattr(inits, "_POLL_S", 0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await Systemd(Cgroups(""), str(tmp_path)).hold(str(tmp_path / "fifo"))
    assert systemctl.calls[-1] == ("stop", "arcbox-clone.service")


async def test_a_systemctl_that_fails_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inits, "run", FakeSystemctl(fails="daemon-reload"))
    with pytest.raises(ArcboxError, match="Failed to reload daemon"):
        await Systemd(Cgroups(""), str(tmp_path)).hold(str(tmp_path / "fifo"))


async def test_openrc_has_booted_beyond_its_boot_level(tmp_path: Path) -> None:
    openrc = OpenRc(Cgroups(""), str(tmp_path))
    waiting = asyncio.create_task(openrc.wait_booted())
    for level, starting in (("", False), ("sysinit", True), ("boot", False), ("default", True)):
        (tmp_path / "softlevel").write_text(level)
        (tmp_path / "rc.starting").touch() if starting else None
        await asyncio.sleep(0)
        assert not waiting.done(), level
    (tmp_path / "rc.starting").unlink()
    async with asyncio.timeout(5):
        await waiting
    assert await openrc.failed() == []
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "cupsd").symlink_to("/etc/init.d/cupsd")
    assert await openrc.failed() == ["cupsd"]


@pytest.mark.parametrize("program", ["/run/arcbox/bundle/bin/busybox", "/sbin/runit"])
async def test_other_inits_are_refused(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inits, "_SYSTEMD", "/nowhere")
    monkeypatch.setattr(inits, "_OPENRC", "/nowhere")
    monkeypatch.setattr(inits, "_FIND_S", 0)
    monkeypatch.setattr(inits, "_first_program", lambda: program)
    with pytest.raises(UnsupportedError, match="systemd or OpenRC"):
        await find_init(Cgroups(""))


class FakeSystem(NoSystem):
    """A system that may never come to rest, or not let its services be held."""

    def __init__(self, *, rests: bool = True, holds: bool = True) -> None:
        super().__init__(Cgroups(""))
        self._rests = rests
        self._holds = holds

    async def wait_at_rest(self, window_s: float) -> None:
        if not self._rests:
            await asyncio.Event().wait()

    async def hold(self, fifo: str) -> list[str]:
        if not self._holds:
            raise ArcboxError("no")
        return ["sshd"]

    async def busy(self) -> list[str]:
        return ["apt (process 7)"]


def make_clone(root: Path) -> Clone:
    for folder in ("etc/ssh", "home/me/.ssh", "run/arcbox", "var/log/journal/abc"):
        (root / folder).mkdir(parents=True)
    (root / "etc/passwd").write_text("me:x:0:0:me:/home/me:/bin/sh\n")
    return Clone(NoKernel(), Cgroups(""), str(root))


async def configured(root: Path) -> Clone:
    clone = make_clone(root)
    request = ConfigureRequest(
        machine_id="ab" * 16,
        hostname="template",
        user=User(name="me", authorized_keys=[KEY]),
        ssh_host_keys=[
            SshHostKey(
                type="ed25519",
                private_key="-----BEGIN OPENSSH PRIVATE KEY-----\nabc=\n"
                "-----END OPENSSH PRIVATE KEY-----\n",
                public_key=KEY,
            )
        ],
    )
    response = await configure.configure(request, NoKernel(), clone, str(root))
    assert list(response.warnings) == []
    return clone


async def test_nothing_of_the_template_is_left(tmp_path: Path) -> None:
    clone = await configured(tmp_path)
    for path in (
        "etc/ssh/ssh_host_rsa_key",
        "etc/ssh/ssh_config",
        "var/log/journal/abc/system.journal",
        "var/log/wtmp",
    ):
        (tmp_path / path).write_text("template " + "ab" * 16)
    response = await settle.settle(FakeSystem(), NoKernel(), clone, str(tmp_path), 10)
    assert list(response.warnings) == []
    assert clone.settled
    assert (tmp_path / "run/arcbox/settled").read_text() == "sshd\n"
    assert (tmp_path / "etc/ssh/ssh_config").exists()
    assert not (tmp_path / "etc/ssh/ssh_host_rsa_key").exists()
    assert list((tmp_path / "var/log/journal").iterdir()) == []
    texts = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    telling = ("template", "ab" * 16, "AAAA", "abc=")
    left = {str(p) for p, t in texts.items() if any(each in t for each in telling)}
    assert left == {str(tmp_path / "etc/ssh/ssh_config")}
    # What was written once may be looked at again by an agent that was started anew.
    assert Clone(NoKernel(), Cgroups(""), str(tmp_path)).settled


async def test_a_system_that_never_rests_is_left_as_it_was(tmp_path: Path) -> None:
    clone = await configured(tmp_path)
    with pytest.raises(TooLateError, match=r"come to rest.*apt \(process 7\)"):
        await settle.settle(FakeSystem(rests=False), NoKernel(), clone, str(tmp_path), 0.01)
    assert not clone.settled
    assert (tmp_path / "etc/hostname").read_text() == "template\n"


async def test_services_that_cannot_be_held(tmp_path: Path) -> None:
    clone = await configured(tmp_path)
    with pytest.raises(ArcboxError, match="no"):
        await settle.settle(FakeSystem(holds=False), NoKernel(), clone, str(tmp_path), 10)
    assert not clone.settled
