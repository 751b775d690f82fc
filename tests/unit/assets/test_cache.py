"""The cache: one builder at a time, nothing half made, nothing left behind."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from arcboxd.assets.cache import MANIFEST, Cache, key_of
from arcboxd.errors import AssetBuildError, CorruptError, NoRoomError

INPUTS: dict[str, str | int | list[str]] = {"recipe": "1", "packages": ["a=1", "b=2"]}


async def _build_hello(target: Path) -> None:
    (target / "hello").write_text("hello")
    (target / "sub").mkdir()
    (target / "sub" / "program").write_text("#!/bin/sh\n")
    (target / "sub" / "program").chmod(0o755)


async def test_builds_once_and_finds_it_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calls = 0

    async def build(target: Path) -> None:
        nonlocal calls
        calls += 1
        await _build_hello(target)

    first = await cache.ensure("thing", INPUTS, build)
    second = await Cache(tmp_path).ensure("thing", INPUTS, build)
    assert (calls, first) == (1, second)
    assert first.file("hello").read_text() == "hello"
    assert [entry.key for entry in cache.entries("thing")] == [first.key]
    manifest = json.loads(first.file(MANIFEST).read_text())
    assert manifest["inputs"] == INPUTS
    assert manifest["files"]["hello"]["bytes"] == 5
    modes = [stat.S_IMODE(first.file(n).stat().st_mode) for n in ("hello", "sub/program", MANIFEST)]
    assert modes == [0o444, 0o555, 0o444]


async def test_tasks_of_one_process_share_the_work(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    begun, go = asyncio.Event(), asyncio.Event()
    waits: list[str] = []

    async def build(target: Path) -> None:
        begun.set()
        await go.wait()
        await _build_hello(target)

    def told() -> None:
        waits.append("told")
        go.set()

    async with asyncio.TaskGroup() as group:
        one = group.create_task(cache.ensure("thing", INPUTS, build))
        await begun.wait()
        two = group.create_task(cache.ensure("thing", INPUTS, build, on_wait=told))
    assert one.result() == two.result()
    assert waits == ["told"]


_BUILDER = """
import asyncio, sys, time
from pathlib import Path
from arcboxd.assets.cache import Cache
root, calls = Path(sys.argv[1]), Path(sys.argv[2])
async def build(target):
    with calls.open("a") as file:
        file.write("built\\n")
    time.sleep(0.3)
    (target / "hello").write_text("hello")
print("ready", flush=True)
sys.stdin.readline()
entry = asyncio.run(Cache(root).ensure("thing", {"a": 1}, build, on_wait=lambda: print("waited")))
print(entry.file("hello").read_text())
"""


def test_two_processes_do_the_work_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", _BUILDER, str(tmp_path / "cache"), str(tmp_path / "calls")]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environ}
    builders = [subprocess.Popen(argv, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for builder in builders:
        builder.stdout.readline()
    for builder in builders:
        builder.stdin.write("go\n")
        builder.stdin.flush()
    said = sorted(builder.communicate(timeout=15)[0] for builder in builders)
    assert said == ["hello\n", "waited\nhello\n"]
    assert (tmp_path / "calls").read_text() == "built\n"


async def test_what_a_crash_left_is_removed_but_not_what_is_being_built(tmp_path: Path) -> None:
    crashed = tmp_path / "thing-0123.partial"
    busy = tmp_path / "other-4567.partial"
    for path in (crashed, busy):
        path.mkdir()
        (path / "half").write_text("half")
    (tmp_path / ".locks").mkdir()
    with (tmp_path / ".locks" / "other-4567").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await Cache(tmp_path).ensure("thing", INPUTS, _build_hello)
    assert not crashed.exists()
    assert busy.exists()


async def test_a_failed_or_cancelled_build_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    async def fail(target: Path) -> None:
        (target / "half").write_text("half")
        raise CorruptError("bad")

    with pytest.raises(CorruptError):
        await cache.ensure("thing", INPUTS, fail)

    begun = asyncio.Event()

    async def hang(target: Path) -> None:
        (target / "half").write_text("half")
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(cache.ensure("thing", INPUTS, hang))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]
    assert (await cache.ensure("thing", INPUTS, _build_hello)).file("hello").exists()


@pytest.mark.parametrize(("number", "raised"), [(28, NoRoomError), (13, AssetBuildError)])
async def test_errors_of_the_system_are_told_as_ours(
    tmp_path: Path, number: int, raised: type[Exception]
) -> None:
    async def build(target: Path) -> None:
        raise OSError(number, "no")

    with pytest.raises(raised, match="thing"):
        await Cache(tmp_path).ensure("thing", INPUTS, build)


async def test_a_damaged_entry_is_built_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = await cache.ensure("thing", INPUTS, _build_hello)
    assert cache.verify(entry) == []
    entry.file("hello").chmod(0o644)
    entry.file("hello").write_text("jello")
    assert cache.verify(entry) == ["hello"]
    entry.file("hello").write_text("cut")
    assert cache.find("thing", entry.key) is None
    again = await cache.ensure("thing", INPUTS, _build_hello)
    assert cache.verify(again) == []


def test_the_key_follows_every_input_and_not_their_order() -> None:
    assert key_of(INPUTS) == key_of(dict(reversed(INPUTS.items())))
    assert key_of(INPUTS) != key_of({**INPUTS, "recipe": "2"})
    assert key_of(INPUTS) != key_of({**INPUTS, "packages": ["b=2", "a=1"]})


async def test_holes_are_kept_and_cost_nothing(tmp_path: Path) -> None:
    async def build(target: Path) -> None:
        with (target / "disk").open("wb") as file:
            file.truncate(1 << 40)
            file.seek(1 << 30)
            file.write(b"data")

    cache = Cache(tmp_path)
    entry = await cache.ensure("disk", INPUTS, build)
    assert entry.file("disk").stat().st_blocks < 100
    assert cache.verify(entry) == []


async def test_prune_takes_what_is_not_kept_and_not_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    async def build(target: Path) -> None:
        (target / "data").write_bytes(b"x" * 100_000)

    kept, named, opened, going, elsewhere, other = [
        await cache.ensure(kind, {"n": n}, build)
        for n, kind in enumerate(["thing"] * 5 + ["other"])
    ]
    os.link(elsewhere.file("data"), tmp_path / "second name")
    argv = [sys.executable, "-c", "input()", f"file={named.file('data')},ro"]
    with opened.file("data").open(), subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        names, freed = await cache.prune(("thing",), {kept.name})
        process.communicate(b"\n")
    assert sorted(names) == sorted([going.name, elsewhere.name])
    assert 100_000 <= freed < 200_000  # the other's data is there still, by its second name
    assert {e.name for e in cache.entries("thing")} == {kept.name, named.name, opened.name}
    assert [*cache.entries("other")] == [other]
    assert not [*tmp_path.glob("*.partial")]


async def test_prune_leaves_what_is_being_made_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = await cache.ensure("thing", INPUTS, _build_hello)
    with cache._try_lock(entry.name):
        assert await cache.prune(("thing",), ()) == ([], 0)
    assert (await cache.prune(("thing",), ()))[0] == [entry.name]
