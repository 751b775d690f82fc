"""Directories of the host in a real machine: what either side does, the other sees; and `cp`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.vm.conftest import MIB, Host
from tests.vm.test_suspend import kill_daemon
from tests.vm.waiting import reboot, until

FULL = bool(os.environ.get("ARCBOX_TEST_FULL"))
SMALL_FILES = 10_000 if FULL else 500
BIG_BYTES = 1024 * MIB if FULL else 64 * MIB
NAMES = (
    "with space",
    "com,ma=x",
    "ünïcødé-日本",
    "new\nline",
    "quo'te\"s",
    "back\\slash",
    "-dash",
    ".hidden",
    "x" * 255,
)
PYTHON = (
    "b=/run/arcbox/bundle; exec $b/lib/$(cat $b/loader) --library-path $b/lib $b/bin/python3 "
    "-I -S -E -X utf8=1 -c \"import sys; h = '$b/python/lib/python3.11'; "
    'sys.path[:] = [h, h + \'/lib-dynload\']; import os; exec(sys.argv[1])" "$@"'
)


@dataclass
class Shared:
    """A machine with one writable and one read-only directory of the host."""

    host: Host
    top: Path

    @property
    def rw(self) -> Path:
        """Give the writable directory."""
        return self.top / "rw"

    @property
    def ro(self) -> Path:
        """Give the one that only the host writes to; its name needs care."""
        return self.top / "read, only=é"

    def sh(self, script: str) -> str:
        """Run a script in the writable directory, in the guest."""
        return self.host.sh("dev", f"cd /mnt/rw && {script}")

    def code(self, script: str) -> int:
        """Run a script that may fail."""
        return self.host.exec("dev", "sh", "-c", f"cd /mnt/rw && {script}")[0]

    def python(self, script: str) -> str:
        """Run a program in Python in the guest, in the writable directory."""
        script = f"os.chdir('/mnt/rw')\n{script}"
        code, out, err = self.host.exec("dev", "sh", "-c", PYTHON, "sh", script)
        assert code == 0, err.decode()
        return out.decode()

    def states(self) -> dict[str, str]:
        """Tell what has become of each mount."""
        found = self.host.ext.ListMounts(host_pb2.ListMountsRequest(id="dev")).mounts
        return {each.guest_path: each.state for each in found}


@pytest.fixture(scope="module")
def shared(host: Host) -> Iterator[Shared]:
    top = Path(tempfile.mkdtemp(prefix="abx-share-"))
    shared = Shared(host, top)
    shared.rw.mkdir()
    shared.ro.mkdir()
    (shared.ro / "sub").mkdir()
    (shared.ro / "kept").write_text("kept\n")
    (shared.ro / "sub" / "empty").touch()
    mount = machine_pb2.DirectoryMount
    host.machines.Create(
        machine_pb2.CreateMachineRequest(
            name="dev",
            cpus=2,
            memory=1024 * MIB,
            disk_size=8 << 30,
            mounts=[
                mount(host_path=str(shared.rw), guest_path="/mnt/rw"),
                mount(host_path=str(shared.ro), guest_path="/mnt/read, only", readonly=True),
            ],
        ),
        timeout=1200,
    )
    host.machines.Start(machine_pb2.StartMachineRequest(id="dev"), timeout=1200)
    yield shared
    shutil.rmtree(top)


def listing(tree: Path) -> list[tuple[object, ...]]:
    """Tell all of a tree that a write would change."""
    found: list[tuple[object, ...]] = []
    for path in sorted([tree, *tree.rglob("*")]):
        s = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(s.st_mode) else b""
        found.append((path, s.st_ino, s.st_mode, s.st_uid, s.st_nlink, s.st_mtime_ns, data))
    return found


def test_they_are_there_when_a_start_returns(shared: Shared) -> None:
    assert shared.states() == {"/mnt/rw": "mounted", "/mnt/read, only": "mounted"}
    (shared.rw / "from-host").write_text("to the guest\n")
    assert shared.sh("cat from-host; echo to the host >from-guest") == "to the guest\n"
    assert (shared.rw / "from-guest").read_text() == "to the host\n"
    assert shared.host.sh("dev", "cat '/mnt/read, only/kept'") == "kept\n"
    told = shared.host.arcbox("inspect", "dev").stdout.decode()
    assert f"{shared.rw} on /mnt/rw (9p, mounted)" in told
    assert f"{shared.ro} on /mnt/read, only (9p, ro, mounted)" in told


def test_files_of_the_guest_belong_to_the_hosts_user(shared: Shared) -> None:
    shared.sh("mkdir own && touch own/file && ln -s file own/link")
    for path in (shared.rw / "own", *(shared.rw / "own").iterdir()):
        assert path.lstat().st_uid == os.getuid(), path


def test_rename(shared: Shared) -> None:
    shared.sh("mkdir a && echo 1 >a/x && echo 2 >y && mv a b && mv -f y b/x")
    assert (shared.rw / "b" / "x").read_text() == "2\n"
    assert not (shared.rw / "a").exists()
    (shared.rw / "b").rename(shared.rw / "c")
    assert shared.sh("cat c/x; ls -d b 2>/dev/null || true") == "2\n"


def test_symlinks_are_the_guests_own_to_follow(shared: Shared) -> None:
    (shared.top / "secret").write_text("of the host")
    shared.sh("ln -s from-host rel; ln -s /etc/hostname abs; ln -s ../secret up; ln -s no where")
    assert str((shared.rw / "abs").readlink()) == "/etc/hostname"
    assert shared.sh("cat rel abs") == "to the guest\ndev\n"
    assert shared.code("cat up") == 1
    assert shared.code("cat where") == 1
    (shared.rw / "host-link").symlink_to(shared.top / "secret")
    assert shared.code("cat host-link") == 1


def test_modes_and_times(shared: Shared) -> None:
    shared.sh("touch m && chmod 0640 m && touch -d '2001-02-03 04:05:06 UTC' m")
    status = (shared.rw / "m").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert int(status.st_mtime) == 981173106
    (shared.rw / "m").chmod(0o4711)
    assert shared.sh("stat -c %a m") == "4711\n"


def test_a_shared_mapping_reaches_the_host(shared: Shared) -> None:
    (shared.rw / "map").write_bytes(bytes(3 * 4096 + 5))
    shared.python(
        "import mmap\nf = open('map', 'r+b')\nm = mmap.mmap(f.fileno(), 0)\n"
        "m[4090:4100] = b'0123456789'\nm[-3:] = b'end'\nm.flush()\nm.close()"
    )
    data = (shared.rw / "map").read_bytes()
    assert data[4090:4100] == b"0123456789"
    assert data[-3:] == b"end"
    assert data.count(0) == len(data) - 13


def test_a_mapping_shows_what_the_host_wrote_before(shared: Shared) -> None:
    (shared.rw / "map").write_bytes(b"new contents" * 1000)
    told = shared.python(
        "import mmap\nf = open('map', 'rb')\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print(len(m), m[:12])"
    )
    assert told == "12000 b'new contents'\n"


def test_appends_of_both_sides_are_all_there(shared: Shared) -> None:
    count = 200
    log = shared.rw / "log"
    log.touch()

    def append() -> None:
        with log.open("ab", buffering=0) as file:
            for number in range(count):
                file.write(f"host {number}\n".encode())
                if number % 20 == 0:
                    threading.Event().wait(0.02)

    thread = threading.Thread(target=append)
    thread.start()
    shared.sh(f"i=0; while [ $i -lt {count} ]; do echo guest $i >>log; i=$((i+1)); done")
    thread.join()
    lines = log.read_text().splitlines()
    for who in ("host", "guest"):
        assert [x for x in lines if x.startswith(who)] == [f"{who} {n}" for n in range(count)]
    assert shared.sh("sort log | sha256sum") == (
        hashlib.sha256("".join(f"{x}\n" for x in sorted(lines)).encode()).hexdigest() + "  -\n"
    )


def test_each_side_sees_the_others_overwrites_at_once(shared: Shared) -> None:
    shared.sh("printf guest >turn")
    turn = shared.rw / "turn"
    assert turn.read_bytes() == b"guest"
    script = (
        "exec 3<turn; echo up >ready; while [ ! -e go ]; do sleep 0.02; done; cat turn; rm go ready"
    )
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.append(shared.sh(script)))
    thread.start()
    until((shared.rw / "ready").exists, 30, "the guest has the file open")
    turn.write_bytes(b"host\n")
    (shared.rw / "go").touch()
    thread.join()
    assert done == ["host\n"]


@pytest.mark.timeout(3600 if FULL else 900)
def test_many_small_files(shared: Shared) -> None:
    # In batches: under emulation a call for all would be longer than a call may be.
    batches = [(n, min(n + 1000, SMALL_FILES) - 1) for n in range(0, SMALL_FILES, 1000)]
    shared.sh("mkdir many")
    for first, last in batches:
        shared.sh(f"cd many && for i in $(seq {first} {last}); do echo $i >f$i; done")
    found = {path.name: path.read_text() for path in (shared.rw / "many").iterdir()}
    assert found == {f"f{n}": f"{n}\n" for n in range(SMALL_FILES)}
    for number in range(SMALL_FILES):
        (shared.rw / "many" / f"f{number}").write_text(f"{number} again\n")
    assert shared.sh("ls many | wc -l") == f"{SMALL_FILES}\n"
    for first, last in batches:
        each = f"cd many && seq -f f%.0f {first} {last}"
        told = shared.sh(f"{each} | xargs cat")
        assert told == "".join(f"{n} again\n" for n in range(first, last + 1))
        shared.sh(f"{each} | xargs rm")
    shared.sh("rmdir many")
    assert not (shared.rw / "many").exists()


@pytest.mark.timeout(3600 if FULL else 900)
def test_a_big_file_both_ways(shared: Shared) -> None:
    block = os.urandom(MIB)
    digest = hashlib.sha256()
    with (shared.rw / "big").open("wb") as file:
        for number in range(BIG_BYTES // MIB):
            data = number.to_bytes(8, "big") + block[8:]
            file.write(data)
            digest.update(data)
    shared.sh("cp big copy")
    with (shared.rw / "copy").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
    shared.sh("rm big copy")


def test_names(shared: Shared) -> None:
    (shared.rw / "names").mkdir()
    for name in NAMES:
        (shared.rw / "names" / name).write_text("h")
    made = shared.python(
        f"names = {NAMES!a}\nprint(sorted(names) == sorted(os.listdir('names')))\n"
        "for n in names: open('names/' + n, 'a').write('g')"
    )
    assert made == "True\n"
    assert {p.name: p.read_text() for p in (shared.rw / "names").iterdir()} == dict.fromkeys(
        NAMES, "hg"
    )
    assert shared.code(f"touch names/{'y' * 256}") == 1


def test_hard_links(shared: Shared) -> None:
    shared.sh("echo one >h1 && ln h1 h2 && echo two >>h2")
    assert (shared.rw / "h1").samefile(shared.rw / "h2")
    assert (shared.rw / "h1").read_text() == "one\ntwo\n"
    assert shared.sh("stat -c %h h1") == "2\n"


def test_a_file_is_made_once_however_many_try(shared: Shared) -> None:
    made = shared.python(
        "n = 0\nfor i in range(100):\n"
        "    try: os.close(os.open('lock%d' % i, os.O_CREAT | os.O_EXCL)); n += 1\n"
        "    except FileExistsError: pass\nprint(n)"
    )
    assert made == "100\n"
    with pytest.raises(FileExistsError):
        os.open(shared.rw / "lock7", os.O_CREAT | os.O_EXCL)
    (shared.rw / "hosts").touch()
    assert shared.code("set -C; echo x >hosts") != 0
    shared.sh("rm lock*")


def test_locks_of_the_guests_processes(shared: Shared) -> None:
    script = (
        "touch l; flock l sh -c 'flock -n l true && echo both || echo one'; flock -n l echo free"
    )
    assert shared.sh(script) == "one\nfree\n"


def test_truncate(shared: Shared) -> None:
    shared.sh("echo 0123456789 >t && truncate -s 4 t")
    assert (shared.rw / "t").read_bytes() == b"0123"
    os.truncate(shared.rw / "t", 8)
    assert shared.sh("od -An -c t | tr -d ' '") == "0123\\0\\0\\0\\0\n"


def test_holes_stay_holes(shared: Shared) -> None:
    shared.sh("truncate -s 64M hole && printf end | dd of=hole bs=1 seek=67108861 conv=notrunc")
    status = (shared.rw / "hole").stat()
    assert status.st_size == 64 * MIB
    assert status.st_blocks * 512 < MIB
    assert shared.sh("tail -c 3 hole; rm hole") == "end"


def test_a_directory_of_two_thousand(shared: Shared) -> None:
    (shared.rw / "dir").mkdir()
    for number in range(2000):
        (shared.rw / "dir" / f"{number:04} {'n' * 60}").touch()
    assert shared.sh("ls dir | wc -l; ls dir | sort | uniq -d | wc -l").split() == ["2000", "0"]
    shutil.rmtree(shared.rw / "dir")


def test_what_is_deleted_while_it_is_open(shared: Shared) -> None:
    (shared.rw / "gone").write_text("still here\n")
    done: list[str] = []
    script = (
        "exec 3<gone; touch opened; while [ -e gone ]; do sleep 0.02; done; read -r l <&3; "
        "echo $l; rm opened"
    )
    thread = threading.Thread(target=lambda: done.append(shared.sh(script)))
    thread.start()
    until((shared.rw / "opened").exists, 30, "the guest has the file open")
    (shared.rw / "gone").unlink()
    thread.join()
    assert done == ["still here\n"]
    told = shared.python(
        "f = open('own-gone', 'w+')\nos.unlink('own-gone')\n"
        "f.write('x')\nf.seek(0)\nprint(f.read())"
    )
    assert told == "x\n"


def test_deep_directories(shared: Shared) -> None:
    deep = "/".join(["deep"] * 100)
    shared.sh(f"mkdir -p {deep} && echo bottom >{deep}/f")
    assert (shared.rw / deep / "f").read_text() == "bottom\n"
    shutil.rmtree(shared.rw / "deep")


def test_no_write_of_the_guests_root_passes_a_read_only_share(shared: Shared) -> None:
    before = listing(shared.ro)
    writes = (
        "echo x >new; echo x >kept; echo x >>kept; truncate -s 0 kept; rm kept; mv kept other; "
        "mkdir d; rmdir sub; ln kept k2; ln -s a b; chmod 777 kept; chmod 777 .; chown 1 kept; "
        "touch -d 2001-01-01 kept; mknod n c 1 3; mkfifo f; rm -rf sub; touch sub/new; "
        "dd if=/dev/zero of=kept bs=1 count=1 conv=notrunc; cp /bin/true sub/; sync"
    )
    attacks = (
        f"cd '/mnt/read, only'; mount -o remount,rw .; {writes}; cd /; "
        "umount '/mnt/read, only' && mkdir -p /tmp/again && "
        "mount -t 9p -o rw,trans=virtio,version=9p2000.L,cache=loose arcbox-ro0 /tmp/again && "
        f"grep -c ' /tmp/again 9p rw' /proc/mounts && cd /tmp/again; {writes}"
    )
    _, told, _ = shared.host.exec("dev", "sh", "-c", attacks)
    assert told == b"1\n", "the guest believes that it may write"
    shared.python(
        "for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_APPEND | os.O_RDWR):"
        "\n"
        "    try: os.write(os.open('/tmp/again/kept', flags), b'attack')\n"
        "    except OSError as error: print(error.errno)\n"
    )
    shared.host.sh("dev", "umount /tmp/again")
    assert listing(shared.ro) == before
    # It has to be as it was for those that follow.
    shared.host.arcbox("mount", "add", "dev", f"{shared.ro}:/mnt/read, only:ro")
    assert shared.host.sh("dev", "cat '/mnt/read, only/kept'") == "kept\n"
    assert listing(shared.ro) == before


def test_added_and_removed_while_it_runs(shared: Shared) -> None:
    more = shared.top / "more"
    more.mkdir()
    (more / "x").write_text("x")
    add = shared.host.arcbox("mount", "add", "dev", f"{more}:/srv/deep/more")
    assert add.stdout == b"/srv/deep/more\n"
    assert shared.host.sh("dev", "cat /srv/deep/more/x; echo y >/srv/deep/more/y") == "x"
    assert (more / "y").exists()
    user = shared.host.machines.Exec(
        machine_pb2.MachineExecRequest(
            id="dev", cmd=["sh", "-c", "cd /srv/deep/more; echo up; exec sleep 600"]
        )
    )
    assert next(user).data == b"up\n"
    refused = shared.host.arcbox("mount", "rm", "dev", "/srv/deep/more", check=False)
    assert refused.returncode == 1
    assert b"is in use in the guest by sleep (" in refused.stderr
    assert shared.states()["/srv/deep/more"] == "mounted"
    user.cancel()
    until(
        lambda: (
            not shared.host.arcbox("mount", "rm", "dev", "/srv/deep/more", check=False).returncode
        ),
        30,
        "nothing uses it any more",
    )
    assert shared.host.sh("dev", "ls /srv/deep/more; grep -c more /proc/mounts || true") == "0\n"
    listed = json.loads(shared.host.arcbox("mount", "ls", "dev", "--json").stdout)
    assert {m["guest_path"] for m in listed} == {"/mnt/rw", "/mnt/read, only"}


def test_copies_go_in_and_come_out(shared: Shared, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "ünï code").write_bytes(os.urandom(3 * MIB + 7))
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o750)
    (tree / "link").symlink_to("/nowhere")
    (tree / "again").hardlink_to(tree / "run")
    (tree / ("long" * 60)).touch()
    arcbox = shared.host.arcbox
    arcbox("cp", str(tree), "dev:/root/copy")
    assert shared.host.sh("dev", "cd /root/copy && stat -c '%a %h %U' run && readlink link") == (
        "750 2 root\n/nowhere\n"
    )
    arcbox("cp", f"{tree}/.", "dev:/root/copy")
    arcbox("cp", str(tree / "run"), "dev:/tmp/")
    assert shared.host.sh("dev", "ls /root/copy/tree 2>/dev/null; cat /tmp/run") == "#!/bin/sh\n"
    arcbox("cp", "dev:/root/copy", str(tmp_path / "back"))
    subprocess.run(["diff", "-r", "--no-dereference", tree, tmp_path / "back"], check=True)
    assert stat.S_IMODE((tmp_path / "back" / "run").stat().st_mode) == 0o750
    assert (tmp_path / "back" / "again").samefile(tmp_path / "back" / "run")
    arcbox("cp", "dev:/etc/hostname", str(tmp_path))
    assert (tmp_path / "hostname").read_text() == "dev\n"
    for wrong in (
        (f"{tmp_path}/no", "dev:/root/"),
        (str(tree), "dev:/no/where"),
        (str(tree), "dev:/etc/hostname"),
        ("dev:/no/such", str(tmp_path)),
        ("dev:/root/copy", f"{tmp_path}/hostname"),
    ):
        failed = arcbox("cp", *wrong, check=False)
        assert (failed.returncode, failed.stderr.count(b"\n")) == (1, 1), failed


def test_what_owns_a_copy_is_what_owns_its_directory(shared: Shared, tmp_path: Path) -> None:
    shared.host.sh("dev", "mkdir -p /srv/others && chown 33:33 /srv/others")
    (tmp_path / "f").touch()
    shared.host.arcbox("cp", str(tmp_path / "f"), "dev:/srv/others/g")
    assert shared.host.sh("dev", "stat -c '%u %g' /srv/others/g") == "33 33\n"


def test_a_share_in_use_refuses_a_suspend(shared: Shared) -> None:
    user = shared.host.machines.Exec(
        machine_pb2.MachineExecRequest(
            id="dev", cmd=["sh", "-c", "exec 3>/mnt/rw/held; echo up; exec sleep 600"]
        )
    )
    assert next(user).data == b"up\n"
    with pytest.raises(grpc.RpcError) as refused:
        shared.host.ext.Suspend(host_pb2.SuspendRequest(id="dev"), timeout=120)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "sleep (" in str(refused.value.details())
    assert shared.host.state("dev") == "running"
    assert set(shared.states().values()) == {"mounted"}
    assert shared.sh("cat from-host") == "to the guest\n"
    user.cancel()


def test_a_suspended_machine_has_them_again_when_it_goes_on(shared: Shared) -> None:
    until(
        lambda: not shared.host.arcbox("suspend", "dev", check=False).returncode,
        60,
        "nothing uses them any more",
    )
    (shared.rw / "meanwhile").write_text("meanwhile\n")
    shared.host.ext.Resume(host_pb2.ResumeRequest(id="dev"), timeout=300)
    assert shared.sh("cat meanwhile") == "meanwhile\n"
    assert set(shared.states().values()) == {"mounted"}
    shared.host.ext.CreateSnapshot(
        host_pb2.CreateSnapshotRequest(id="dev", name="live"), timeout=300
    )
    assert shared.sh("cat meanwhile") == "meanwhile\n"


def test_another_daemon_knows_them(shared: Shared) -> None:
    kill_daemon(shared.host)
    assert set(shared.states().values()) == {"mounted"}
    assert shared.sh("cat from-host") == "to the guest\n"


def test_they_come_back_with_the_guest(shared: Shared) -> None:
    shared.host.machines.SSHInfo(machine_pb2.SSHInfoRequest(id="dev"), timeout=600)
    reboot(shared.host, "dev", "systemctl", "--no-block", "reboot")
    shown = ("cat", "/mnt/rw/from-host")
    until(
        lambda: shared.host.exec("dev", *shown)[1] == b"to the guest\n", 60, "its mounts are back"
    )
    assert shared.host.sh("dev", "cat '/mnt/read, only/kept'") == "kept\n"


def test_stopped_and_started_with_one_that_is_gone(shared: Shared) -> None:
    shared.host.machines.Stop(machine_pb2.StopMachineRequest(id="dev"), timeout=300)
    shared.ro.rename(shared.top / "away")
    started = shared.host.arcbox("start", "dev")
    assert b"is not mounted on /mnt/read, only: the host path" in started.stderr
    assert shared.states() == {"/mnt/rw": "mounted", "/mnt/read, only": "failed"}
    assert shared.sh("cat from-host") == "to the guest\n"
    (shared.top / "away").rename(shared.ro)
    shared.host.arcbox("mount", "add", "dev", f"{shared.ro}:/mnt/read, only:ro")
    assert shared.host.sh("dev", "cat '/mnt/read, only/kept'") == "kept\n"
