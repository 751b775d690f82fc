"""Real machines, as a ladder: daemon, machine_created, machine_booted, machine_ready.

Booting takes long under emulation, so a module shares one machine, and its tests go up the ladder
in order. A test that fails prints the end of the console; when a module ends, no QEMU may be left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import machine_pb2, machine_pb2_grpc

ARCBOX = Path(sys.executable).parent / "arcbox"
MIB = 1 << 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test here the mark and the time that real machines need."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(900))


@dataclass
class Host:
    """A daemon with a state directory of its own, and clients for it."""

    home: Path
    env: dict[str, str]
    machines: machine_pb2_grpc.MachineServiceStub
    ext: host_pb2_grpc.HostServiceStub

    def arcbox(
        self,
        *args: str,
        stdin: bytes | None = None,
        check: bool = True,
        timeout_s: float = 600,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command as a user does."""
        done = subprocess.run(
            [str(ARCBOX), *args],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            env=self.env,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"arcbox {' '.join(args)} ended with {done.returncode}:\n"
                f"{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
            )
        return done

    def exec(self, name: str, *cmd: str, **fields: object) -> tuple[int, bytes, bytes]:
        """Run a command in a machine by the contract's own call."""
        out: dict[str, list[bytes]] = {"stdout": [], "stderr": [], "": []}
        last = None
        request = machine_pb2.MachineExecRequest(id=name, cmd=cmd, **fields)  # type: ignore[arg-type]
        for last in self.machines.Exec(request, timeout=300):
            out[last.stream].append(last.data)
        assert last is not None
        assert last.done
        return last.exit_code, b"".join(out["stdout"]), b"".join(out["stderr"])

    def sh(self, name: str, script: str) -> str:
        """Run a shell script in a machine, which must succeed; give what it printed."""
        code, out, err = self.exec(name, "sh", "-c", script)
        assert code == 0, (code, out, err)
        return out.decode()

    def described(self, name: str) -> host_pb2.MachineExtra:
        """Tell what the contract's Inspect has no field for."""
        return self.ext.InspectExtra(host_pb2.InspectExtraRequest(id=name), timeout=10)

    def state(self, name: str) -> str:
        """Tell a machine's state."""
        return self.machines.Inspect(machine_pb2.InspectMachineRequest(id=name), timeout=10).state


def qemu_pids(home: Path) -> list[int]:
    """Find the QEMU processes whose files are below a state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                cmdline = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in cmdline and os.fsencode(str(home) + "/") in cmdline:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Give what the daemon's environment has beside the usual; a module may have its own."""
    return {}


@pytest.fixture(scope="module")
def host(settings: dict[str, str]) -> Iterator[Host]:
    """Start a daemon as a user does; afterwards nothing of it may be left."""
    # Short: a unix socket's path holds 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="abx-"))
    # No template is made beside the tests, only by those who ask for one.
    env = {**os.environ, "ARCBOX_HOME": str(home), "ARCBOX_TEMPLATES": "manual", **settings}
    subprocess.run([str(ARCBOX), "daemon", "start"], env=env, check=True, timeout=60)
    with grpc.insecure_channel(f"unix:{home}/run/arcbox.sock") as channel:
        host = Host(
            home,
            env,
            machine_pb2_grpc.MachineServiceStub(channel),
            host_pb2_grpc.HostServiceStub(channel),
        )
        try:
            yield host
        finally:
            try:
                for machine in host.machines.List(
                    machine_pb2.ListMachinesRequest(all=True)
                ).machines:
                    host.machines.Remove(
                        machine_pb2.RemoveMachineRequest(id=machine.id, force=True, volumes=True)
                    )
                left = qemu_pids(home)
            finally:
                subprocess.run([str(ARCBOX), "daemon", "stop"], env=env, check=False, timeout=60)
                for pid in qemu_pids(home):
                    os.kill(pid, 9)
    assert not left, f"QEMU survived its machine: {left}"
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def machine_created(host: Host) -> str:
    """Create a machine that is small enough for CI."""
    host.machines.Create(
        machine_pb2.CreateMachineRequest(name="dev", cpus=2, memory=1024 * MIB, disk_size=8 << 30),
        timeout=1200,
    )
    return "dev"


@pytest.fixture(scope="module")
def machine_booted(host: Host, machine_created: str) -> str:
    """Start it: its agent answers, its init may still be at work."""
    host.machines.Start(machine_pb2.StartMachineRequest(id=machine_created), timeout=1200)
    return machine_created


@pytest.fixture(scope="module")
def machine_ready(host: Host, machine_booted: str) -> str:
    """Wait until its ssh server listens."""
    host.machines.SSHInfo(machine_pb2.SSHInfoRequest(id=machine_booted), timeout=600)
    return machine_booted


@pytest.fixture(autouse=True)
def console_on_failure(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the end of every machine's console when a test failed."""
    yield
    report: object = getattr(request.node, "report_call", None)
    if getattr(report, "failed", False) and "host" in request.fixturenames:
        host: Host = request.getfixturevalue("host")
        for log in host.home.glob("machines/*/console.log"):
            sys.stderr.write(f"--- {log}\n{log.read_bytes()[-3000:].decode(errors='replace')}\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keep the outcome of the test's body for `console_on_failure`."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if call.when == "call":
        item.report_call = report  # type: ignore[attr-defined]
