"""Docker in a machine, by the docker client and the docker library, neither of them ours.

The tests share the default machine, which the first of them makes by connecting to its socket, and
go on in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import docker as sdk
import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, agent_pb2_grpc
from tests.vm.conftest import Host
from tests.vm.docker_client import (
    IMAGE,
    Docker,
    debian_program,
    docker_program,
    registry,
    root_tar,
)
from tests.vm.waiting import until

NAME = "default"
ROUNDS = int(os.environ.get("ARCBOX_TEST_ROUNDS", "1"))
"""Of each kind of kill; more take long under emulation."""
SHAPE = ("--memory", "1536MiB", "--cpus", "2", "--disk", "8GiB")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Make the default machine a small one."""
    return {
        "ARCBOX_DEFAULT_MEMORY_BYTES": "1536MiB",
        "ARCBOX_DEFAULT_CPUS": "2",
        "ARCBOX_DEFAULT_DISK_BYTES": "8GiB",
    }


@pytest.fixture(scope="module")
def template(host: Host) -> str:
    """Make a template whose engine runs, as a user does."""
    return host.arcbox("image", "prepare", "--docker", *SHAPE).stdout.decode().split()[0]


@pytest.fixture(scope="module")
def docker(host: Host, template: str, tmp_path_factory: pytest.TempPathFactory) -> Docker:
    """Connect to the default machine's socket, which makes and starts the machine."""
    client = Docker(
        docker_program(), host.home / "run" / "docker.sock", tmp_path_factory.mktemp("d")
    )
    plugins = client.config / "cli-plugins"
    plugins.mkdir()
    path = "usr/libexec/docker/cli-plugins/docker-compose"
    compose = asyncio.run(debian_program("docker-compose", path, "trixie"))
    (plugins / "docker-compose").symlink_to(compose)
    assert "Server" in client("version")
    return client


@pytest.fixture(scope="module")
def image(docker: Docker) -> str:
    """Import an image from a root of files."""
    docker("import", "-", IMAGE, stdin=root_tar())
    return IMAGE


def status(host: Host, name: str = NAME) -> agent_pb2.RuntimeStatusResponse:
    """Ask how the runtime is."""
    return host.ext.GetRuntimeStatus(host_pb2.MachineRuntimeStatusRequest(id=name), timeout=60)


def fetch(port: int, path: str = "/", timeout_s: float = 20) -> str:
    """Read a page from a port of this host."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout_s) as answer:
        return str(answer.read().decode())


def free_port() -> int:
    """Give a TCP port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ready(host: Host) -> bool:
    """Tell whether both daemons are ready."""
    found = status(host)
    return found.containerd_ready and found.docker_ready


