"""Templates on disk: which there are, which one fits, and what rests on them.

A template's directory appears whole, by a rename, and never changes again. Its manifest has the
size and time of each file, and one that differs makes the template void. Machines that were started
from it hold hard links to its disk, so the file's link count tells how many there are.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from arcboxd import durable
from arcboxd.errors import InvalidArgumentError, StoreError, TemplateNotFoundError
from arcboxd.hypervisor.base import PageRanges
from arcboxd.paths import Paths, TemplatePaths

_log = logging.getLogger(__name__)

NONE_FITS = "no template fits it"

_FORMAT = 1
_BLOCK_BYTES = 512
_MIN_PREFIX = 4
_KEY_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template is of; a machine of the same shape may be started from it."""

    fingerprint: str
    """Of the virtual machine, as `Hypervisor.fingerprint` gives it."""
    image_key: str
    user: str
    uid: int
    disk_bytes: int
    """A machine's disk may be larger: it grows."""


@dataclass(frozen=True, slots=True)
class Template:
    """A template as its manifest tells it."""

    key: str
    shape: Shape
    distro: str
    version: str
    arch: str
    cmdline: str
    cpus: int
    memory_bytes: int
    machine_type: str
    created_unix_ns: int
    paths: TemplatePaths
    link_mark: int = 0
    """Of the session that its agent was frozen in; 0 for none."""
    runtime_disk: Path | None = None
    """Of the container runtime that runs in it; None: none does."""


