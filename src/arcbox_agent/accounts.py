"""Gives the guest the account of the person it belongs to, by editing the system's own files.

Not by `useradd`: there are three of them with different options, and each takes seconds under
emulation.
"""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH101, PTH102, PTH103, PTH110, PTH112, PTH116, PTH120

from __future__ import annotations

import os

from arcbox_agent import files
from arcbox_agent.users import Account, read_accounts, read_groups

_FIRST_UID = 1000
_LAST_UID = 60000
_ADMIN_GROUPS = ("sudo", "wheel", "adm")
_SECONDS_A_DAY = 86400
# An asterisk, not an exclamation mark: sshd without PAM takes the latter for a locked account, and
# refuses its keys.
_NO_PASSWORD = "*"  # noqa: S105  the absence of one
_WATCHED = ("etc/passwd", "etc/group", "etc/sudoers.d/90-arcbox", "etc/doas.d/arcbox.conf")
_BEGIN = "# arcbox: begin; what is between these two lines is replaced"
_END = "# arcbox: end"
_Version = tuple[int, int, int]
_ensured: dict[tuple[str, str, int], tuple[Account, list[_Version]]] = {}


def ensure_user(root: str, name: str, wanted_uid: int) -> Account:
    """Find the user of that name, or make one that may become root without a password. Idempotent.

    An existing user keeps uid, home and shell. Asked again, with all as it left it, it looks at no
    more than whether that is so.

    Raises:
        OSError: A file cannot be written.
    """
    known = _ensured.get((root, name, wanted_uid))
    if known is not None and known[1] == _versions(root, known[0]):
        return known[0]
    account = _ensure(root, name, wanted_uid)
    _ensured[root, name, wanted_uid] = (account, _versions(root, account))
    return account


def _versions(root: str, account: Account) -> list[_Version]:
    """Give what changes when someone else changes what `ensure_user` made."""
    versions: list[_Version] = []
    for path in _WATCHED:
        try:
            state = os.stat(f"{root}/{path}")
        except FileNotFoundError:
            versions.append((0, 0, 0))
        else:
            versions.append((state.st_ino, state.st_mtime_ns, state.st_size))
    versions.append((int(os.path.lexists(root + account.home)), 0, 0))
    return versions


def _ensure(root: str, name: str, wanted_uid: int) -> Account:
    account = next((each for each in read_accounts(root) if each.name == name), None)
    if account is None:
        account = _create(root, name, wanted_uid)
    if account.uid != 0:
        _join_admin_groups(root, name)
        _allow_root(root, name)
    _make_home(root, account)
    return account


def _create(root: str, name: str, wanted_uid: int) -> Account:
    uid = _free_uid(root, wanted_uid)
    groups = read_groups(root)
    own = next((each for each in groups if each.name == name), None)
    if own is not None:
        gid = own.gid
    else:
        taken = {each.gid for each in groups}
        gid = next(n for n in (uid, *range(_FIRST_UID, _LAST_UID)) if n not in taken)
        _append(f"{root}/etc/group", f"{name}:x:{gid}:")
        if os.path.exists(f"{root}/etc/gshadow"):
            _append(f"{root}/etc/gshadow", f"{name}:!::")
    shell = "/bin/bash" if os.path.exists(f"{root}/bin/bash") else "/bin/sh"
    account = Account(name, uid, gid, f"/home/{name}", shell)
    _set_password_away(root, name)
    # The account itself comes last: what is there is whole, whenever this is interrupted.
    _append(f"{root}/etc/passwd", f"{name}:x:{uid}:{gid}:{name}:{account.home}:{shell}")
    return account


def _free_uid(root: str, wanted: int) -> int:
    taken = {each.uid for each in read_accounts(root)}
    if wanted and wanted not in taken:
        return wanted
    return next(uid for uid in range(_FIRST_UID, _LAST_UID) if uid not in taken)


def _set_password_away(root: str, name: str) -> None:
    import time

    path = f"{root}/etc/shadow"
    lines = [line for line in files.read(path).splitlines() if not line.startswith(f"{name}:")]
    today = int(time.time()) // _SECONDS_A_DAY
    lines.append(f"{name}:{_NO_PASSWORD}:{today}:0:99999:7:::")
    files.write(path, "\n".join(lines) + "\n", mode=None if os.path.exists(path) else 0o600)


def _append(path: str, line: str) -> None:
    text = files.read(path)
    if text and not text.endswith("\n"):
        text += "\n"
    files.write(path, f"{text}{line}\n")


def _join_admin_groups(root: str, name: str) -> None:
    path = f"{root}/etc/group"
    lines = []
    for line in files.read(path).splitlines():
        fields = line.split(":")
        if len(fields) == 4 and fields[0] in _ADMIN_GROUPS:  # noqa: PLR2004  group(5)
            members = [member for member in fields[3].split(",") if member]
            if name not in members:
                fields[3] = ",".join([*members, name])
        lines.append(":".join(fields))
    files.write(path, "\n".join(lines) + "\n")


def _allow_root(root: str, name: str) -> None:
    if os.path.isdir(f"{root}/etc/sudoers.d"):
        rule = f"{name} ALL=(ALL:ALL) NOPASSWD: ALL\n"
        files.write(f"{root}/etc/sudoers.d/90-arcbox", rule, mode=0o440)
    if os.path.isdir(f"{root}/etc/doas.d"):
        files.write(f"{root}/etc/doas.d/arcbox.conf", f"permit nopass {name}\n", mode=0o600)


def _make_home(root: str, account: Account) -> None:
    home = root + account.home
    # A system account's home may be missing on purpose.
    if os.path.lexists(home) or not account.home.startswith("/home/"):
        return
    os.makedirs(os.path.dirname(home), 0o755, exist_ok=True)
    os.mkdir(home, 0o700)  # root's until it is whole
    files.copy_tree(f"{root}/etc/skel", home, account.uid, account.gid)
    os.chmod(home, 0o750)  # noqa: S103  as Ubuntu has it
    os.chown(home, account.uid, account.gid)


def authorize_keys(root: str, account: Account, keys: list[str], *, in_place: bool = False) -> None:
    """Put the keys into the user's authorized_keys, between marks; other lines stay as they are.

    Args:
        root: Below which the system's files lie.
        account: The user.
        keys: A line each; without any, the marks go too.
        in_place: Overwrite the file, for a user who runs nothing yet. See `files.overwrite`.

    Raises:
        OSError: A link or another user's file is in the way.
    """
    home = files.UserFolder(root + account.home, account.uid, account.gid)
    try:
        folder = home.folder(".ssh", 0o700)
    finally:
        home.close()
    try:
        old = folder.read("authorized_keys")
        new = merge_keys(old, keys)
        # In place also where nothing changes: a template has the file, for its clones to overwrite.
        if new != old or in_place:
            folder.write("authorized_keys", new, 0o600, in_place=in_place)
    finally:
        folder.close()


def merge_keys(text: str, keys: list[str]) -> str:
    """Replace the part between our marks, or add it at the end; without keys it goes away."""
    kept = []
    inside = False
    for line in text.splitlines():
        if line == _BEGIN:
            inside = True
        elif line == _END and inside:
            inside = False
        elif not inside:
            kept.append(line)
    if keys:
        kept += [_BEGIN, *keys, _END]
    return "".join(f"{line}\n" for line in kept)
