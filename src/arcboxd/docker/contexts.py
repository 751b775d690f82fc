"""The docker client's contexts: by its own program where that is there, else in its files.

Its settings belong to the user. They are read and checked by ourselves in either case: the program
takes settings that it cannot read for none, and writes them anew.

Source: https://docs.docker.com/engine/manage-resources/contexts/, and docker/cli's
    ``cli/context/store`` for the layout of the files.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from arcboxd import durable, process
from arcboxd.errors import PreconditionError

DEFAULT = "default"
"""The docker client's name for having no context selected."""
OURS = "arcbox: "
"""How the description of a context of ours begins."""
_PROGRAM_S = 30.0
_SELECTED = "currentContext"


class DockerContexts:
    """The contexts of one user. Reading never changes anything."""

    def __init__(self, directory: Path, program: str | None, environ: Mapping[str, str]) -> None:
        """Use a directory of settings.

        Args:
            directory: What ``$DOCKER_CONFIG`` names, or ``~/.docker``.
            program: The docker client; None to write the files ourselves.
            environ: For the program.
        """
        self.directory = directory
        self._program = program
        # The first two would make it ignore the contexts, or take another than is selected.
        unwanted = {"DOCKER_HOST", "DOCKER_CONTEXT"}
        self._environ = {k: v for k, v in environ.items() if k not in unwanted}
        self._environ["DOCKER_CONFIG"] = str(directory)

    @classmethod
    def of_user(cls, environ: Mapping[str, str]) -> DockerContexts:
        """Use what the user's docker client uses."""
        home = Path(environ.get("HOME") or Path.home())
        directory = Path(environ.get("DOCKER_CONFIG") or home / ".docker")
        return cls(directory, shutil.which("docker", path=environ.get("PATH")), environ)

    def selected(self) -> str:
        """Name the context that is selected.

        Raises:
            PreconditionError: The settings cannot be read.
        """
        return str(self._settings().get(_SELECTED) or DEFAULT)

    def exists(self, name: str) -> bool:
        """Tell whether there is such a context."""
        return name == DEFAULT or self._meta(name).exists()

    def endpoint(self, name: str) -> str:
        """Give where a context's Docker listens; empty when there is none or nobody can tell."""
        endpoints = self._document(name).get("Endpoints")
        docker = endpoints.get("docker") if isinstance(endpoints, dict) else None
        return str(docker.get("Host", "")) if isinstance(docker, dict) else ""

    def is_ours(self, name: str) -> bool:
        """Tell whether we have made a context."""
        metadata = self._document(name).get("Metadata")
        words = metadata.get("Description") if isinstance(metadata, dict) else None
        return isinstance(words, str) and words.startswith(OURS)

    def put(self, name: str, endpoint: str, description: str) -> None:
        """Make a context of ours, or change the one of that name. Idempotent.

        Raises:
            PreconditionError: Somebody else has made a context of that name.
            CommandError: The docker client failed.
            StoreError: The files cannot be written.
        """
        self._settings()
        exists = self.exists(name)
        if exists and not self.is_ours(name):
            raise PreconditionError(
                f"there is a docker context {name!r} that is not arcbox's",
                hint=f"remove it first, if nobody needs it: docker context rm {name}",
            )
        words = OURS + description
        if self._program is not None:
            verb = "update" if exists else "create"
            self._run(verb, "--docker", f"host={endpoint}", "--description", words, name)
            return
        document = {
            "Name": name,
            "Metadata": {"Description": words},
            "Endpoints": {"docker": {"Host": endpoint, "SkipTLSVerify": False}},
        }
        path = self._meta(name)
        with durable.storing(f"write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, json.dumps(document, separators=(",", ":")).encode(), 0o644)

    def select(self, name: str) -> None:
        """Have the docker client use a context from now on. Idempotent.

        Raises:
            PreconditionError: The settings cannot be read.
            CommandError: The docker client failed.
            StoreError: They cannot be written.
        """
        settings = self._settings()
        if str(settings.get(_SELECTED) or DEFAULT) == name:
            return
        if self._program is not None:
            self._run("use", name)
            return
        settings[_SELECTED] = name
        if name == DEFAULT:
            del settings[_SELECTED]
        with durable.storing(f"write {self._config}"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self._config, json.dumps(settings, indent="\t").encode(), 0o600)

    def remove(self, name: str) -> None:
        """Remove a context that is not selected. Idempotent.

        Raises:
            CommandError: The docker client failed.
            StoreError: The files cannot be removed.
        """
        if not self.exists(name):
            return
        if self._program is not None:
            self._run("rm", "--force", name)
            return
        with durable.storing(f"remove the docker context {name!r}"):
            for kind in ("meta", "tls"):
                directory = self.directory / "contexts" / kind / _digest(name)
                if directory.exists():
                    shutil.rmtree(directory)

    @property
    def _config(self) -> Path:
        return self.directory / "config.json"

    def _meta(self, name: str) -> Path:
        return self.directory / "contexts" / "meta" / _digest(name) / "meta.json"

    def _settings(self) -> dict[str, object]:
        try:
            content = self._config.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PreconditionError(f"cannot read {self._config}: {error.strerror}") from error
        try:
            settings = json.loads(content) if content.strip() else {}
        except ValueError as error:
            raise PreconditionError(
                f"{self._config} is no JSON, and was not touched: {error}",
                hint="mend it, or move it away, and try again",
            ) from error
        if not isinstance(settings, dict) or not isinstance(settings.get(_SELECTED, ""), str):
            raise PreconditionError(
                f"{self._config} is not what the docker client writes, and was not touched",
                hint="mend it, or move it away, and try again",
            )
        return settings

    def _document(self, name: str) -> dict[str, object]:
        try:
            document = json.loads(self._meta(name).read_bytes())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _run(self, *words: str) -> None:
        argv = [self._program or "docker", "context", *words]
        asyncio.run(_run(argv, self._environ))


async def _run(argv: list[str], environ: Mapping[str, str]) -> None:
    await process.run(argv, timeout_s=_PROGRAM_S, env=environ)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file at one stroke, where a link leads if it is one, with the mode that it has."""
    if path.exists():
        path = path.resolve()
        mode = path.stat().st_mode & 0o7777
    temporary = path.with_name(f".{path.name}.arcbox")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