class TemplateStore:
    """The templates of a state directory. Everything here is quick file work, done at once."""

    def __init__(self, paths: Paths) -> None:
        """Know none yet; `load` does."""
        self._paths = paths
        self._templates: dict[str, Template] = {}
        self._distrusted: dict[str, str] = {}
        self.hot_pages: dict[str, PageRanges] = {}
        """What a clone had written to when it answered, by the template's key."""

    def load(self) -> None:
        """Read every manifest; what is no sound template is logged, and never used.

        Raises:
            StoreError: The directory cannot be read or made.
        """
        try:
            self._paths.templates.mkdir(mode=0o700, parents=True, exist_ok=True)
            directories = sorted(self._paths.templates.iterdir())
        except OSError as error:
            raise StoreError(f"cannot read {self._paths.templates}: {error}") from error
        for directory in directories:
            try:
                template = _read(TemplatePaths(directory))
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("%s is no template that can be used: %r", directory, error)
                continue
            self._templates[template.key] = template

    def all(self) -> tuple[Template, ...]:
        """Give every template, oldest first."""
        return tuple(sorted(self._templates.values(), key=lambda t: (t.created_unix_ns, t.key)))

    def find(self, ref: str) -> Template:
        """Give the template that a key, or a unique prefix of one, names.

        Raises:
            InvalidArgumentError: The prefix is too short, or of several.
            TemplateNotFoundError: There is none.
        """
        found = [t for key, t in self._templates.items() if key.startswith(ref)]
        if len(ref) < _MIN_PREFIX or len(found) > 1:
            raise InvalidArgumentError(
                f"{ref[:80]!r} does not name one template", hint="give more digits of its key"
            )
        if not found:
            raise TemplateNotFoundError(
                f"there is no template {ref[:80]!r}", hint="see them all with: arcbox template ls"
            )
        return found[0]

    def fitting(self, shape: Shape) -> Template | str:
        """Give the sound template that fits a shape best; else say why there is none."""
        same = [
            t
            for t in self.all()
            if (t.shape.fingerprint, t.shape.image_key, t.shape.user, t.shape.uid)
            == (shape.fingerprint, shape.image_key, shape.user, shape.uid)
            and t.shape.disk_bytes <= shape.disk_bytes
        ]
        why = NONE_FITS
        for template in sorted(same, key=lambda t: t.shape.disk_bytes, reverse=True):
            why = self._distrusted.get(template.key) or _unsound(template)
            if not why:
                return template
            self.distrust(template, why)
        return why

    def distrust(self, template: Template, why: str) -> None:
        """Never use a template again, while this daemon runs."""
        if template.key not in self._distrusted:
            _log.warning("template %s is not used any more: %s", template.key[:12], why)
        self._distrusted[template.key] = why

    def distrusted(self, template: Template) -> str:
        """Say why a template is not used; empty if it is."""
        return self._distrusted.get(template.key, "")

    def links(self, template: Template) -> int:
        """Count the disks, of machines and of staged clones, that rest on a template."""
        try:
            return template.paths.disk.stat().st_nlink - 1
        except OSError:
            return 0

    def allocated_bytes(self, template: Template) -> int:
        """Tell what a template takes of the host's disk."""
        return _allocated(template.paths.directory)

    def publish(self, made: TemplatePaths, facts: dict[str, object], shape: Shape) -> Template:
        """Make a template of a directory that has all its files, and move it to its place.

        Everything is on the disk before the directory appears under its name. Of two that were made
        at once, the first one stays. Blocks for as long as the disk takes.

        Raises:
            StoreError: The files cannot be written.
        """
        key = os.urandom(_KEY_DIGITS // 2).hex()
        try:
            _seal(made, {**facts, "format": _FORMAT, "key": key, "shape": asdict(shape)})
            target = TemplatePaths(self._paths.templates / key)
            made.directory.rename(target.directory)
            durable.sync(self._paths.templates)
            template = _read(target)
        except OSError as error:
            raise StoreError(f"cannot keep the template: {error}") from error
        self._templates[key] = template
        return template

    def remove(self, template: Template) -> int:
        """Delete a template that no machine rests on; give the bytes that it took.

        Raises:
            StoreError: It cannot be deleted; it is not used any more.
        """
        freed = self.allocated_bytes(template)
        self._templates.pop(template.key, None)
        self.hot_pages.pop(template.key, None)
        doomed = self._paths.work / f"gone-{template.key[:12]}"
        try:
            # At one stroke it is no template any more; a crash leaves what the next start sweeps.
            self._paths.work.mkdir(mode=0o700, exist_ok=True)
            template.paths.directory.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise StoreError(f"cannot delete {template.paths.directory}: {error}") from error
        return freed


def _read(paths: TemplatePaths) -> Template:
    manifest = json.loads(paths.manifest.read_text())
    if manifest["format"] != _FORMAT or manifest["key"] != paths.directory.name:
        raise ValueError("its manifest is of another format or of another template")
    return Template(
        key=manifest["key"],
        shape=Shape(**manifest["shape"]),
        distro=str(manifest["distro"]),
        version=str(manifest["version"]),
        arch=str(manifest["arch"]),
        cmdline=str(manifest["cmdline"]),
        cpus=int(manifest["cpus"]),
        memory_bytes=int(manifest["memory_bytes"]),
        machine_type=str(manifest["machine_type"]),
        created_unix_ns=int(manifest["created_unix_ns"]),
        paths=paths,
        link_mark=int(manifest.get("link_mark", 0)),
        runtime_disk=Path(disk) if (disk := manifest.get("runtime_disk")) else None,
    )


def _unsound(template: Template) -> str:
    """Say what is wrong with a template's files; empty if nothing is."""
    try:
        files = json.loads(template.paths.manifest.read_text())["files"]
        for name, (size, mtime_ns) in files.items():
            found = (template.paths.directory / name).stat()
            if (found.st_size, found.st_mtime_ns) != (size, mtime_ns):
                return f"its file {name} was changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its files cannot be read: {error!r}"
    return ""


def _seal(made: TemplatePaths, manifest: dict[str, object]) -> None:
    files: dict[str, list[int]] = {}
    kept = {made.memory, made.state, made.disk, made.base_image}
    for path in set(made.directory.iterdir()) - kept:
        # Logs, the key of a machine that never was, and the place for its shares.
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (made.memory, made.state, made.disk):
        # Nothing writes to them from now on, though QEMU opens RAM for writing to map it privately.
        path.chmod(0o600 if path == made.memory else 0o400)
        durable.sync(path)
        found = path.stat()
        files[path.name] = [found.st_size, found.st_mtime_ns]
    made.manifest.write_text(json.dumps({**manifest, "files": files}, indent=1))
    durable.sync(made.manifest)
    durable.sync(made.directory)


def _allocated(directory: Path) -> int:
    try:
        return sum(
            path.stat().st_blocks * _BLOCK_BYTES
            for path in directory.iterdir()
            if path != TemplatePaths(directory).base_image
        )
    except OSError:
        return 0
