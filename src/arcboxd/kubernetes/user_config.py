"""The user's kubeconfig: ours added and taken out, and what was selected before put back.

It belongs to the user: what is not ours stays as it is, with its comments and its order, and a file
that cannot be understood is not touched.

Source: client-go's ``tools/clientcmd`` for which file is used (``loader.go``) and how it is locked
    (``config.go``: a file ``NAME.lock``, made and removed).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arcboxd import durable
from arcboxd.errors import PreconditionError
from arcboxd.former import Former
from arcboxd.kubernetes.kubeconfig import Credentials, check_place
from arcboxd.kubernetes.user_document import Document

SIZE_MAX = 4 << 20
BACKUPS = 3

_LOCK_S = 10.0
_LOCK_POLL_S = 0.05
_MEND = "mend it, or move it away, and try again"


@dataclass(frozen=True, slots=True)
class Switched:
    """What is selected now, and what was before; empty: nothing."""

    selected: str
    before: str


class UserConfig:
    """The file that kubectl changes, and a file of ours that remembers what was selected."""

    def __init__(self, paths: Sequence[Path], memory: Path, *, lock_s: float = _LOCK_S) -> None:
        """Use these files.

        Args:
            paths: What kubectl reads, in its order; the first that exists is changed.
            memory: Keeps which context was selected before each of ours.
            lock_s: How long to wait for whoever else changes the file.
        """
        self._paths = paths
        self.path = next((path for path in paths if _exists(path)), paths[0])
        self._former = Former(memory, self.path)
        self._lock_s = lock_s

    @classmethod
    def of_user(cls, environ: Mapping[str, str], memory: Path) -> UserConfig:
        """Use what the user's kubectl uses: ``$KUBECONFIG``, else ``~/.kube/config``."""
        named = [Path(name) for name in environ.get("KUBECONFIG", "").split(":") if name]
        home = Path(environ.get("HOME") or Path.home())
        return cls([p.absolute() for p in named] or [home / ".kube" / "config"], memory)

    def selected(self) -> str:
        """Name the context that is selected in the file; empty: none.

        Raises:
            PreconditionError: The file cannot be read, or not understood.
        """
        return self._read().selected or ""

    def enable(self, found: Credentials, *, context: str, server: str) -> Switched:
        """Add a cluster, its user and its context, or renew them, and select the context.

        Idempotent: the former one stays remembered, and a file that is right is not written.

        Raises:
            InvalidArgumentError: The name or the address is not ours to give.
            PreconditionError: The file cannot be read, understood or locked, or has something of
                that name that is not ours.
            StoreError: Something cannot be written.
        """
        check_place(context, server)
        with self._held():
            document = self._read()
            before = document.selected
            document.put(context, server, found)
            if before != context:
                # First: whatever happens next, the way back is known.
                self._former.write(self._former.read() | {context: before})
                document.select(context)
            self._write(document)
        return Switched(context, before or "")

    def disable(self, context: str) -> Switched:
        """Take ours out; select what was before it, unless the user chose another since.

        Idempotent.

        Raises:
            PreconditionError: The file cannot be read, understood or locked.
            StoreError: Something cannot be written.
        """
        if not _exists(self.path):
            return Switched("", "")
        with self._held():
            document, former = self._read(), self._former.read()
            before = document.selected
            wanted = former.get(context)
            if wanted and not self._known(wanted, document):
                wanted = None
            if document.is_ours(context) and before == context:
                document.select(wanted)
            document.remove(context)
            self._write(document)
            if context in former:
                del former[context]
                # Others of ours may have come after this one.
                self._former.write({k: wanted if v == context else v for k, v in former.items()})
        return Switched(document.selected or "", before or "")

    def _known(self, context: str, document: Document) -> bool:
        if document.has_context(context):
            return True
        for path in self._paths:
            with contextlib.suppress(PreconditionError):
                if path != self.path and _read(path).has_context(context):
                    return True
        return False

    def _read(self) -> Document:
        return _read(self.path)

    def _write(self, document: Document) -> None:
        text = document.text()
        if text is None:
            return
        target = _resolved(self.path)
        if _exists(target) and not os.access(target, os.W_OK):
            raise PreconditionError(
                f"{self.path} may not be written, and was not touched",
                hint=f"allow it: chmod u+w {target}",
            )
        with durable.storing(f"write {self.path}"):
            if document.before:
                self._back_up(document.before)
            durable.write(target, text.encode())

    def _back_up(self, text: str) -> None:
        newest = self.path.with_name(f"{self.path.name}.arcbox-backup")
        names = [newest, *(Path(f"{newest}.{n}") for n in range(1, BACKUPS))]
        for younger, older in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(FileNotFoundError):
                younger.rename(older)
        durable.write(newest, text.encode())

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keep kubectl and others of ours from changing the file meanwhile."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        deadline = time.monotonic() + self._lock_s
        with durable.storing(f"lock {self.path}"):
            lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                try:
                    os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                    break
                except FileExistsError as error:
                    if time.monotonic() > deadline:
                        raise PreconditionError(
                            f"{self.path} is being changed by another program: {lock} is there",
                            hint=f"if no kubectl is at it, remove that: rm {lock}",
                        ) from error
                    time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # nobody can tell; opening it says why
        return True


def _read(path: Path) -> Document:
    try:
        # A pipe of that name would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Document("", str(path))
    except OSError as error:
        raise PreconditionError(f"cannot read {path}: {error.strerror}", hint=_MEND) from error
    try:
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PreconditionError(f"{path} is no file, and was not touched", hint=_MEND)
            content = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise PreconditionError(f"cannot read {path}: {error.strerror}", hint=_MEND) from error
    if len(content) > SIZE_MAX:
        raise PreconditionError(f"{path} is larger than {SIZE_MAX >> 20} MiB", hint=_MEND)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise PreconditionError(f"{path} is no text, and was not touched", hint=_MEND) from error
    return Document(text, str(path))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise PreconditionError(f"{path} leads nowhere: {error}", hint=_MEND) from error
