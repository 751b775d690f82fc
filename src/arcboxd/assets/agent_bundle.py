"""The agent bundle: a read-only disk with Python, its packages, busybox and our agent."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from arcboxd.assets.disk_image import make_erofs
from arcboxd.assets.python_runtime import compile_tree

AGENT_FS = "erofs"
"""The disk's filesystem, uncompressed. (T) processor time from QEMU's start to the agent's first
byte, means of 4 boots in turns: erofs 10.8 s, squashfs 11.8 s, ext4 12.2 s."""

RECIPE = "1"
"""Raised when this module makes something else of the same sources."""

_HOST_PARTS = ("__init__.py", "errors.py", "aio.py", "link", "wire/__init__.py", "wire/pb")
"""What the agent takes of the host's package."""


def lock_file() -> Path:
    """Find the requirements of the agent, with hashes."""
    # A link to requirements/agent.txt in the repository, a copy of it in an installed package.
    return Path(str(resources.files("arcboxd.assets") / "agent.lock"))


def _sources() -> Iterator[tuple[str, Path]]:
    """Give every file of ours that the bundle has, by its place in the bundle."""
    host = Path(str(resources.files("arcboxd")))
    agent = Path(str(resources.files("arcbox_agent")))
    for part in _HOST_PARTS:
        path = host / part
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        for file in files:
            if not file.stem.endswith("_pb2_grpc"):
                yield f"python/site/arcboxd/{file.relative_to(host)}", file
    for file in sorted(agent.rglob("*.py")):
        yield f"python/site/arcbox_agent/{file.relative_to(agent)}", file
    for file in sorted((agent / "bundle").iterdir()):
        if file.is_file() and file.suffix != ".py":
            yield f"bin/{file.name}", file


def sources_digest() -> str:
    """Hash all of our files that go into the bundle, with their places."""
    digest = hashlib.sha256()
    for place, file in _sources():
        digest.update(f"{place}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


async def build_agent_disk(
    runtime: Path,
    busybox: Path,
    target: Path,
    *,
    interpreter: Path | None,
    step: Callable[[str], None],
) -> None:
    """Make ``agent.img`` in ``target``.

    Args:
        runtime: What `python_runtime.build_runtime` made.
        busybox: A static busybox.
        target: An empty directory; also used for scratch.
        interpreter: A runtime for the host's architecture, if the bundle is for another.
        step: Called with a phrase before each step.

    Raises:
        AssetBuildError: A step failed.
    """
    step("packing the agent")
    tree = target / "scratch"
    await asyncio.to_thread(_gather, runtime, busybox, tree)
    site = tree / "python" / "site"
    for package in ("arcboxd", "arcbox_agent"):
        await compile_tree(interpreter or tree, tree, site / package)
    await make_erofs(tree, target / "agent.img")
    await asyncio.to_thread(shutil.rmtree, tree)


def _gather(runtime: Path, busybox: Path, tree: Path) -> None:
    shutil.copytree(runtime, tree, symlinks=True, ignore=shutil.ignore_patterns("manifest.json"))
    shutil.copyfile(busybox, tree / "bin" / "busybox")
    for place, file in _sources():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tree / place)
    for program in (tree / "bin").iterdir():
        program.chmod(0o755)