def refused(port: int) -> bool:
    """Tell whether nobody listens on a TCP port."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_first_connection_makes_and_starts_the_machine(
    host: Host, docker: Docker, template: str
) -> None:
    extra = host.described(NAME)
    assert (extra.boot, extra.boot_reason) == ("template", f"from template {template}")
    assert Path(extra.docker_socket).stat().st_mode & 0o777 == 0o600
    assert docker("info", "-f", "{{.Name}} {{.Driver}} {{.CgroupVersion}}") == f"{NAME} overlay2 2"
    found = status(host)
    assert (found.containerd_ready, found.docker_ready) == (True, True), found
    assert {s.name: s.status for s in found.services} == dict.fromkeys(
        ("containerd", "dockerd", "runc"), "ready"
    )
    server = docker("version", "-f", "{{.Server.Version}}").partition("+")[0]
    assert server in next(s.detail for s in found.services if s.name == "dockerd")


def test_ensure_is_idempotent(host: Host, docker: Docker) -> None:
    request = host_pb2.EnsureMachineRuntimeRequest(id=NAME, start_if_needed=True)
    calls = [host.ext.EnsureRuntime.future(request, timeout=120) for _ in range(20)]
    assert {(call.result().ready, call.result().status) for call in calls} == {(True, "reused")}
    assert calls[0].result().endpoint.startswith("unix://")


def test_any_client_of_the_agent_may_ask(host: Host, docker: Docker) -> None:
    with grpc.insecure_channel(f"unix:{host.described(NAME).agent_socket}") as channel:
        agent = agent_pb2_grpc.AgentServiceStub(channel)
        for start in (False, True):
            answer = agent.EnsureRuntime(
                agent_pb2.RuntimeEnsureRequest(start_if_needed=start), timeout=120
            )
            assert (answer.ready, answer.status) == (True, "reused")
        assert agent.GetRuntimeStatus(agent_pb2.RuntimeStatusRequest(), timeout=60).docker_ready


def test_build_and_run(docker: Docker, image: str, tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("hello")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {image}\nCOPY hello.txt /\nRUN cat hello.txt > /said\n"
    )
    docker("build", "-t", "built:1", str(tmp_path))
    assert docker("run", "--rm", "built:1", "cat", "/said") == "hello"
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY hello.txt /\n")
    docker("build", "-t", "scratch:1", str(tmp_path))
    made = docker("create", "scratch:1", "none")
    docker("cp", f"{made}:/hello.txt", str(tmp_path / "back.txt"))
    docker("rm", made)
    assert (tmp_path / "back.txt").read_text() == "hello"
    done = docker.run(
        "run", "--rm", image, "sh", "-c", "echo out; echo err >&2; exit 7", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_stdin_is_half_closed(docker: Docker, image: str) -> None:
    data = os.urandom(1 << 20)
    done = docker.run("run", "--rm", "-i", image, "cat", stdin=data)
    assert done.stdout == data


def test_terminals(docker: Docker, image: str) -> None:
    with docker.terminal("run", "--rm", "-it", "--name", "term", image, "sh") as terminal:
        terminal.expect("# ")
        terminal.type("test -t 0 && echo $((40 + 2))-is-said\n")
        terminal.expect("42-is-said\r\n")
        with docker.terminal("exec", "-it", "term", "sh") as other:
            other.expect("# ")
            other.type("hostname; exit 3\n")
            assert other.process.wait(60) == 3
        terminal.type("exit\n")
        assert terminal.process.wait(60) == 0


def test_attach_logs_events_and_stats(docker: Docker, image: str) -> None:
    loop = "n=0; while sleep 0.2; do n=$((n+1)); echo line-$n; done"
    since = str(int(time.time()) - 2)
    docker("run", "-d", "--name", "lines", image, "sh", "-c", loop)
    with docker.terminal("logs", "-f", "lines") as logs:
        logs.expect("line-3")
    with docker.terminal("attach", "--sig-proxy=false", "lines") as attached:
        attached.expect("line-")
    stats = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", "lines"))
    assert stats["Name"] == "lines"
    assert not stats["MemUsage"].startswith("0B")
    assert "sh" in docker("top", "lines")
    docker("rm", "-f", "lines")
    until_s = str(int(time.time()) + 2)
    events = docker("events", "--since", since, "--until", until_s, "-f", "container=lines",
                    "--format", "{{.Action}}")  # fmt: skip
    assert re.findall(r"^(?:create|start|destroy)$", events, re.MULTILINE) == [
        "create",
        "start",
        "destroy",
    ]


def test_volumes_and_copies(docker: Docker, image: str, tmp_path: Path) -> None:
    docker("volume", "create", "kept")
    docker("run", "--rm", "-v", "kept:/data", image, "sh", "-c", "echo mine > /data/file")
    assert docker("run", "--rm", "-v", "kept:/data", image, "cat", "/data/file") == "mine"
    docker("run", "-d", "--name", "copies", image, "sleep", "1000")
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "big").write_bytes(blob := os.urandom(3 << 20))
    docker("cp", str(source), "copies:/tmp/")
    docker("cp", "copies:/tmp/tree/sub/big", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == blob
    docker("rm", "-f", "copies")


def test_bind_mounts_of_a_shared_directory(
    host: Host, docker: Docker, image: str, tmp_path: Path
) -> None:
    (tmp_path / "from-host").write_text("from the host")
    host.arcbox("mount", "add", NAME, f"{tmp_path}:/shared")
    script = "cat /s/from-host; echo from a container > /s/back"
    assert docker("run", "--rm", "-v", "/shared:/s", image, "sh", "-c", script) == "from the host"
    assert (tmp_path / "back").read_text() == "from a container\n"
    host.arcbox("mount", "rm", NAME, "/shared")


def test_networks_with_names(docker: Docker, image: str) -> None:
    docker("network", "create", "net")
    serve = "mkdir /www; echo from web > /www/index.html; exec httpd -f -p 80 -h /www"
    docker("run", "-d", "--name", "web", "--network", "net", image, "sh", "-c", serve)
    fetched = docker("run", "--rm", "--network", "net", image, "wget", "-qO-", "http://web/")
    assert fetched == "from web"
    docker("rm", "-f", "web")
    docker("network", "rm", "net")


def test_healthchecks(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "well", "--health-cmd", "test -e /tmp/ok",
           "--health-interval", "1s", "--health-retries", "1", image,
           "sh", "-c", "touch /tmp/ok; sleep 1000")  # fmt: skip
    until(lambda: docker.inspect("well", ".State.Health.Status") == '"healthy"', 60, "health")
    docker("exec", "well", "sh", "-c", "rm /tmp/ok")
    until(lambda: docker.inspect("well", ".State.Health.Status") == '"unhealthy"', 60, "illness")
    docker("rm", "-f", "well")


def test_restart_policies(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "again", "--restart", "on-failure:2", image, "false")
    until(lambda: docker.inspect("again", ".RestartCount") == "2", 60, "two restarts")
    docker("rm", "-f", "again")


def test_save_and_load(docker: Docker, image: str, tmp_path: Path) -> None:
    docker("tag", image, "saved:1")
    docker("save", "-o", str(tmp_path / "saved.tar"), "saved:1")
    docker("rmi", "saved:1")
    assert "saved:1" in docker("load", "-i", str(tmp_path / "saved.tar"))
    assert docker("run", "--rm", "saved:1", "echo", "loaded") == "loaded"


def test_push_and_pull(host: Host, docker: Docker, image: str, tmp_path: Path) -> None:
    # The guest sees the host's loopback at the gateway; the registry has no certificate.
    settings = {"insecure-registries": ["10.0.2.2/32"]}
    host.sh(NAME, f"mkdir -p /etc/docker; echo '{json.dumps(settings)}' > /etc/docker/daemon.json")
    before = host.sh(NAME, "cat /run/arcbox/services/dockerd.json")
    host.sh(NAME, "kill $(pidof dockerd)")
    until(lambda: host.sh(NAME, "cat /run/arcbox/services/dockerd.json") != before, 60, "another")
    until(lambda: docker.run("version", check=False).returncode == 0, 120, "dockerd")
    with registry(tmp_path) as port:
        name = f"10.0.2.2:{port}/pushed:1"
        docker("tag", image, name)
        docker("push", name)
        docker("rmi", name)
        docker("pull", name)
        assert docker("run", "--rm", name, "echo", "pulled") == "pulled"


def test_compose(docker: Docker, image: str, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "compose.yaml").write_text(f"""
services:
  web:
    image: {image}
    command: sh -c "mkdir /www; echo composed > /www/index.html; exec httpd -f -p 80 -h /www"
    ports: ["{port}:80"]
  asks:
    image: {image}
    command: sh -c "until wget -qO- http://web/; do sleep 0.3; done; sleep 1000"
    depends_on: [web]
