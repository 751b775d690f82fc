"""Exec against the real agent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1.guest_pb2 import CloseStdin, ExecInput, ExecStart, Resize

if TYPE_CHECKING:
    from tests.integration.agent.conftest import Client

CLOSE = ExecInput(close_stdin=CloseStdin())


async def alive(marker: str) -> list[int]:
    """Find the processes whose command line holds the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


async def until_gone(marker: str) -> None:
    async with asyncio.timeout(5):
        while await alive(marker):  # noqa: ASYNC110  other processes tell nobody
            await asyncio.sleep(0.02)


async def test_streams_and_code_are_told_apart(client: Client) -> None:
    result = await client.run("sh", "-c", "echo out; echo err >&2; exit 42")
    assert (result.stdout, result.stderr, result.code) == (b"out\n", b"err\n", 42)


async def test_arguments_reach_the_program_as_they_are(client: Client) -> None:
    result = await client.run("printf", "%s|", "a b", "$HOME", "'\"", "", "é", "*")
    assert result.stdout.decode() == "a b|$HOME|'\"||é|*|"


async def test_every_byte_survives(client: Client) -> None:
    data = bytes(range(256)) * 5000
    start = ExecStart(stdin=True)
    inputs = [ExecInput(stdin=data[i : i + 100_000]) for i in range(0, len(data), 100_000)]
    result = await client.run("cat", start=start, inputs=(*inputs, CLOSE))
    assert result.stdout == data


async def test_closing_the_call_for_writing_closes_stdin(client: Client) -> None:
    result = await client.run(
        "cat", start=ExecStart(stdin=True), inputs=(ExecInput(stdin=b"hello"),)
    )
    assert (result.stdout, result.code) == (b"hello", 0)


async def test_input_that_nobody_reads_is_dropped(client: Client) -> None:
    inputs = (ExecInput(stdin=b"x" * 1_000_000),) * 3
    result = await client.run("true", start=ExecStart(stdin=True), inputs=inputs)
    assert result.code == 0


async def test_without_stdin_there_is_an_empty_one(client: Client) -> None:
    result = await client.run("cat")
    assert (result.stdout, result.code) == (b"", 0)


async def test_large_output_is_whole_and_takes_no_memory(client: Client) -> None:
    size = 100 << 20
    start = ExecStart(argv=["head", "-c", str(size), "/dev/zero"])

    async def requests() -> AsyncIterator[ExecInput]:
        yield ExecInput(start=start)

    digest = 0
    peak = 0
    async for output in client.guest.Exec(requests()):
        if not digest:
            await asyncio.sleep(0.5)  # a client that is slow at first: the agent has to wait
        digest += len(output.stdout)
        if output.HasField("exit"):
            assert output.exit.code == 0
        peak = max(peak, resident_bytes(client.pid)) if digest % 64 == 0 else peak
    assert digest == size
    assert peak < 80 << 20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_order_is_kept(client: Client) -> None:
    result = await client.run(
        "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"
    )
    expected = "".join(f"{i}\n" for i in range(20000)).encode()
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(expected).digest()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_death_by_signal(client: Client, number: signal.Signals) -> None:
    result = await client.run("sh", "-c", f"kill -{int(number)} $$")
    assert result.code == 128 + number
    assert result.exit.reason


@pytest.mark.parametrize(
    ("argv", "cwd", "code", "word"),
    [
        (["no-such-program"], "", 127, "no-such-program"),
        (["/no/such/program"], "", 127, "/no/such/program"),
        (["/etc/passwd"], "", 126, "Permission denied"),
        (["/etc"], "", 126, "/etc"),
        (["true"], "/no/such/folder", 127, "/no/such/folder"),
        (["true"], "/etc/passwd", 127, "/etc/passwd"),
    ],
)
async def test_what_cannot_be_run(
    client: Client, argv: list[str], cwd: str, code: int, word: str
) -> None:
    result = await client.run(*argv, start=ExecStart(working_dir=cwd))
    assert result.code == code
    assert word in result.exit.reason


