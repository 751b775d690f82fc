"""The real agent as a process on this host, and a client for it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, guest_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import agent_pb2_grpc

STARTED = "from arcbox_agent.startup import import_main; main = import_main().main"
BARE = "sys.modules['ssl'] = sys.modules['_ssl'] = None; from arcbox_agent.main import main"
SOURCE = Path(__file__).parents[3] / "src"


class Agent:
    """A running agent."""

    def __init__(self, folder: Path, cgroup: str, *, prelude: str = STARTED) -> None:
        self.root = folder / "root"
        self.socket = folder / "a"
        make_root(self.root)
        program = f"import sys\n{prelude}\nsys.exit(main(sys.argv[1:]))"
        options = ["--listen", str(self.socket), "--root", str(self.root), "--cgroup", cgroup]
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *options],
            env={"PYTHONPATH": str(SOURCE), "SECRET": "of the agent"},
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert self.process.stderr is not None
        log = b""
        while b"listens on" not in log:
            line = self.process.stderr.readline()
            assert line, log
            log += line

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(5)
        finally:
            self.process.kill()
            assert self.process.stderr is not None
            self.process.stderr.close()


def make_root(root: Path) -> None:
    """Make the files of a small distribution."""
    for folder in (
        "etc/skel/.config",
        "etc/ssh",
        "etc/sudoers.d",
        "root",
        "home",
        "bin",
        "run/arcbox",
    ):
        (root / folder).mkdir(parents=True)
    etc = root / "etc"
    (etc / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nalice:x:4242:4242::/home/alice:/bin/sh\nlp:x:7:7::/:/bin/sh\n"
    )
    (etc / "group").write_text(
        "root:x:0:\nsudo:x:27:\nalice:x:4242:\nstaff:x:50:alice,bob\nlp:x:7:\ndocker:x:999:alice\n"
    )
    (etc / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    (etc / "shadow").chmod(0o640)
    (etc / "hosts").write_text("127.0.0.1\tlocalhost\n127.0.1.1\told\n# mine\n")
    (etc / "skel" / ".profile").write_text("# skel\n")
    (etc / "os-release").write_text('NAME="Test \\"Linux\\""\nVERSION_ID=\'7\'\n')


@pytest.fixture(scope="session")
def cgroup2() -> Iterator[str]:
    """A mounted cgroup2 hierarchy, or an empty string where there can be none."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tempfile.mkdtemp(prefix="cg")
    if libc.mount(b"cgroup2", folder.encode(), b"cgroup2", 0, None) != 0:
        yield ""
    else:
        # All mounts show one tree: a group of our own, since another run may be going on beside.
        own = Path(folder, f"arcbox-test-{os.getpid()}")
        own.mkdir()
        yield str(own)
        for group in (*own.glob("arcbox/*-*"), *own.glob("arcbox"), own):
            group.rmdir()
        libc.umount2(folder.encode(), 2)
    Path(folder).rmdir()


@pytest.fixture(scope="session")
def shared_agent(cgroup2: str) -> Iterator[Agent]:
    folder = Path(tempfile.mkdtemp(prefix="ag"))
    agent = Agent(folder, cgroup2)
    yield agent
    assert agent.stop() == 0
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bare_agent() -> Iterator[Agent]:
    """An agent without control groups, and without what the bundle does not have."""
    folder = Path(tempfile.mkdtemp(prefix="ag"))
    agent = Agent(folder, "", prelude=BARE)
    yield agent
    assert agent.stop() == 0
    shutil.rmtree(folder)


class Result:
    """What a finished Exec gave."""

    def __init__(self) -> None:
        self.stdout = b""
        self.stderr = b""
        self.exit = guest_pb2.ExecExit(code=-1)

    @property
    def code(self) -> int:
        return self.exit.code


class Client:
    """Typed calls to one agent."""

    def __init__(self, channel: grpc.aio.Channel, root: Path, pid: int) -> None:
        self.channel = channel
        self.root = root
        self.pid = pid
        self.agent: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
        self.guest: guest_pb2_grpc.GuestServiceAsyncStub = guest_pb2_grpc.GuestServiceStub(channel)

    async def run(
        self,
        *argv: str,
        inputs: tuple[guest_pb2.ExecInput, ...] = (),
        start: guest_pb2.ExecStart | None = None,
    ) -> Result:
        """Run a command to its end; `start` gives what argv does not say."""
        first = guest_pb2.ExecStart(argv=argv)
        if start is not None:
            first.MergeFrom(start)

        async def requests() -> AsyncIterator[guest_pb2.ExecInput]:
            yield guest_pb2.ExecInput(start=first)
            for message in inputs:
                yield message

        result = Result()
        async for output in self.guest.Exec(requests()):
            assert result.code == -1, "output after the exit"
            match output.WhichOneof("output"):
                case "stdout":
                    result.stdout += output.stdout
                case "stderr":
                    result.stderr += output.stderr
                case _:
                    result.exit = output.exit
        return result


@pytest.fixture
async def client(shared_agent: Agent) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"unix:{shared_agent.socket}") as channel:
        yield Client(channel, shared_agent.root, shared_agent.process.pid)


@pytest.fixture
async def bare_client(bare_agent: Agent) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"unix:{bare_agent.socket}") as channel:
        yield Client(channel, bare_agent.root, bare_agent.process.pid)
