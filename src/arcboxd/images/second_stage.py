"""Finishes images of a foreign architecture, in a machine that is made for that alone.

The packages are unpacked on the host; their scripts need programs that only run in a guest. Other
ways need what a host may not have, or root: an emulator registered with the kernel (binfmt_misc).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from arcboxd.assets.store import AssetStore
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import AssetBuildError

TIMEOUT_S = 3600.0
"""It takes 3 minutes under emulation (T), and many times that on a busy host."""

_FINISHED = "I: arcbox: finished"


class RunGuest(Protocol):
    """Boots a guest and waits for its end: `arcboxd.hypervisor.qemu.once.run_once`."""

    async def __call__(
        self,
        arch: str,
        *,
        kernel: Path,
        initramfs: Path,
        disk: Path,
        console: Path,
        timeout_s: float,
    ) -> None:
        """Do that.

        Raises:
            ArcboxError: It could not be run to its end.
        """
        ...


class SecondStage:
    """What finishes images, where the host cannot run their programs."""

    def __init__(self, assets: AssetStore, run_guest: RunGuest) -> None:
        """Take kernels from ``assets``."""
        self._assets = assets
        self._run_guest = run_guest

    async def finish(self, arch: str, disk: Path, log: Path, progress: ProgressFn) -> None:
        """Run what ``debian-build.sh`` left in ``/arcbox-setup`` of a disk.

        Args:
            arch: The architecture.
            disk: The image.
            log: What the guest says is appended to it.
            progress: Told of each step until the guest boots.

        Raises:
            AssetBuildError: A step failed; the disk is not usable.
            MissingToolError: A program is missing on the host.
            TooLateError: It took longer than an hour.
        """
        kernel, initramfs = await self._assets.second_stage(arch, progress)
        await self._run_guest(
            arch,
            kernel=kernel,
            initramfs=initramfs,
            disk=disk,
            console=log,
            timeout_s=TIMEOUT_S,
        )
        if _FINISHED not in await asyncio.to_thread(log.read_text, errors="replace"):
            raise AssetBuildError("the packages of the image could not be configured")