@pytest.mark.parametrize(
    "start",
    [
        ExecStart(),
        ExecStart(argv=[""]),
        ExecStart(argv=["a\0b"]),
        ExecStart(argv=["true"], working_dir="relative"),
        ExecStart(argv=["true"], working_dir="/\0"),
        ExecStart(argv=["true"], env={"A=B": "c"}),
        ExecStart(argv=["true"], env={"": "c"}),
        ExecStart(argv=["true"], env={"A": "\0"}),
        ExecStart(argv=["true"], user="no-such-user"),
        ExecStart(argv=["true"], user="root:no-such-group"),
        ExecStart(argv=["true"], user="99999999999"),
    ],
)
async def test_requests_that_make_no_sense(client: Client, start: ExecStart) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.run(start=start)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details()


async def test_the_first_input_must_be_start(client: Client) -> None:
    async def requests() -> AsyncIterator[ExecInput]:
        yield ExecInput(stdin=b"x")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in client.guest.Exec(requests()):
            pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_second_start_ends_the_call_and_the_process(client: Client) -> None:
    second = ExecInput(start=ExecStart(argv=["true"]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.run("sleep", "4143", inputs=(second,))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    await until_gone("4143")


async def test_environment_is_the_users_and_nothing_of_the_agents(client: Client) -> None:
    result = await client.run(
        "env", start=ExecStart(env={"PATH": "/usr/bin:/bin", "MINE": "a=b\nc"})
    )
    text = result.stdout.decode()
    assert "SECRET" not in text
    assert "PYTHON" not in text
    assert "MINE=a=b\nc\n" in text
    assert "HOME=/root\n" in text
    assert "USER=root\n" in text
    assert "PATH=/usr/bin:/bin\n" in text


async def test_the_given_path_finds_the_program(client: Client, tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    start = ExecStart(env={"PATH": f"/nonexistent:{tmp_path}:/bin"})
    assert (await client.run("mine", start=start)).stdout == b"found\n"


async def test_nothing_of_the_agents_is_inherited(client: Client) -> None:
    script = "ls /proc/self/fd; grep -E 'Sig(Blk|Ign)|NoNewPrivs' /proc/self/status; umask; pwd"
    result = await client.run("sh", "-c", script, start=ExecStart(working_dir="/"))
    lines = result.stdout.decode().split()
    assert lines[:4] == ["0", "1", "2", "3"]  # 3 is of ls itself
    assert lines[lines.index("SigBlk:") + 1] == "0" * 16
    assert lines[lines.index("SigIgn:") + 1] == "0" * 16
    assert lines[-2:] == ["0022", "/"]


async def test_it_runs_in_a_session_of_its_own(client: Client) -> None:
    result = await client.run("sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat")
    pid, group, session = result.stdout.split()
    assert pid == group == session


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("alice", ["4242", "4242", "50 999 4242"]),
        ("4242", ["4242", "4242", "50 999 4242"]),
        ("alice:staff", ["4242", "50", "50"]),
        ("alice:50", ["4242", "50", "50"]),
        ("31337", ["31337", "0", "0"]),
        ("", ["0", "0", "0"]),
    ],
)
async def test_users_and_groups_are_those_of_the_guest(
    client: Client, user: str, expected: list[str]
) -> None:
    result = await client.run(
        "sh", "-c", "id -u; id -g; grep Groups /proc/$$/status", start=ExecStart(user=user)
    )
    uid, gid, groups = result.stdout.decode().splitlines()
    assert [uid, gid, " ".join(groups.split()[1:])] == expected


async def test_a_user_may_not_run_what_only_root_may(client: Client, tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    result = await client.run(str(program), start=ExecStart(user="alice", working_dir="/"))
    assert result.code == 126


async def test_a_missing_home_is_no_reason_to_fail(client: Client) -> None:
    result = await client.run("pwd", start=ExecStart(user="alice"))
    assert (result.stdout, result.code) == (b"/\n", 0)


async def test_a_terminal(client: Client) -> None:
    start = ExecStart(tty=True, rows=33, columns=77)
    result = await client.run("sh", "-c", "tty; stty size; echo $TERM; echo e >&2", start=start)
    lines = result.stdout.decode().splitlines()
    assert lines[0].startswith("/dev/pts/")  # without stdin too
    start.stdin = True
    result = await client.run(
        "sh", "-c", "tty; stty size; echo $TERM; echo e >&2; exit 5", start=start
    )
    lines = result.stdout.decode().splitlines()
    assert lines[0].startswith("/dev/pts/")
    assert lines[1:] == ["33 77", "xterm-256color", "e"]
    assert (result.stderr, result.code) == (b"", 5)


async def test_a_terminal_gets_the_end_of_file_and_echoes(client: Client) -> None:
    start = ExecStart(tty=True, stdin=True)
    result = await client.run("cat", start=start, inputs=(ExecInput(stdin=b"half"), CLOSE))
    assert result.code == 0
    assert result.stdout.startswith(b"half")


async def test_a_terminal_is_read_to_its_end(client: Client) -> None:
    start = ExecStart(tty=True)
    result = await client.run("sh", "-c", "seq 1 20000; echo end", start=start)
    assert result.stdout.endswith(b"20000\r\nend\r\n")


async def test_who_closes_the_terminal_is_not_hung_up(client: Client) -> None:
    script = "exec <&- >&- 2>&-; sleep 0.2; echo again >/dev/tty; exit 7"
    result = await client.run("sh", "-c", script, start=ExecStart(tty=True, stdin=True))
    assert (result.stdout, result.code) == (b"again\r\n", 7)


async def test_resize(client: Client) -> None:
    queue: asyncio.Queue[ExecInput | None] = asyncio.Queue()
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.02; done"
    start = ExecStart(argv=["sh", "-c", script], tty=True, stdin=True, rows=10, columns=10)
    await queue.put(ExecInput(start=start))
    call = client.guest.Exec(drain(queue))
    text = b""
    async for output in call:
        text += output.stdout
        if text == b"ready\r\n":
            await queue.put(ExecInput(resize=Resize(rows=50, columns=132)))
    await queue.put(None)
    assert text == b"ready\r\n50 132\r\n"


async def drain(queue: asyncio.Queue[ExecInput | None]) -> AsyncIterator[ExecInput]:
    while (message := await queue.get()) is not None:
        yield message


async def test_signal(client: Client) -> None:
    queue: asyncio.Queue[ExecInput | None] = asyncio.Queue()
    script = "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.02; done"
    await queue.put(ExecInput(start=ExecStart(argv=["sh", "-c", script])))
    text = b""
    code = -1
    async for output in client.guest.Exec(drain(queue)):
        text += output.stdout
        if output.stdout == b"ready\n":
            await queue.put(ExecInput(signal=signal.SIGUSR1))
        if output.HasField("exit"):
            code = output.exit.code
    await queue.put(None)
    assert (text, code) == (b"ready\ncaught\n", 9)


@pytest.mark.parametrize("tty", [False, True])
async def test_cancel_kills_every_descendant(client: Client, cgroup2: str, tty: bool) -> None:
    if not cgroup2:
        pytest.skip("no cgroup2 on this host")
    script = "(setsid sh -c 'sleep 4141 & sleep 4141' &) ; sleep 4141 & echo ready; sleep 4141"
    start = ExecStart(argv=["sh", "-c", script], tty=tty)
    await cancelled_when_ready(client, start)
    await until_gone("4141")


async def test_cancel_without_control_groups_kills_the_family(bare_client: Client) -> None:
    script = "sh -c 'sleep 4142 & sleep 4142' & setsid sleep 4142 & echo ready; sleep 4142"
    await cancelled_when_ready(bare_client, ExecStart(argv=["sh", "-c", script]))
    await until_gone("4142")


async def cancelled_when_ready(client: Client, start: ExecStart) -> None:
    queue: asyncio.Queue[ExecInput | None] = asyncio.Queue()
    await queue.put(ExecInput(start=start))
    call = client.guest.Exec(drain(queue))
    async for output in call:
        assert output.stdout.startswith(b"ready")
        break
    call.cancel()
    await queue.put(None)


async def test_a_broken_connection_kills_too(client: Client, shared_agent: object) -> None:
    socket = shared_agent.socket  # type: ignore[attr-defined]
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        other = type(client)(channel, client.root, client.pid)
        call = other.guest.Exec(drain_one(ExecStart(argv=["sh", "-c", "echo ready; sleep 4144"])))
        async for _ in call:
            break
    await until_gone("4144")


async def drain_one(start: ExecStart) -> AsyncIterator[ExecInput]:
    yield ExecInput(start=start)
    await asyncio.sleep(10)


async def test_what_runs_in_the_background_lives_on_and_holds_nothing_up(
    client: Client, cgroup2: str
) -> None:
    began = time.monotonic()
    result = await client.run("sh", "-c", "sleep 4145 & echo started $!")
    assert time.monotonic() - began < 5
    assert result.code == 0
    pid = int(result.stdout.split()[1])
    await asyncio.sleep(0.2)  # by then its group could not be removed
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)
    if cgroup2:
        await until_gone("4145")
        await client.run("true")  # the next call sweeps up
        async with asyncio.timeout(5):
            while len(list(Path(cgroup2, "arcbox").glob("exec-*"))) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_many_at_once(client: Client) -> None:
    results = await asyncio.gather(
        *(client.run("sh", "-c", f"echo {i}; exit {i}") for i in range(30))
    )
    assert [result.code for result in results] == list(range(30))
    assert [int(result.stdout) for result in results] == list(range(30))


async def test_no_descriptor_is_left(client: Client) -> None:
    folder = Path(f"/proc/{client.pid}/fd")
    await client.run("true")
    before = len(list(folder.iterdir()))
    for _ in range(10):
        await client.run("true")
        await client.run("nope")
        await client.run("true", start=ExecStart(tty=True, stdin=True))
    # What a command leaves is taken away when nobody waits for it any more.
    async with asyncio.timeout(10):
        while len(list(folder.iterdir())) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_it_works_without_control_groups_and_ssl(bare_client: Client) -> None:
    result = await bare_client.run(
        "sh",
        "-c",
        "cat; exit 3",
        start=ExecStart(stdin=True),
        inputs=(ExecInput(stdin=b"x"), CLOSE),
    )
    assert (result.stdout, result.code) == (b"x", 3)


async def test_without_its_forker_the_agent_forks_itself(client: Client, cgroup2: str) -> None:
    if not cgroup2:
        pytest.skip("no cgroup2 here: the forker is not used")
    children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    (forker,) = [
        int(each)
        for each in children
        if Path(f"/proc/{each}/comm").read_text().strip() == "arcbox-forker"
    ]
    result = await client.run("sh", "-c", "echo $PPID; ls -l /proc/self/fd | wc -l")
    assert result.stdout.split()[0].decode() == str(client.pid)  # not the forker's child
    os.kill(forker, signal.SIGKILL)
    for _ in range(2):
        result = await client.run("sh", "-c", "echo out; echo err >&2; exit 7")
        assert (result.stdout, result.stderr, result.code) == (b"out\n", b"err\n", 7)


async def test_a_command_too_long_for_the_forker_runs(client: Client) -> None:
    result = await client.run("echo", "x" * 100_000)
    assert result.stdout == b"x" * 100_000 + b"\n"
