"""``arcbox info``: what a guest says of itself."""

from __future__ import annotations

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import duration, print_fields, print_json
from arcboxd.cli.sizes import format_size


def info(ctx: typer.Context, name: params.Machine, as_json: params.Json = False) -> None:
    """Show what a running machine says of itself."""
    with session.connect(ctx) as client:
        i = client.system_info(name)
    if as_json:
        print_json(i)
        return
    memory = f"{format_size(i.total_memory_bytes)}, {format_size(i.available_memory_bytes)} free"
    print_fields(
        [
            ("Hostname", i.hostname),
            ("OS", f"{i.os_name} {i.os_version}".strip()),
            ("Kernel", i.kernel_version),
            ("Arch", i.arch),
            ("CPUs", str(i.cpu_count)),
            ("Memory", memory),
            ("Load", " ".join(f"{x:.2f}" for x in i.load_average)),
            ("Uptime", duration(i.uptime_s) or "0 seconds"),
            ("Addresses", ", ".join(i.ip_addresses)),
        ]
    )