""")
    files = ("compose", "-f", str(tmp_path / "compose.yaml"))
    docker(*files, "up", "-d")
    until(lambda: "composed" in docker(*files, "logs", "asks"), 60, "the other service's page")
    assert fetch(port) == "composed\n"
    docker(*files, "down", "-t", "1")
    until(lambda: refused(port), 10, "a closed port")


def test_published_ports(host: Host, docker: Docker, image: str) -> None:
    tcp, udp, loopback = free_port(), free_port(), free_port()
    # The runtime's own disk has a program that answers datagrams, and runs wherever it is seen.
    bundle = "/run/arcbox/runtime"
    serve = (
        "mkdir /www; echo a page > /www/index.html; httpd -p 80 -h /www;"
        f"exec {bundle}/bin/socat UDP4-RECVFROM:53,fork EXEC:cat"
    )
    ports = ("-p", f"{tcp}:80", "-p", f"{udp}:53/udp", "-p", f"127.0.0.1:{loopback}:80")
    shared = ("-v", f"{bundle}:{bundle}:ro")
    docker("run", "-d", "--name", "ports", *shared, *ports, image, "sh", "-c", serve)
    until(lambda: not refused(tcp) and not refused(loopback), 10, "open ports")
    assert fetch(tcp) == fetch(loopback) == "a page\n"
    until(lambda: echoes(udp), 30, "an answer to a datagram")
    rows = {row["host_port"]: row for row in json.loads(host.arcbox("port", "ls", "--json").stdout)}
    assert rows[tcp]["source"] == "container:ports"
    assert rows[tcp]["state"] == "open"
    assert rows[tcp]["host_address"] == "127.0.0.1"
    docker("rm", "-f", "ports")
    until(lambda: refused(tcp) and refused(loopback), 10, "closed ports")


def echoes(port: int) -> bool:
    """Tell whether a datagram to a port comes back; one is lost while nobody listens yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.settimeout(2)
        client.send(b"a datagram")
        try:
            return client.recv(100) == b"a datagram"
        except (TimeoutError, ConnectionRefusedError):
            return False


