"""``arcbox inspect``: all that is known of a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import age, print_fields, print_json, rfc3339
from arcboxd.cli.sizes import format_size

if TYPE_CHECKING:
    from arcboxd.client.views import Mount


def inspect(ctx: typer.Context, name: params.Machine, as_json: params.Json = False) -> None:
    """Show all that is known of a machine."""
    with session.connect(ctx) as client:
        m = client.inspect(name)
    if as_json:
        print_json(m)
        return
    x = m.extra
    disk = f"{format_size(m.disk_bytes)} {m.disk_format}"
    if x:
        disk += f", {format_size(x.disk_allocated_bytes)} in use"
    fields = [
        ("Name", m.name),
        ("Id", m.id),
        ("State", m.state),
        ("Detail", x.detail if x else ""),
        ("Image", f"{m.distro} {m.version} {m.arch}"),
        ("Kernel", m.kernel),
        ("CPUs", str(m.cpus)),
        ("Memory", format_size(m.memory_bytes)),
        ("Disk", disk),
        ("Disk file", m.disk_path),
        *(("Mount", _mount(v)) for v in m.mounts),
        ("Address", m.address),
        ("Gateway", m.gateway),
        ("DNS", ", ".join(m.dns_servers)),
        ("MAC", m.mac_address),
        ("Created", f"{rfc3339(m.created)} ({age(m.created)})" if m.created else ""),
        ("Started", f"{rfc3339(m.started)} ({age(m.started)})" if m.started else "never"),
    ]
    if x:
        fields += [
            ("Accelerator", x.accelerator),
            ("Boot", f"{x.boot} ({x.boot_reason})" if x.boot_reason else x.boot),
            ("QEMU pid", str(x.pid or "")),
            ("SSH port", str(x.ssh_port or "")),
            ("Directory", x.directory),
            ("Console log", x.console_log),
            ("Agent socket", x.agent_socket),
            ("Docker socket", x.docker_socket),
        ]
    print_fields(fields)


def _mount(mount: Mount) -> str:
    facts = [mount.filesystem, "ro" if mount.readonly else "", mount.detail or mount.state]
    return f"{mount.host_path} on {mount.guest_path} ({', '.join(fact for fact in facts if fact)})"
