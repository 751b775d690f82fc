"""CPython for the agent: Debian's packages cut down to what the agent needs, compiled ahead."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from arcboxd.assets.apt import unpack
from arcboxd.assets.elf import needed
from arcboxd.errors import AssetBuildError, MissingToolError
from arcboxd.process import CommandError, run

RECIPE = "4"
"""Raised when this module makes something else of the same packages."""

PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libssl3",
    "libstdc++6",
    "zlib1g",
)
"""The interpreter, its library and the shared libraries of what is kept; each library that a file
needs must come from these, which the build checks."""

_VERSION = "python3.11"

_UNUSED_NAMES = """
    EXTERNALLY-MANAGED LICENSE __phello__ __pycache__ _aix_support _bootsubprocess _osx_support
    aifc antigravity cgi cgitb chunk config-3 crypt curses dbm distutils doctest ensurepip ftplib
    idlelib imaplib imghdr lib2to3 mailbox mailcap msilib nntplib nturl2path pdb pipes poplib pyclbr
    pydoc pydoc_data sitecustomize smtpd smtplib sndhdr sqlite3 sunau telnetlib test tests this
    tkinter tomllib turtle turtledemo unittest uu venv wave webbrowser wsgiref xdrlib xml xmlrpc
    zipapp zoneinfo
"""
_UNUSED = frozenset(_UNUSED_NAMES.split())
"""Of the standard library: what the agent never imports."""

_UNUSED_EXTENSION_NAMES = """
    _bz2 _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _crypt _ctypes_test
    _curses _curses_panel _dbm _decimal _gdbm _hashlib _lzma _multibytecodec _sqlite3
    _testbuffer _testcapi _testclinic _testimportmultiple _testinternalcapi _testmultiphase _tkinter
    _uuid _xxsubinterpreters _xxtestfuzz audioop nis ossaudiodev readline xxlimited xxlimited_35