def test_a_port_that_is_taken_breaks_nothing(host: Host, docker: Docker, image: str) -> None:
    other = free_port()
    serve = "mkdir /www; echo late > /www/index.html; exec httpd -f -p 80 -h /www"
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        taken = int(mine.getsockname()[1])
        docker("run", "-d", "--name", "taken", "-p", f"{taken}:80", "-p", f"{other}:80", image,
               "sh", "-c", serve)  # fmt: skip
        until(lambda: not refused(other), 10, "the other port")
        rows = json.loads(host.arcbox("port", "ls", NAME, "--json").stdout)
        assert next(row["state"] for row in rows if row["host_port"] == taken) == "taken"
    until(lambda: not refused(taken), 30, "the port, now that it is free")
    assert fetch(taken) == "late\n"
    docker("rm", "-f", "taken")


def test_the_library(docker: Docker, image: str) -> None:
    client = sdk.DockerClient(base_url=f"unix://{docker.socket}", timeout=120)
    try:
        assert client.ping()
        assert client.containers.run(image, ["echo", "by the library"], remove=True) == (
            b"by the library\n"
        )
        running = client.containers.run(image, ["sleep", "1000"], detach=True)
        assert running.exec_run(["id", "-u"]).output == b"0\n"
        running.remove(force=True)
    finally:
        client.close()


@pytest.fixture
def steady(docker: Docker, image: str) -> Iterator[str]:
    """Run a container that is to come back whatever happens, with a published port."""
    port = free_port()
    serve = "mkdir -p /www; echo steady > /www/index.html; exec httpd -f -p 80 -h /www"
    docker("run", "-d", "--name", "steady", "--restart", "always", "-p", f"{port}:80", image,
           "sh", "-c", serve)  # fmt: skip
    until(lambda: not refused(port), 20, "its port")
    yield str(port)
    docker("rm", "-f", "steady")


@pytest.fixture
def load(docker: Docker, image: str) -> Iterator[None]:
    """Keep Docker at work meanwhile; what fails while a daemon is away is no fault."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            docker.run("run", "--rm", image, "true", check=False)
            docker.run("exec", "steady", "echo", "hello", check=False)

    worker = threading.Thread(target=work)
    worker.start()
    yield
    over.set()
    worker.join()


def check_steady(host: Host, docker: Docker, port: str) -> None:
    """Make sure that Docker, its container and the container's port are all there."""
    until(lambda: ready(host), 180, "docker")
    assert docker.inspect("steady", ".State.Running") == "true"
    until(lambda: _serves(int(port)), 60, "the port")


