"""Which implementation stands behind each interface; the only place that knows them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arcboxd.assets.mirror import Mirror
from arcboxd.assets.store import AssetStore
from arcboxd.guest.connector import LinkConnector
from arcboxd.hypervisor.base import Hypervisor
from arcboxd.hypervisor.qemu.accelerator import choose_accelerator
from arcboxd.hypervisor.qemu.hypervisor import QemuHypervisor
from arcboxd.hypervisor.qemu.once import run_once
from arcboxd.images.store import ImageStore, Origins
from arcboxd.machines.interfaces import AgentConnector, Assets, Images
from arcboxd.paths import Paths
from arcboxd.settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """What the use cases are given."""

    hypervisor: Hypervisor
    connector: AgentConnector
    assets: Assets
    images: Images


def build(settings: Settings, paths: Paths) -> Parts:
    """Give the real implementations.

    Raises:
        InvalidArgumentError: The accelerator asked for does not exist.
    """
    hypervisor = QemuHypervisor(choose_accelerator(settings.accelerator))
    mirror = None
    if settings.debian_mirror:
        mirror = Mirror(settings.debian_mirror, settings.debian_security_mirror)
    return Parts(
        hypervisor=hypervisor,
        connector=LinkConnector(lambda arch: hypervisor.accelerator_for(arch).timeout_scale),
        assets=AssetStore(paths, mirror=mirror),
        images=ImageStore(paths, image_origins(settings, mirror), run_guest=run_once),
    )


def image_origins(settings: Settings, mirror: Mirror | None) -> Origins:
    """Tell the image store where images come from."""
    return Origins(
        mirror=mirror,
        ubuntu_mirror=settings.ubuntu_mirror,
        servers=settings.image_servers,
        keyring=Path(settings.image_keyring) if settings.image_keyring else None,
    )
