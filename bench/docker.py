"""Docker: a new machine in which it runs, and what its socket and ports cost on their way."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from arcboxd.client.client import Client
from arcboxd.client.views import NewPort, NewTemplate
from arcboxd.domain.machine import DirectoryMount, NewMachine
from bench.figures import Figure, NotAvailableError, Wanted
from bench.host import CPUS, MEMORY_BYTES, Host, rounds
from bench.machines import Start, check_boot, from_nothing, output_of
from tests.vm.docker_client import IMAGE, Docker, docker_program, root_tar

TIMES = 5
RUNS = 5
LOADS = 3
LOAD_BYTES = 300 << 20
PAGE_BYTES = 100 << 20
NAME = "docker"


def run(host: Host) -> list[Figure]:
    """Measure each against its other in turns."""
    with host.daemon() as client, tempfile.TemporaryDirectory(prefix="abx-") as folder:
        client.prepare_template(NewTemplate(cpus=CPUS, memory_bytes=MEMORY_BYTES, runtime=True))
        found = _starts(host, client)
        client.create(NewMachine(name=NAME, cpus=CPUS, memory_bytes=MEMORY_BYTES))
        client.start(NAME)
        extra = client.inspect(NAME).extra
        assert extra is not None
        docker = Docker(docker_program(), Path(extra.docker_socket), Path(folder))
        docker("import", "-", IMAGE, stdin=root_tar())
        found += _runs(client, docker)
        found += _loads(client, docker, Path(folder))
        found += _pages(client, docker)
        client.remove(NAME, force=True)
    return found


def _starts(host: Host, client: Client) -> list[Figure]:
    def one(i: int) -> tuple[Start, float]:
        name = f"new{i}"
        began = time.perf_counter()
        took = from_nothing(client, name)
        check_boot(client, name, "template")
        extra = client.inspect(name).extra
        assert extra is not None
        _ping(extra.docker_socket)
        answered = time.perf_counter() - began
        client.remove(name, force=True)
        return took, answered

    one(-1)  # brings the template's files into the host's memory
    floors, starts = rounds(host.floor, TIMES, one)
    beside = tuple(floors)
    totals = tuple(took.total for took, _ in starts)
    wanted = Wanted(0.25, ratio=True)
    return [
        Figure("total", "create, start and `true`, Docker running", "s", totals, beside,
               wanted=wanted),
        Figure("ping", "the same, and an answer of dockerd", "s",
               tuple(answered for _, answered in starts), beside),
    ]  # fmt: skip


def _ping(socket: str) -> None:
    argv = ["curl", "-sf", "--unix-socket", socket, "http://docker/_ping"]
    assert subprocess.run(argv, check=True, capture_output=True).stdout == b"OK"


def _runs(client: Client, docker: Docker) -> list[Figure]:
    """Hold `docker run` by the socket against the same client in the guest."""
    if b"statically linked" not in subprocess.check_output(["file", "-L", docker.program]):
        raise NotAvailableError("the docker client on the PATH is not static: no guest can run it")
    with _mounted(client, docker.program.resolve().parent, "/mnt/bin"):
        inside = f"/mnt/bin/{docker.program.resolve().name}"

        def there(_: int) -> None:
            output_of(client, NAME, inside, "run", "--rm", IMAGE, "true")

        def here(_: int) -> None:
            docker("run", "--rm", IMAGE, "true")

        beside, samples = _in_turns(RUNS, there, here)
    return [
        Figure("run", "`docker run --rm IMAGE true` by the socket", "s", samples, beside,
               base="the same in the guest", wanted=Wanted(1.15, ratio=True)),
    ]  # fmt: skip


def _loads(client: Client, docker: Docker, folder: Path) -> list[Figure]:
    """Hold `docker load` by the socket against the same by SSH."""
    big = folder / "big"
    big.write_bytes(os.urandom(LOAD_BYTES))
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY big /\n")
    docker("build", "-t", "big:1", str(folder), timeout_s=600)
    archive = folder / "big.tar"
    docker("save", "-o", str(archive), "big:1", timeout_s=600)
    info = client.ssh_info(NAME)
    by_ssh = Docker(docker.program, folder / "ssh.sock", folder)
    tunnel = subprocess.Popen(
        [*shlex.split(info.command), "-N", "-L", f"{by_ssh.socket}:/var/run/docker.sock"]
    )
    try:
        deadline = time.monotonic() + 60
        while by_ssh.run("version", check=False).returncode:
            assert time.monotonic() < deadline, "no tunnel to the machine"
            time.sleep(0.5)

        def load(by: Docker) -> Callable[[int], None]:
            def once(_: int) -> None:
                by("rmi", "-f", "big:1")
                by("load", "-i", str(archive), timeout_s=600)

            return once

        beside, samples = _in_turns(LOADS, load(by_ssh), load(docker))
    finally:
        tunnel.terminate()
        tunnel.wait()
    return [
        Figure("load", "`docker load` of 300 MB by the socket", "s", samples, beside,
               base="the same by SSH", wanted=Wanted(1.0, ratio=True)),
    ]  # fmt: skip


def _pages(client: Client, docker: Docker) -> list[Figure]:
    """Hold a published port against a forward of QEMU's to the same port of the guest."""
    make = f"mkdir -p /srv/www; head -c {PAGE_BYTES} /dev/zero > /srv/www/page"
    output_of(client, NAME, "sh", "-c", make)
    own = client.add_port(NAME, NewPort(guest_port=18090)).host_port
    serve = ("httpd", "-f", "-p", "80", "-h", "/www")
    docker("run", "-d", "--name", "pages", "-p", "18090:80", "-v", "/srv/www:/www", IMAGE, *serve)
    time.sleep(2)

    def fetch(port: int) -> Callable[[int], None]:
        def once(_: int) -> None:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=300) as answer:
                assert len(answer.read()) == PAGE_BYTES

        return once

    beside, samples = _in_turns(RUNS, fetch(own), fetch(18090))
    docker("rm", "-f", "pages")
    return [
        Figure("port", "100 MiB from a published port", "s", samples, beside,
               base="a plain forward", wanted=Wanted(1 / 0.95, ratio=True)),
    ]  # fmt: skip


def _in_turns(
    times: int, one: Callable[[int], None], other: Callable[[int], None]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Time two things alternately, after one round that counts for nothing."""
    pairs = []
    for i in range(-1, times):
        pair = []
        for each in (one, other):
            began = time.perf_counter()
            each(i)
            pair.append(time.perf_counter() - began)
        if i >= 0:
            pairs.append(pair)
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


@contextmanager
def _mounted(client: Client, directory: Path, place: str) -> Iterator[None]:
    client.add_mount(NAME, DirectoryMount(str(directory), place, readonly=True))
    try:
        yield
    finally:
        client.remove_mount(NAME, place)