"""
_UNUSED_EXTENSIONS = frozenset(_UNUSED_EXTENSION_NAMES.split())


async def build_runtime(
    packages: Sequence[Path],
    lock: Path,
    arch: str,
    target: Path,
    *,
    interpreter: Path | None,
    step: Callable[[str], None],
) -> None:
    """Make the part of the bundle that does not depend on our code.

    Layout: ``bin/python3``, ``lib/`` (loader and libraries, and ``python3.11``, a link to the
    standard library, by which Python finds its prefix), ``python/lib/python3.11``, ``python/site``,
    and ``loader``, which holds the loader's file name.

    Args:
        packages: Files of `PACKAGES`.
        lock: Requirements with hashes, for ``python/site``.
        arch: The packages' architecture.
        target: An empty directory; also used for scratch.
        interpreter: What this made for the host's architecture, if that is another: compiled files
            are the same for all.
        step: Called with a phrase before each step.

    Raises:
        AssetBuildError: A step failed.
        MissingToolError: There is no pip.
    """
    scratch = target / "scratch"
    step("unpacking Python for the agent")
    await unpack(packages, scratch)
    await asyncio.to_thread(_arrange, scratch, target)
    step("fetching the agent's Python packages")
    await install_requirements(lock, target / "python" / "site", arch)
    await asyncio.to_thread(_copy_libraries, scratch, target)
    step("compiling Python for the agent")
    await compile_tree(interpreter or target, target, target / "python")
    await asyncio.to_thread(shutil.rmtree, scratch)


def _arrange(scratch: Path, target: Path) -> None:
    home = target / "python" / "lib" / _VERSION
    source = scratch / "usr" / "lib" / _VERSION
    shutil.copytree(source, home, ignore=_ignored, symlinks=True)
    for path in (home / "lib-dynload").glob("*.so"):
        if path.name.split(".")[0] in _UNUSED_EXTENSIONS:
            path.unlink()
    (target / "bin").mkdir()
    shutil.copy2(scratch / "usr" / "bin" / _VERSION, target / "bin" / "python3")
    (target / "lib").mkdir()
    (target / "lib" / _VERSION).symlink_to(f"../python/lib/{_VERSION}")


def _ignored(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.split(".")[0] in _UNUSED]


def _copy_libraries(scratch: Path, target: Path) -> None:
    """Copy the loader and every library that something needs, directly or not.

    All of them: what is missing here would be taken from the guest's distribution, if it had it.
    """
    available = {path.name: path for path in scratch.glob("**/*.so*")}
    folder = target / "lib"
    files = [target / "bin" / "python3", *(target / "python").rglob("*.so")]
    todo = [name for path in files for name in needed(path)]
    # Loaded by name at run time: getpwnam and getaddrinfo, for what the guest's own files say.
    todo += ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"]
    while todo:
        name = todo.pop()
        if (folder / name).exists():
            continue
        if name not in available:
            if name.startswith("libnss_"):
                continue
            raise AssetBuildError(f"no package of the agent's Python has {name}")
        path = available[name].resolve()
        shutil.copyfile(path, folder / name)
        (folder / name).chmod(0o755)
        todo += needed(path)
    loaders = sorted(path.name for path in folder.glob("ld-*"))
    if len(loaders) != 1:
        raise AssetBuildError(f"found {len(loaders)} dynamic loaders instead of one")
    (target / "loader").write_text(loaders[0] + "\n")


async def install_requirements(lock: Path, site: Path, arch: str) -> None:
    """Install wheels for the bundle's Python, none of whose code is run.

    Raises:
        AssetBuildError: A package cannot be fetched, or is not what its hash says.
        MissingToolError: There is no pip.
    """
    if importlib.util.find_spec("pip") is None:
        raise MissingToolError(
            "pip is not installed beside arcboxd",
            hint=f"install it with: {sys.executable} -m ensurepip, or apt-get install python3-pip",
        )
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    argv += ["--no-input", "--no-deps", "--no-compile", "--no-warn-script-location"]
    argv += ["--require-hashes", "--only-binary=:all:", "--target", str(site), "-r", str(lock)]
    argv += ["--implementation=cp", "--python-version=3.11", "--abi=cp311", "--abi=abi3"]
    argv += ["--abi=none", *(f"--platform=manylinux{v}_{arch}" for v in ("2014", "_2_28", "_2_17"))]
    try:
        await run(argv, timeout_s=600)
    except CommandError as error:
        raise AssetBuildError(
            f"cannot fetch the agent's Python packages: {error}",
            hint="check that the host's pip reaches its package index",
        ) from error


async def compile_tree(interpreter: Path, bundle: Path, tree: Path) -> None:
    """Replace all source below ``tree`` by compiled files without source beside it.

    Such files are found with fewer look-ups than ``__pycache__`` and are never checked for age.

    Args:
        interpreter: A directory that `build_runtime` made, for the host's architecture.
        bundle: What guests have as their bundle.
        tree: A directory of it.

    Raises:
        AssetBuildError: Something does not compile.
    """
    loader = (interpreter / "loader").read_text().strip()
    lib = interpreter / "lib"
    python = [str(lib / loader), "--library-path", str(lib), str(interpreter / "bin" / "python3")]
    # -OO: without docstrings there is less to read in and no assertion to run.
    options = ["-I", "-S", "-OO", "-m", "compileall", "-q", "-b", "-j0"]
    options += [
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(bundle),
        "-p",
        "/run/arcbox/bundle",
    ]
    try:
        await run([*python, *options, str(tree)], timeout_s=300)
    except CommandError as error:
        raise AssetBuildError(f"cannot compile the agent's Python: {error}") from error
    await asyncio.to_thread(_drop_sources, tree)


def _drop_sources(tree: Path) -> None:
    for path in [*tree.rglob("*.py"), *tree.rglob("*.pyi"), *tree.rglob("py.typed")]:
        path.unlink()
    for pattern in ("__pycache__", "*.dist-info", "bin"):
        for path in tree.rglob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
