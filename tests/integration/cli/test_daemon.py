from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator

import pytest

from arcboxd.client import lock
from arcboxd.paths import Paths
from tests.integration.cli.conftest import SRC, Arcbox
from tests.integration.cli.stub import StubDaemon

# The real daemon, on a host where nothing can be built: sitecustomize runs before its main module.
_NO_PARTS = """
import sys
if "arcboxd.daemon" in sys.orig_argv:
    import arcboxd.daemon.parts as parts
    from arcboxd.hypervisor.base import Accelerator
    class Hypervisor:
        accelerator = Accelerator("tcg", "a test", 10.0)
    parts.build = lambda settings, paths: parts.Parts(Hypervisor(), None, None, None)
"""


class RealDaemon(Arcbox):
    @property
    def env(self) -> dict[str, str]:
        return {**super().env, "PYTHONPATH": f"{self.home / 'site'}:{SRC}"}

    @property
    def paths(self) -> Paths:
        return Paths.of(self.home / "s")


@pytest.fixture
def real(arcbox: Arcbox) -> Iterator[RealDaemon]:
    (arcbox.home / "site").mkdir()
    (arcbox.home / "site" / "sitecustomize.py").write_text(_NO_PARTS)
    real = RealDaemon(arcbox.home)
    yield real
    real.run("daemon", "stop")
    assert lock.owner_pid(real.paths.lock) is None


def test_commands_that_race_start_one_daemon_and_all_succeed(real: RealDaemon) -> None:
    racers = [
        real.popen("ls", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    for racer in racers:
        with racer:
            out, errors = racer.communicate(timeout=18)
            assert (racer.returncode, json.loads(out or b"0"), errors) == (0, [], b"")
    status = json.loads(real.run("daemon", "status", "--json").stdout)
    assert status["pid"] == lock.owner_pid(real.paths.lock)
    assert (status["running"], status["machines"]) == (True, 0)
    assert (status["accelerator"], status["accelerator_reason"]) == ("tcg", "a test")


def test_stop_ends_it_and_status_says_so_with_3(real: RealDaemon) -> None:
    assert real.run("daemon", "start").returncode == 0
    pid = lock.owner_pid(real.paths.lock)
    assert pid
    assert real.run("daemon", "stop").stdout == b"daemon stopped; machines go on running\n"
    assert lock.owner_pid(real.paths.lock) is None
    status = real.run("daemon", "status")
    assert status.returncode == 3
    assert status.stdout.startswith(b"no daemon runs")
    assert real.run("daemon", "stop").stdout == b"no daemon ran\n"


def test_a_daemon_that_does_not_answer_is_ended_by_its_lock(real: RealDaemon) -> None:
    real.run("daemon", "start")
    real.paths.socket.unlink()
    assert real.run("daemon", "stop").returncode == 0
    assert lock.owner_pid(real.paths.lock) is None


def test_the_daemon_keeps_nothing_of_the_command_open(real: RealDaemon) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    process = subprocess.Popen(
        real.argv("ls"), env=real.env, pass_fds=[write], stdout=write, stderr=write
    )
    os.close(write)
    assert process.wait(15) == 0
    deadline = time.monotonic() + 5
    data = b"x"
    while data and time.monotonic() < deadline:
        if select.select([read], [], [], 0.5)[0]:
            data = os.read(read, 4096)
    os.close(read)
    assert data == b"", "the pipe is at its end while the daemon lives"


def test_a_daemon_that_cannot_start_has_the_last_word(arcbox: Arcbox) -> None:
    (arcbox.home / "s").mkdir()
    (arcbox.home / "s" / "config.toml").write_text("nonsense = 1\n")
    (arcbox.home / "s" / "daemon.log").write_text("an older line\n")
    done = arcbox.run("ls")
    assert done.returncode == 1
    assert b"did not start:\n  " in done.stderr
    assert b"nonsense" in done.stderr
    assert b"older" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_nothing_in_the_current_directory_is_run(real: RealDaemon) -> None:
    trap = real.home / "trap"
    trap.mkdir()
    (trap / "arcboxd.py").write_text("raise SystemExit('trapped')")
    command = "import sys; sys.path.remove(''); from arcboxd.cli.main import run; run(['ls'])"
    done = subprocess.run(
        [*real.argv()[:1], "-c", command],
        cwd=trap,
        env=real.env,
        capture_output=True,
        timeout=15,
        check=False,
    )
    assert done.stdout.startswith(b"NAME")


def test_a_state_directory_too_deep_for_sockets_is_refused_at_once(arcbox: Arcbox) -> None:
    done = arcbox.run("--home", str(arcbox.home / ("d" * 100)), "ls")
    assert done.returncode == 1
    assert b"hint: choose one of at most " in done.stderr


def test_doctor_works_without_a_daemon_and_starts_none(arcbox: Arcbox) -> None:
    done = arcbox.run("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["healthy"] else 1)
    by_name = {check["name"]: check for check in report["checks"]}
    assert by_name["daemon"]["detail"] == "not running; commands start it"
    assert by_name["accelerator"]["detail"].startswith(("kvm: ", "tcg: "))
    assert not (arcbox.home / "s").exists()
    without = arcbox.run("doctor", env={"PATH": str(arcbox.home)})
    assert "daemon" in without.stdout.decode()


def test_completion_offers_names_and_starts_nothing(arcbox: Arcbox) -> None:
    machine = arcbox.home / "s" / "machines" / "abc"
    machine.mkdir(parents=True)
    (machine / "machine.json").write_text('{"name": "web-1"}')
    for broken in ("[]", "{", '{"x": 1}'):
        (machine.parent / str(len(broken))).mkdir()
        (machine.parent / str(len(broken)) / "machine.json").write_text(broken)
    (machine / "snapshots" / "before").mkdir(parents=True)
    (machine / "snapshots" / "half.new").mkdir()
    for key in ("0123", "fe01"):
        (arcbox.home / "s" / "templates" / key).mkdir(parents=True)
    for words, offered in {
        "arcbox start w": [b"web-1"],
        "arcbox clone w": [b"web-1"],
        "arcbox snapshot rm web-1 ": [b"before"],
        "arcbox snapshot restore abc b": [b"before"],
        "arcbox snapshot restore ghost ": [],
        "arcbox template rm f": [b"fe01"],
    }.items():
        position = str(len(words.split(" ")) - 1)
        variables = {"COMP_WORDS": words, "COMP_CWORD": position}
        done = arcbox.run(env={"_ARCBOX_COMPLETE": "complete_bash", **variables})
        assert (done.stdout.split(), done.stderr) == (offered, b""), words
    assert not (arcbox.home / "s" / "run").exists()


def test_losing_the_daemon_on_the_way_is_told(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with arcbox.popen(
        "exec", "web", "sink", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        daemon.close()
        _, errors = process.communicate(timeout=15)
    assert process.returncode == 125
    assert b"Traceback" not in errors
    assert errors.startswith(b"arcbox: ")


def test_the_stub_serves_status_too(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("daemon", "status")
    assert done.returncode == 0
    assert b"2, of which 1 run" in done.stdout
