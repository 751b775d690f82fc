"""The machines' records: SQLite, written by one thread, and a copy beside each machine's files."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from arcboxd import durable
from arcboxd.domain.machine import Machine
from arcboxd.errors import StoreError
from arcboxd.paths import Paths
from arcboxd.store.migrations import check_version, migrate
from arcboxd.store.record import COLUMNS, from_fields, read_file, to_fields

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_COLUMNS = ", ".join(COLUMNS)
_VALUES = ", ".join(f":{c}" for c in COLUMNS)
_UPDATES = ", ".join(f"{c} = excluded.{c}" for c in COLUMNS if c != "id")
_PUT = (
    f"INSERT INTO machines ({_COLUMNS}) VALUES ({_VALUES}) "  # noqa: S608
    f"ON CONFLICT (id) DO UPDATE SET {_UPDATES}"
)
"""Made of constants only."""


class MachineDatabase:
    """Keeps records durably, in the order of the calls, those of cancelled callers too."""

    def __init__(self, paths: Paths) -> None:
        """Open nothing yet; use `open`."""
        self._paths = paths
        self._thread = ThreadPoolExecutor(1, "store")
        self._connection: sqlite3.Connection | None = None

    @classmethod
    async def open(cls, paths: Paths) -> MachineDatabase:
        """Open the database, rebuilt from ``machine.json`` files if it is missing or corrupt.

        Raises:
            StoreError: It cannot be opened, or a newer version wrote it.
        """
        self = cls(paths)
        try:
            await self._call(self._open)
        except BaseException:
            self._thread.shutdown(wait=True)
            raise
        return self

    async def load(self) -> list[Machine]:
        """Give every record, oldest first.

        Raises:
            StoreError: It cannot be read.
        """
        return await self._call(self._load)

    async def put(self, machine: Machine) -> None:
        """Write a record, new or changed; once this returns it survives a power cut.

        Cancelling the caller does not cancel the write.

        Raises:
            StoreError: It was not written.
        """
        await self._call(lambda: self._put([machine]))

    async def delete(self, machine_id: str) -> None:
        """Erase a record; one that does not exist is no error.

        Raises:
            StoreError: It was not erased.
        """
        await self._call(lambda: self._delete(machine_id))

    async def close(self) -> None:
        """Finish what was asked for, and close. Idempotent."""
        if self._connection is not None:
            await self._call(self._close)
            self._thread.shutdown(wait=True)

    async def _call(self, work: Callable[[], _T]) -> _T:
        # Shielded: a cancelled executor future that has not begun would be dropped from the queue.
        return await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(self._thread, _translated, work)
        )

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError("the database is closed")
        return self._connection

    def _open(self) -> None:
        path = self._paths.database
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        missing = not path.exists()
        try:
            self._connection = _connect(path)
        except sqlite3.OperationalError:
            raise  # locked, or no access: the file itself may be sound
        except sqlite3.DatabaseError as error:
            aside = _move_aside(path)
            _log.error("the database was corrupt (%s); it is now %s", error, aside)
            missing = True
            self._connection = _connect(path)
        if missing and (found := _records(self._paths.machines)):
            _log.warning("rebuilt %s from %d machine.json files", path, len(found))
            self._insert(found)

    def _load(self) -> list[Machine]:
        query = f"SELECT {_COLUMNS} FROM machines ORDER BY created_unix_ns, id"  # noqa: S608
        return [
            from_fields(dict(zip(COLUMNS, row, strict=True)), f"the database's machine {row[0]}")
            for row in self._db.execute(query)
        ]

    def _insert(self, machines: Sequence[Machine]) -> None:
        with self._db:
            self._db.executemany(_PUT, [to_fields(machine) for machine in machines])

    def _put(self, machines: Sequence[Machine]) -> None:
        self._insert(machines)
        for machine in machines:
            record = self._paths.machine(machine.id).record
            # Before its directory is made, and after it is gone, a machine is in the database only.
            if record.parent.is_dir():
                durable.write(record, json.dumps(to_fields(machine), indent=1).encode())

    def _delete(self, machine_id: str) -> None:
        with self._db:
            self._db.execute("DELETE FROM machines WHERE id = ?", (machine_id,))

    def _close(self) -> None:
        self._db.close()
        self._connection = None


def _translated(work: Callable[[], _T]) -> _T:
    try:
        return work()
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"the state on disk cannot be read or written: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level "IMMEDIATE": `with connection` then begins and ends a write transaction.
    connection = sqlite3.connect(path, isolation_level="IMMEDIATE", timeout=5)
    try:
        check_version(connection)  # first: to set the journal's mode is to write
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if (answer := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(answer)  # noqa: TRY301
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    path.chmod(0o600)
    return connection


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        sidecar = path.with_name(path.name + suffix)
        if sidecar.exists():
            sidecar.rename(aside.with_name(aside.name + suffix))
    return aside


def _records(machines: Path) -> list[Machine]:
    found: dict[str, Machine] = {}
    for path in sorted(machines.glob("*/machine.json")):
        try:
            machine = read_file(path)
        except StoreError as error:
            _log.error("left out of the rebuilt database: %s", error)
            continue
        if machine.id != path.parent.name or machine.spec.name in found:
            _log.error("left out of the rebuilt database: %s is not its own record", path)
            continue
        found[machine.spec.name] = machine
    return list(found.values())
