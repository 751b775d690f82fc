"""``arcbox image``: what machines are made of."""
# ruff: noqa: PLC0415, PLR0917 - see session; a parameter an option

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from arcboxd.cli import params, session, shape
from arcboxd.cli.output import duration, print_json, print_table
from arcboxd.cli.sizes import format_size
from arcboxd.cli.template import KEY_DIGITS, print_pruned
from arcboxd.cli.usage import CliUsageError

_HEADERS = (
    *("KEY", "IMAGE", "ARCH", "SOURCE", "INIT"),
    *("SIZE", "ON DISK", "AGE", "TEMPLATES", "MACHINES"),
)
_Image = Annotated[
    str,
    typer.Argument(metavar="IMAGE", help="A key, a unique beginning of it, or NAME:VERSION."),
]
_Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Keys, unique beginnings of them, or NAME:VERSION."),
]


def ls(ctx: typer.Context, as_json: params.Json = False) -> None:
    """List images, oldest first.

    SIZE is that of the filesystem, which machines get as their root and grow; ON DISK is what it
    takes on the host, once for all machines that rest on it.
    """
    with session.connect(ctx) as client:
        images = client.list_images()
    if as_json:
        print_json(images)
        return
    now = datetime.now(UTC)
    rows = [
        (
            i.key[:KEY_DIGITS],
            f"{i.distro}:{i.version}" if i.version else i.distro,
            i.arch,
            i.source,
            i.init,
            format_size(i.apparent_bytes),
            format_size(i.allocated_bytes),
            duration(int((now - i.created).total_seconds())) or "0 seconds",
            str(i.templates),
            ",".join(i.machines) or "-",
        )
        for i in images
    ]
    print_table(_HEADERS, rows)


def pull(
    ctx: typer.Context,
    distro: Annotated[
        str, typer.Argument(metavar="DISTRO", help="As create --distro, or oci:REFERENCE.")
    ] = "",
    version: shape.Version = "",
    arch: shape.Arch = "",
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Build or fetch an image ahead of machines, or a newer one; print its key and size.

    What is imported or built by arcbox is not built again; registries and image servers are asked
    for what is newest. Machines that are there keep what they were made of.
    """
    from arcboxd.cli.progress import shown
    from arcboxd.client.client import IMAGE_SUBJECT

    with session.connect(ctx) as client, shown(client, IMAGE_SUBJECT, quiet=quiet):
        image = client.pull_image(distro, version, arch)
    if as_json:
        print_json(image)
    else:
        print(f"{image.key[:KEY_DIGITS]} {format_size(image.allocated_bytes)}")


def import_(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A root tarball, squashfs, OCI or docker archive, or raw or qcow2 disk.",
        ),
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What create --distro calls it.")
    ],
    version: Annotated[
        str, typer.Option(help="Its version; by default what its os-release says.")
    ] = "",
    arch: shape.Arch = "",
    sha256: Annotated[
        str, typer.Option(metavar="DIGEST", help="Of the file; refuse it if it has another.")
    ] = "",
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Make an image of a file; print its key and size.

    Nothing of the file is unpacked or mounted on this host. A disk must have its root on ext4.
    """
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise CliUsageError(f"{file} is no file")

    from arcboxd.cli.progress import shown
    from arcboxd.client.client import IMAGE_SUBJECT
    from arcboxd.client.views import NewImage

    new = NewImage(path, name, version, arch, sha256)
    with session.connect(ctx) as client, shown(client, IMAGE_SUBJECT, quiet=quiet):
        image = client.import_image(new)
    if as_json:
        print_json(image)
    else:
        print(f"{image.key[:KEY_DIGITS]} {format_size(image.allocated_bytes)}")


def rm(ctx: typer.Context, images: _Images) -> None:
    """Remove images that no machine or template rests on."""
    with session.connect(ctx) as client:
        session.for_each(images, lambda ref: _discard(client.remove_image(ref)))


def prune(ctx: typer.Context, as_json: params.Json = False) -> None:
    """Remove images and boot files that no new machine would get.

    Images that a newer one has replaced, and that no machine or template rests on; kernels, agents
    and container runtimes that only earlier versions booted, and that no machine runs with.
    """
    with session.connect(ctx) as client:
        pruned = client.prune_images()
    print_pruned(pruned, (*pruned.keys, *pruned.boot_files), as_json=as_json)


def update(
    ctx: typer.Context,
    arch: shape.Arch = "",
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Make what machines boot from of Debian's newest packages; print the kernel's version.

    The kernel, the agent's Python and the container runtime: machines have them from their next
    start on. What is in a machine is its own package manager's to update.
    """
    from arcboxd.cli.progress import shown
    from arcboxd.client.client import IMAGE_SUBJECT

    with session.connect(ctx) as client, shown(client, IMAGE_SUBJECT, quiet=quiet):
        found = client.update_boot_files(arch)
    if as_json:
        print_json(found)
    else:
        print(f"{found.kernel_version}{'' if found.changed else ' (nothing newer)'}")


def verify(ctx: typer.Context, images: _Images) -> None:
    """Read images whole, and check that they are what was built; print those that are."""
    from arcboxd.errors import CorruptError

    with session.connect(ctx) as client:

        def check(ref: str) -> None:
            if damaged := client.verify_image(ref):
                raise CorruptError(
                    f"the image {ref} is damaged: {', '.join(damaged)}",
                    hint=f"remove its machines, then: arcbox image rm {ref}; and get it again",
                )

        session.for_each(images, check)


def prepare(
    ctx: typer.Context,
    cpus: shape.Cpus = 0,
    memory: shape.Memory = "",
    disk: shape.Disk = "",
    distro: shape.Distro = "",
    version: shape.Version = "",
    arch: shape.Arch = "",
    docker: Annotated[
        bool, typer.Option("--docker", help="With containerd and dockerd running.")
    ] = False,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", hidden=True)] = False,
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Boot an image into a template; print its key and size.

    New machines with these processors and memory, and at least this disk, then start without
    booting. Without options it is for what `arcbox create NAME` makes. The size is on disk.
    """
    if kubernetes:
        raise CliUsageError(
            "a template cannot have a cluster: its clones would share keys and trust each other",
            hint="give each machine its own with: arcbox k8s start NAME",
        )
    fields = shape.checked(cpus, memory, disk, distro, version, arch)

    from arcboxd.cli.progress import shown
    from arcboxd.client.client import TEMPLATE_SUBJECT
    from arcboxd.client.views import NewTemplate

    with session.connect(ctx) as client, shown(client, TEMPLATE_SUBJECT, quiet=quiet):
        made = client.prepare_template(NewTemplate(**fields, runtime=docker))
    if as_json:
        print_json(made)
    else:
        print(f"{made.key[:KEY_DIGITS]} {format_size(made.allocated_bytes)}")


def _discard(_freed_bytes: int) -> None:
    """Say nothing: `rm` prints what was removed."""
