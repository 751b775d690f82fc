"""The guest's users and groups, read from its own files.

Not through `pwd` and `grp`: those ask the C library of our bundle, which would load name services
that the bundle does not have.
"""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH116

from __future__ import annotations

import os

from arcbox_agent import files
from arcboxd.errors import UserNotFoundError

_MAX_ID = 0xFFFFFFFE
_parsed: dict[str, tuple[tuple[int, int, int], list[list[str]]]] = {}


class Account:
    """A line of /etc/passwd."""

    __slots__ = ("gid", "home", "name", "shell", "uid")

    def __init__(self, name: str, uid: int, gid: int, home: str, shell: str) -> None:
        """Keep the fields as they are in the file."""
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home
        self.shell = shell


class Group:
    """A line of /etc/group."""

    __slots__ = ("gid", "members", "name")

    def __init__(self, name: str, gid: int, members: list[str]) -> None:
        """Keep the fields as they are in the file."""
        self.name = name
        self.gid = gid
        self.members = members


class Credentials:
    """Whom a process runs as."""

    __slots__ = ("account", "gid", "groups", "uid")

    def __init__(self, account: Account, gid: int, groups: list[int]) -> None:
        """Take the account's uid, this primary group and these supplementary groups."""
        self.account = account
        self.uid = account.uid
        self.gid = gid
        self.groups = groups


def read_accounts(root: str) -> list[Account]:
    """Read /etc/passwd; lines that make no sense are passed over."""
    return [
        Account(name, int(uid), int(gid), home, shell)
        for name, _, uid, gid, _, home, shell in _lines(f"{root}/etc/passwd", 7)
        if uid.isdigit() and gid.isdigit()
    ]


def read_groups(root: str) -> list[Group]:
    """Read /etc/group; lines that make no sense are passed over."""
    return [
        Group(name, int(gid), [member for member in members.split(",") if member])
        for name, _, gid, members in _lines(f"{root}/etc/group", 4)
        if gid.isdigit()
    ]


def find_credentials(root: str, wanted: str) -> Credentials:
    """Find whom `wanted` means: a name or uid, optionally with `:group`; empty is root.

    A uid that no account has is accepted, as `docker exec` accepts it: a process may run as anyone.

    Raises:
        UserNotFoundError: No such user or group.
    """
    name, colon, group_name = wanted.partition(":")
    accounts = read_accounts(root)
    groups = read_groups(root)
    account = _find_account(accounts, name or "root")
    if colon:
        gid = _find_gid(groups, group_name)
        return Credentials(account, gid, [gid])
    supplementary = [group.gid for group in groups if account.name in group.members]
    return Credentials(account, account.gid, sorted({account.gid, *supplementary}))


def _find_account(accounts: list[Account], wanted: str) -> Account:
    for account in accounts:
        if account.name == wanted:
            return account
    if wanted.isascii() and wanted.isdigit() and int(wanted) <= _MAX_ID:
        uid = int(wanted)
        for account in accounts:
            if account.uid == uid:
                return account
        return Account("", uid, 0, "/", "/bin/sh")
    if wanted == "root":  # an image without /etc/passwd still has a root
        return Account("root", 0, 0, "/root", "/bin/sh")
    raise UserNotFoundError(f"The guest has no user {wanted!r}.")


def _find_gid(groups: list[Group], wanted: str) -> int:
    for group in groups:
        if group.name == wanted:
            return group.gid
    if wanted.isascii() and wanted.isdigit() and int(wanted) <= _MAX_ID:
        return int(wanted)
    raise UserNotFoundError(f"The guest has no group {wanted!r}.")


def _lines(path: str, field_count: int) -> list[list[str]]:
    """Read a file's lines of so many fields; parse it again only when it has changed."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return []
    version = (state.st_ino, state.st_mtime_ns, state.st_size)
    known = _parsed.get(path)
    if known is None or known[0] != version:
        lines = [line.split(":") for line in files.read(path).split("\n")]
        known = (version, [fields for fields in lines if len(fields) == field_count])
        _parsed[path] = known
    return known[1]
