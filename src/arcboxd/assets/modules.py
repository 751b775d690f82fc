"""Kernel modules: which ones the initramfs needs, and in what order they are loaded."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from arcboxd.errors import AssetBuildError, CorruptError

_SIGNATURE_MAGIC = b"~Module signature appended~\n"


def module_name(path: str) -> str:
    """Name a module as the kernel does: no folder, no suffix, underscores."""
    return PurePosixPath(path).name.split(".ko")[0].replace("-", "_")


@dataclass(frozen=True, slots=True)
class ModuleIndex:
    """What ``modules.dep`` and ``modules.builtin`` say, by the kernel's names."""

    paths: Mapping[str, str]
    dependencies: Mapping[str, tuple[str, ...]]
    builtin: frozenset[str]

    @classmethod
    def parse(cls, modules_dep: str, modules_builtin: str) -> ModuleIndex:
        """Read both files.

        Raises:
            CorruptError: A line of modules.dep is not one.

        Source: modules.dep(5).
        """
        paths: dict[str, str] = {}
        dependencies: dict[str, tuple[str, ...]] = {}
        for line in filter(None, modules_dep.splitlines()):
            path, colon, rest = line.partition(":")
            if not colon:
                raise CorruptError(f"modules.dep has a line that is none: {line!r}")
            paths[module_name(path)] = path
            dependencies[module_name(path)] = tuple(module_name(word) for word in rest.split())
        builtin = frozenset(module_name(word) for word in modules_builtin.split())
        return cls(paths, dependencies, builtin)

    def load_order(self, wanted: Iterable[str], *, loaded: Iterable[str] = ()) -> list[str]:
        """Order modules and all that they need so that each comes after its own needs.

        What is built into the kernel or is in ``loaded`` is left out.

        Args:
            wanted: Names of modules, in the order in which they matter.
            loaded: Modules that are there already.

        Raises:
            AssetBuildError: The kernel has no such module.
        """
        order: dict[str, None] = {}
        skip = {module_name(name) for name in loaded} | self.builtin

        def add(name: str, above: tuple[str, ...]) -> None:
            if name in order or name in skip:
                return
            if name not in self.paths:
                raise AssetBuildError(f"the kernel has no module {name!r}")
            if name in above:
                raise CorruptError(f"modules.dep has a circle: {' -> '.join([*above, name])}")
            # modules.dep lists all indirect needs, the deepest last (modules.dep(5)).
            for need in reversed(self.dependencies[name]):
                add(need, (*above, name))
            order[name] = None

        for name in wanted:
            add(module_name(name), ())
        return list(order)


def read_index(tree: Path) -> ModuleIndex:
    """Read the index of ``/lib/modules/VERSION``."""
    dep = (tree / "modules.dep").read_text()
    return ModuleIndex.parse(dep, (tree / "modules.builtin").read_text())


def without_signature(module: bytes) -> bytes:
    """Cut the appended signature off a module.

    The kernel checks signatures by RSA and a digest of the module, which under software emulation
    adds up; the initramfs is ours from end to end, so nothing is gained by it there.

    Raises:
        CorruptError: The signature's length cannot be.

    Source: include/linux/module_signature.h.
    """
    if not module.endswith(_SIGNATURE_MAGIC):
        return module
    end = len(module) - len(_SIGNATURE_MAGIC)
    length = struct.unpack(">I", module[end - 4 : end])[0]
    if not 0 < length <= end - 12:
        raise CorruptError("a kernel module's signature has an impossible length")
    return module[: end - 12 - length]


def early_modules(tree: Path, names: Sequence[str], target: Path) -> None:
    """Copy modules of ``tree`` to ``target`` without their signatures, named as the kernel does.

    Raises:
        AssetBuildError: The kernel has no such module.
    """
    target.mkdir()
    index = read_index(tree)
    for name in index.load_order(names):
        data = (tree / index.paths[name]).read_bytes()
        (target / f"{name}.ko").write_bytes(without_signature(data))
