"""Records: what is written is what is read, whatever is in it."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcboxd.domain.machine import (
    DirectoryMount,
    Machine,
    MachineSpec,
    MachineState,
    ProcessIdentity,
)
from arcboxd.errors import StoreError
from arcboxd.paths import Paths
from arcboxd.store.database import MachineDatabase
from arcboxd.store.migrations import MIGRATIONS, migrate
from arcboxd.store.record import COLUMNS, from_fields, read_file, to_fields

MACHINE = Machine(
    id="0123456789ab",
    spec=MachineSpec("dev", 2, 1 << 30, 64 << 30, "debian", "12", "x86_64", "quiet", ("key a",)),
    state=MachineState.RUNNING,
    created_unix_ns=1,
    image_key="image",
    user="me",
    mac="52:54:00:00:00:01",
    machine_id="ab" * 16,
    ssh_port=2222,
    started_unix_ns=2,
    process=ProcessIdentity("boot", 7, 8),
    accelerator="tcg",
    kernel_version="6.1",
    detail='it\'s "fine"; DROP TABLE machines;',
)

texts = st.text(st.characters(codec="utf-8"), max_size=50)
machines = st.builds(
    lambda state, detail, cmdline, keys, mounts, port, pid: replace(
        MACHINE,
        state=state,
        detail=detail,
        spec=replace(
            MACHINE.spec, cmdline=cmdline, ssh_public_keys=tuple(keys), mounts=tuple(mounts)
        ),
        ssh_port=port,
        process=None if pid is None else ProcessIdentity("b", pid, 2**62),
    ),
    st.sampled_from(MachineState),
    texts,
    texts,
    st.lists(texts, max_size=3),
    st.lists(st.builds(DirectoryMount, texts, texts, st.booleans(), st.integers(0, 11))),
    st.integers(0, 65535),
    st.none() | st.integers(1, 1 << 22),
)


@given(machines)
def test_a_record_comes_back_as_it_was(machine: Machine) -> None:
    fields = to_fields(machine)
    assert tuple(fields) == COLUMNS
    assert from_fields(json.loads(json.dumps(fields)), "a test") == machine


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", "../../../etc"),
        ("id", "0123456789AB"),
        ("name", "../x"),
        ("state", "flying"),
        ("cpus", "2"),
        ("cpus", -1),
        ("cpus", True),
        ("ssh_public_keys", "no json"),
        ("ssh_public_keys", "[1]"),
        ("ssh_public_keys", "{}"),
        ("mounts", "no json"),
        ("mounts", "{}"),
        ("mounts", "[1]"),
        ("mounts", '[{"host_path": "/a"}]'),
        ("mounts", '[{"host_path": "/a", "guest_path": 1, "readonly": true, "slot": 0}]'),
        ("mounts", '[{"host_path": "/a", "guest_path": "/b", "more": 1}]'),
        ("user", None),
        ("pid", "7"),
    ],
)
def test_a_record_that_cannot_be_is_refused(key: str, value: object) -> None:
    with pytest.raises(StoreError, match="a test"):
        from_fields({**to_fields(MACHINE), key: value}, "a test")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "home", tmp_path / "cache")


async def test_the_database_and_the_copy_hold_the_same(paths: Paths) -> None:
    directory = paths.machine(MACHINE.id).directory
    directory.mkdir(parents=True)
    database = await MachineDatabase.open(paths)
    await database.put(MACHINE)
    changed = replace(MACHINE, detail="changed")
    await database.put(changed)
    assert await database.load() == [changed]
    assert read_file(paths.machine(MACHINE.id).record) == changed
    assert [path.name for path in directory.iterdir()] == ["machine.json"]
    await database.close()
    await database.close()
    again = await MachineDatabase.open(paths)
    assert await again.load() == [changed]
    await again.delete(MACHINE.id)
    await again.delete(MACHINE.id)
    assert await again.load() == []
    await again.close()
    assert paths.database.stat().st_mode & 0o777 == 0o600


async def test_a_machine_without_its_directory_is_in_the_database_only(paths: Paths) -> None:
    database = await MachineDatabase.open(paths)
    await database.put(MACHINE)
    assert not paths.machine(MACHINE.id).directory.exists()
    await database.close()


async def test_two_machines_of_one_name_are_refused(paths: Paths) -> None:
    database = await MachineDatabase.open(paths)
    await database.put(MACHINE)
    with pytest.raises(StoreError):
        await database.put(replace(MACHINE, id="f" * 12))
    assert await database.load() == [MACHINE]
    await database.close()


async def test_a_rebuild_leaves_out_what_is_no_record(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in (
        (MACHINE.id, json.dumps(to_fields(MACHINE))),
        ("a" * 12, "{"),
        ("b" * 12, "[]"),
        ("c" * 12, json.dumps(to_fields(MACHINE))),
    ):
        record = paths.machine(name).record
        record.parent.mkdir(parents=True)
        record.write_text(content)
    database = await MachineDatabase.open(paths)
    assert await database.load() == [MACHINE]
    await database.close()
    assert caplog.text.count("left out") == 3


def test_migrations_are_done_in_order_and_once() -> None:
    connection = sqlite3.connect(":memory:")
    steps = (*MIGRATIONS, "CREATE TABLE second (x);")
    migrate(connection)
    migrate(connection, steps)
    migrate(connection, steps)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(steps),)
    connection.execute("SELECT * FROM second")
    connection.close()


def test_a_failed_migration_changes_nothing() -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.Error):
        migrate(connection, (*MIGRATIONS, "CREATE TABLE half (x); SELECT nonsense;"))
    connection.rollback()
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall()
    connection.close()
