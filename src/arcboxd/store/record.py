"""A machine as flat fields, for a row of the database and for ``machine.json`` alike."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from arcboxd.domain.machine import (
    Boot,
    DirectoryMount,
    Machine,
    MachineSpec,
    MachineState,
    ProcessIdentity,
)
from arcboxd.errors import StoreError

Field = str | int | None

COLUMNS = (
    *("id", "name", "state", "cpus", "memory_bytes", "disk_bytes", "distro", "version", "arch"),
    *("cmdline", "ssh_public_keys", "created_unix_ns", "image_key", "user", "mac", "machine_id"),
    *("ssh_port", "started_unix_ns", "boot_id", "pid", "start_ticks", "accelerator"),
    *("kernel_version", "boot", "boot_reason", "detail"),
    *("mounts", "kernel"),
)
"""Every field, in the order of the table's columns."""

_ID = re.compile(r"[0-9a-f]{12}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def to_fields(machine: Machine) -> dict[str, Field]:
    """Flatten a machine."""
    spec, process = machine.spec, machine.process
    return {
        "id": machine.id,
        "name": spec.name,
        "state": machine.state.value,
        "cpus": spec.cpus,
        "memory_bytes": spec.memory_bytes,
        "disk_bytes": spec.disk_bytes,
        "distro": spec.distro,
        "version": spec.version,
        "arch": spec.arch,
        "cmdline": spec.cmdline,
        "ssh_public_keys": json.dumps(spec.ssh_public_keys),
        "created_unix_ns": machine.created_unix_ns,
        "image_key": machine.image_key,
        "user": machine.user,
        "mac": machine.mac,
        "machine_id": machine.machine_id,
        "ssh_port": machine.ssh_port,
        "started_unix_ns": machine.started_unix_ns,
        "boot_id": process.boot_id if process else None,
        "pid": process.pid if process else None,
        "start_ticks": process.start_ticks if process else None,
        "accelerator": machine.accelerator,
        "kernel_version": machine.kernel_version,
        "boot": machine.boot.value if machine.boot else "",
        "boot_reason": machine.boot_reason,
        "detail": machine.detail,
        "mounts": json.dumps([asdict(mount) for mount in spec.mounts]),
        "kernel": spec.kernel,
    }


def from_fields(fields: Mapping[str, object], where: str) -> Machine:
    """Put a machine together again.

    Args:
        fields: What `to_fields` made; more is ignored.
        where: Named in the error.

    Raises:
        StoreError: A field is missing or cannot be.
    """

    def text(key: str) -> str:
        if not isinstance(value := fields.get(key), str):
            raise StoreError(f"{where} has no text in its field {key!r}")
        return value

    def number(key: str) -> int:
        value = fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise StoreError(f"{where} has no number in its field {key!r}")
        return value

    # The id names a directory that a removal deletes: nothing else may ever pass for one.
    if _ID.fullmatch(text("id")) is None or _NAME.fullmatch(text("name")) is None:
        raise StoreError(f"{where} has an id or a name that is none")
    try:
        state = MachineState(text("state"))
        # Records of the first version have no such field, and their machines all booted.
        boot = Boot(found) if (found := str(fields.get("boot", Boot.COLD))) else None
        keys = json.loads(text("ssh_public_keys"))
        # Nor have those of the versions before this one any mounts.
        mounts = _mounts(json.loads(str(fields.get("mounts", "[]"))))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{where} cannot be understood: {error}") from error
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise StoreError(f"{where} has no list of keys in its field 'ssh_public_keys'")
    process = None
    if fields.get("pid") is not None:
        process = ProcessIdentity(text("boot_id"), number("pid"), number("start_ticks"))
    return Machine(
        id=text("id"),
        spec=MachineSpec(
            name=text("name"),
            cpus=number("cpus"),
            memory_bytes=number("memory_bytes"),
            disk_bytes=number("disk_bytes"),
            distro=text("distro"),
            version=text("version"),
            arch=text("arch"),
            cmdline=text("cmdline"),
            ssh_public_keys=tuple(keys),
            mounts=mounts,
            kernel=str(fields.get("kernel", "")),
        ),
        state=state,
        created_unix_ns=number("created_unix_ns"),
        image_key=text("image_key"),
        user=text("user"),
        mac=text("mac"),
        machine_id=text("machine_id"),
        ssh_port=number("ssh_port"),
        started_unix_ns=number("started_unix_ns"),
        process=process,
        accelerator=text("accelerator"),
        kernel_version=text("kernel_version"),
        boot=boot,
        boot_reason=str(fields.get("boot_reason", "")),
        detail=text("detail"),
    )


def _mounts(found: object) -> tuple[DirectoryMount, ...]:
    """Read mounts.

    Raises:
        ValueError: They are none.
        TypeError: A field is missing, or not known.
    """
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError("its mounts are no list of mounts")
    mounts = tuple(DirectoryMount(**each) for each in found)
    kinds = (str, str, bool, int)
    for mount in mounts:
        if tuple(map(type, asdict(mount).values())) != kinds:
            raise ValueError(f"{mount} is no mount")
    return mounts


def read_file(path: Path) -> Machine:
    """Read a ``machine.json``.

    Raises:
        StoreError: It cannot be read, or is no record.
    """
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    if not isinstance(fields, dict):
        raise StoreError(f"{path} holds no record")
    return from_fields(fields, str(path))
