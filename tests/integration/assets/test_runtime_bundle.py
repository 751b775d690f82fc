"""The real container runtime: each program runs with nothing beside it, and takes nothing of ours.

Needs root, and the host's Debian mirror if the user's cache has no such disk yet; nothing boots.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcboxd.assets.elf import needed
from arcboxd.assets.runtime_bundle import MOUNT
from arcboxd.assets.store import AssetStore
from arcboxd.paths import Paths

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the runtime in its place"),
]

# A root filesystem that has the runtime and nothing else: no C library, no loader.
_EMPTY_ROOT = f"""
set -e
mount -t tmpfs none "$ROOT"
mkdir -p "$ROOT{MOUNT}" "$ROOT/proc"
mount --bind "$TREE" "$ROOT{MOUNT}"
mount -t proc none "$ROOT/proc"
exec chroot "$ROOT" "$@"
"""
_HOST_ROOT = f"""
set -e
mount -t tmpfs none /run
mkdir -p {MOUNT}
mount --bind "$TREE" {MOUNT}
exec "$@"
"""

_SAYS = {
    "conntrack": ("--version", "conntrack v"),
    "containerd": ("--version", "containerd github.com/containerd/containerd {containerd}"),
    "containerd-shim-runc-v2": ("-v", "containerd-shim-runc-v2:"),
    "ctr": ("--version", "ctr github.com/containerd/containerd"),
    "docker-init": ("--version", "tini version {docker-init}"),
    "docker-proxy": ("-version", "docker-proxy (commit "),
    "dockerd": ("--version", "Docker version {dockerd}"),
    "ip6tables-legacy-save": ("--version", "ip6tables-save v{iptables} (legacy)"),
    "iptables": ("--version", "iptables v{iptables} (nf_tables)"),
    "iptables-legacy": ("--version", "iptables v{iptables} (legacy)"),
    "nsenter": ("--version", "nsenter from util-linux"),
    "pigz": ("--version", "pigz "),
    "ps": ("--version", "ps from procps-ng"),
    "runc": ("--version", "runc version {runc}"),
    "socat": ("-V", "socat by"),
    "unpigz": ("--version", "pigz "),
    "xz": ("--version", "xz (XZ Utils)"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    image = asyncio.run(AssetStore(Paths.of()).runtime("x86_64", lambda *_: None))
    assert image.stat().st_mode & 0o777 == 0o444
    tree = tmp_path_factory.mktemp("runtime") / "tree"
    subprocess.run(["fsck.erofs", f"--extract={tree}", str(image)], check=True, capture_output=True)
    yield tree
    shutil.rmtree(tree)


def _run(script: str, tree: Path, *argv: str, **environ: str) -> str:
    root = tree.with_name("root")
    root.mkdir(exist_ok=True)
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *argv]
    env = {**os.environ, "TREE": str(tree), "ROOT": str(root), **environ}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", _SAYS)
def test_each_program_runs_alone(tree: Path, name: str) -> None:
    option, words = _SAYS[name]
    versions = json.loads((tree / "versions.json").read_text())
    out = _run(_EMPTY_ROOT, tree, f"{MOUNT}/bin/{name}", option)
    assert words.format_map(versions) in out


def test_every_program_is_tried(tree: Path) -> None:
    targets = {(tree / "bin" / name).resolve() for name in _SAYS}
    assert targets == {p for p in (tree / "bin").iterdir() if not p.is_symlink()}


def test_network_plugins_run_alone(tree: Path) -> None:
    for plugin in sorted((tree / "cni").iterdir()):
        out = _run(_EMPTY_ROOT, tree, f"{MOUNT}/cni/{plugin.name}", CNI_COMMAND="VERSION")
        assert json.loads(out)["supportedVersions"], plugin.name


@pytest.mark.parametrize("extension", ["conntrack", "comment", "multiport"])
def test_extensions_of_iptables_load_alone(tree: Path, extension: str) -> None:
    argv = [f"{MOUNT}/bin/iptables", "-m", extension, "--help"]
    out = _run(_EMPTY_ROOT, tree, *argv, XTABLES_LIBDIR=f"{MOUNT}/lib/xtables")
    assert f"{extension} match options" in out


def test_no_library_of_the_host_is_used_where_there_are_some(tree: Path) -> None:
    loader = next((tree / "lib").glob("ld-*")).name
    programs = [p for f in ("bin", "cni") for p in (tree / f).iterdir() if not p.is_symlink()]
    for program in (p for p in programs if needed(p)):
        path = f"{MOUNT}/{program.relative_to(tree)}"
        # The host's libraries must not win either if the environment names them.
        argv = ["env", "LD_LIBRARY_PATH=/lib/x86_64-linux-gnu", f"{MOUNT}/lib/{loader}", "--list"]
        rows = [row.split() for row in _run(_HOST_ROOT, tree, *argv, path).splitlines()]
        found = [word for row in rows for word in row if word.startswith("/")]
        assert found, program.name
        assert [path for path in found if not path.startswith(f"{MOUNT}/lib/")] == []


def test_certificates(tree: Path) -> None:
    text = (tree / "etc" / "ssl" / "certs" / "ca-certificates.crt").read_text()
    assert text.count("-----BEGIN CERTIFICATE-----\n") > 50
    assert text.count("-----BEGIN CERTIFICATE-----\n") == text.count("-----END CERTIFICATE-----\n")