def _serves(port: int) -> bool:
    # A forward takes connections at once, and resets them while nothing listens behind it; one that
    # comes while dockerd writes its rules anew waits for TCP to try again.
    try:
        return fetch(port, timeout_s=5) == "steady\n"
    except OSError:
        return False


@pytest.mark.usefixtures("load")
def test_killed_daemons_come_back(host: Host, docker: Docker, steady: str) -> None:
    for _ in range(ROUNDS):
        for name in ("dockerd", "containerd"):
            was = host.sh(NAME, f"pidof {name}")
            host.sh(NAME, f"kill -9 $(pidof {name})")
            until(lambda n=name, w=was: host.sh(NAME, f"pidof {n} || :") not in {"", w}, 60, name)
            check_steady(host, docker, steady)


@pytest.mark.usefixtures("load")
def test_a_killed_agent_takes_over(host: Host, docker: Docker, steady: str) -> None:
    daemons = host.sh(NAME, "pidof dockerd containerd")
    kill = "setsid sh -c 'sleep 0.3; kill -9 $(cat /run/arcbox/agent.pid)' &"
    for _ in range(ROUNDS):
        was = host.sh(NAME, "cat /run/arcbox/agent.pid")
        host.exec(NAME, "sh", "-c", kill)
        until(
            lambda w=was: _say(host, "cat /run/arcbox/agent.pid") not in {"", w},
            60,
            "another agent",
        )
        check_steady(host, docker, steady)
    assert host.sh(NAME, "pidof dockerd containerd") == daemons
    host.sh(NAME, "kill -9 $(pidof dockerd)")
    until(lambda: host.sh(NAME, "pidof dockerd || :") not in daemons, 60, "another dockerd")
    check_steady(host, docker, steady)


def _say(host: Host, script: str) -> str:
    try:
        return host.sh(NAME, script)
    except (grpc.RpcError, AssertionError):  # the agent is away
        return ""


def test_a_killed_daemon_takes_over(host: Host, docker: Docker, steady: str) -> None:
    for _ in range(ROUNDS):
        os.kill(int(host.ext.GetDaemonInfo(host_pb2.DaemonInfoRequest()).pid), 9)
        host.arcbox("daemon", "start")
        until(lambda: docker.run("version", check=False).returncode == 0, 60, "the socket")
        check_steady(host, docker, steady)
    docker("rm", "-f", "steady")
    until(lambda: refused(int(steady)), 20, "the port's end")
    docker("run", "-d", "--name", "steady", IMAGE, "sleep", "10")


def test_a_stopped_daemon_is_not_ready(host: Host, docker: Docker) -> None:
    host.sh(NAME, "kill -STOP $(pidof dockerd)")
    try:
        found = status(host)
        assert (found.containerd_ready, found.docker_ready) == (True, False)
        assert {s.name: s.status for s in found.services}["dockerd"] == "not_ready"
    finally:
        host.sh(NAME, "kill -CONT $(pidof dockerd)")
    until(lambda: ready(host), 60, "dockerd")


def test_suspend_and_resume(host: Host, docker: Docker, steady: str) -> None:
    host.arcbox("suspend", NAME)
    assert refused(int(steady))
    host.arcbox("resume", NAME)
    assert docker.inspect("steady", ".State.Running") == "true"
    until(lambda: not refused(int(steady)), 20, "its port")
    assert fetch(int(steady)) == "steady\n"


def test_stop_and_start_bring_containers_back(host: Host, docker: Docker, steady: str) -> None:
    host.arcbox("stop", NAME)
    assert refused(int(steady))
    # The first connection starts the machine and its engine again.
    assert docker("ps", "-a", "--format", "{{.Names}}", timeout_s=300) == "steady"
    until(lambda: docker.inspect("steady", ".State.Running") == "true", 60, "its restart")
    until(lambda: not refused(int(steady)), 60, "its port")
    assert fetch(int(steady)) == "steady\n"


def test_logs(host: Host, docker: Docker) -> None:
    for source in ("dockerd", "containerd", "agent"):
        assert host.arcbox("logs", NAME, "--source", source, "--lines", "5").stdout
    assert b"docker" in host.arcbox("logs", NAME, "--source", "dockerd").stdout
