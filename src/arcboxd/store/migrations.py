"""The database's schema, as numbered steps that are only ever added to."""

from __future__ import annotations

import sqlite3

from arcboxd.errors import StoreError

MIGRATIONS = (
    """
    CREATE TABLE machines (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        cpus INTEGER NOT NULL,
        memory_bytes INTEGER NOT NULL,
        disk_bytes INTEGER NOT NULL,
        distro TEXT NOT NULL,
        version TEXT NOT NULL,
        arch TEXT NOT NULL,
        cmdline TEXT NOT NULL,
        ssh_public_keys TEXT NOT NULL,
        created_unix_ns INTEGER NOT NULL,
        image_key TEXT NOT NULL,
        user TEXT NOT NULL,
        mac TEXT NOT NULL UNIQUE,
        machine_id TEXT NOT NULL,
        ssh_port INTEGER NOT NULL,
        started_unix_ns INTEGER NOT NULL,
        boot_id TEXT,
        pid INTEGER,
        start_ticks INTEGER,
        accelerator TEXT NOT NULL,
        kernel_version TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE machines ADD COLUMN boot TEXT NOT NULL DEFAULT '';
    ALTER TABLE machines ADD COLUMN boot_reason TEXT NOT NULL DEFAULT '';
    UPDATE machines SET boot = 'cold' WHERE started_unix_ns > 0;
    """,
    """
    ALTER TABLE machines ADD COLUMN mounts TEXT NOT NULL DEFAULT '[]';
    """,
    """
    ALTER TABLE machines ADD COLUMN kernel TEXT NOT NULL DEFAULT '';
    """,
)
"""Step N brings a database from ``user_version`` N-1 to N."""


def check_version(connection: sqlite3.Connection, steps: tuple[str, ...] = MIGRATIONS) -> int:
    """Give the number of the last step that was done; changes nothing.

    Raises:
        StoreError: A newer version of this program has changed the database.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(steps):
        raise StoreError(
            f"the database has schema {version}, and this version knows only up to {len(steps)}",
            hint="install the newer arcboxd again; nothing was changed",
        )
    return version


def migrate(connection: sqlite3.Connection, steps: tuple[str, ...] = MIGRATIONS) -> None:
    """Bring a database up to date, one transaction a step. Idempotent.

    Raises:
        StoreError: A newer version of this program has changed it.
    """
    version = check_version(connection, steps)
    for number, step in enumerate(steps[version:], start=version + 1):
        # One transaction, the version within it: a crash leaves the step done or not begun.
        connection.executescript(
            f"BEGIN IMMEDIATE; {step}; PRAGMA user_version = {number}; COMMIT;"
        )
