"""The docker client and what its tests need beside it, none of it ours."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import select
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from arcboxd.assets.apt import Apt, unpack
from arcboxd.assets.mirror import host_codename
from arcboxd.paths import Paths

APPLETS = (
    *("sh", "true", "false", "cat", "echo", "sleep", "ls", "mkdir", "touch", "id", "hostname"),
    *("wget", "nc", "httpd", "env", "head", "test", "rm", "ps"),
)
IMAGE = "box:1"


async def debian_program(package: str, path: str, suite: str = "") -> Path:
    """Give a program of a Debian package without installing it; it stays in the user's cache."""
    cache = Paths.of().cache
    apt = Apt(cache / "assets" / "apt", suite or host_codename(), "x86_64")
    found = (await apt.resolve([package]))[package]
    target = cache / "tests" / f"{package}-{found.sha256[:16]}"
    if not (target / path).exists():
        files = await apt.fetch([found])
        await unpack(files.values(), target)
    return target / path


def docker_program() -> Path:
    """Give the docker client on the PATH, or Debian's."""
    if found := shutil.which("docker"):
        return Path(found)
    return asyncio.run(debian_program("docker.io", "usr/bin/docker"))


def root_tar(**files: str) -> bytes:
    """Make a root filesystem of a static busybox, and these files at its top."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "./dev setup installs it: busybox-static"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(info)
        _add(tar, "bin/busybox", Path(busybox).read_bytes(), 0o755)
        for applet in APPLETS:
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
        for name, text in files.items():
            _add(tar, name, text.encode(), 0o644)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


@dataclass(frozen=True)
class Docker:
    """The client, on one socket."""

    program: Path
    socket: Path
    config: Path

    @property
    def env(self) -> dict[str, str]:
        """Give its environment."""
        own = {"DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(self.config)}
        # The client on the PATH may have no plugin for the other builder.
        return {**os.environ, **own, "DOCKER_BUILDKIT": "0"}

    def run(
        self, *words: str, stdin: bytes | None = None, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of it to its end."""
        done = subprocess.run(
            [str(self.program), *words],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=self.env,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"docker {' '.join(words)} ended with {done.returncode}:\n"
                f"{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
            )
        return done

    def __call__(self, *words: str, stdin: bytes | None = None, timeout_s: float = 120) -> str:
        """Run a command that must succeed; give what it printed, stripped."""
        return self.run(*words, stdin=stdin, timeout_s=timeout_s).stdout.decode().strip()

    def inspect(self, name: str, field: str) -> str:
        """Ask for one field of a container."""
        return self("inspect", "-f", f"{{{{json {field}}}}}", name)

    @contextmanager
    def terminal(self, *words: str) -> Iterator[Terminal]:
        """Run a command of it on a terminal of its own."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [str(self.program), *words],
            env=self.env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            yield Terminal(ours, process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            os.close(ours)


@dataclass
class Terminal:
    """A terminal that someone types on."""

    fd: int
    process: subprocess.Popen[bytes]
    seen: bytes = b""

    def type(self, text: str) -> None:
        """Type."""
        os.write(self.fd, text.encode())

    def expect(self, text: str, timeout_s: float = 60) -> None:
        """Read until a text has come."""
        deadline = time.monotonic() + timeout_s
        while text.encode() not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError(f"{text!r} did not come: {self.seen!r}")
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                data = b""
            if not data:
                raise AssertionError(f"it ended before {text!r} came: {self.seen!r}")
            self.seen += data


@contextmanager
def registry(folder: Path) -> Iterator[int]:
    """Run Debian's registry on a loopback port; give the port."""
    program = asyncio.run(debian_program("docker-registry", "usr/bin/docker-registry"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    path = folder / "registry.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([str(program), "serve", str(path)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()
