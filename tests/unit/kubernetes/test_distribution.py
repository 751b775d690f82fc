from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from arcboxd.errors import InvalidArgumentError, PreconditionError, UnsupportedError
from arcboxd.kubernetes.distribution import Pin, load

SHA = "0123456789abcdef" * 4
K3S = f"""
[k3s]
version = "v1.30.0+k3s1"
url = "https://example.test/{{version}}/{{file}}"
[k3s.x86_64]
file = "k3s"
sha256 = "{SHA.upper()}"
"""
UPSTREAM = f"""
distribution = "upstream"
[upstream]
version = "v1.20.2"
bundle = "/srv/kubernetes.tar.xz"
sha256 = "{SHA}"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kubernetes.toml"


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_without_a_file_there_is_a_whole_default(file: Path, arch: str) -> None:
    pin = load(file, arch)
    assert pin.distribution == "k3s"
    assert pin.source.startswith("https://")
    # A plus sign in an address may be taken for a space.
    assert pin.version.replace("+", "%2B") in pin.source
    assert len(pin.sha256) == 64
    assert pin.path is None


def test_a_table_replaces_the_whole_default(file: Path) -> None:
    file.write_text(K3S)
    source = "https://example.test/v1.30.0%2Bk3s1/k3s"
    assert load(file, "x86_64") == Pin("k3s", "v1.30.0+k3s1", source, SHA)
    # Not the default's digest with this version's address.
    with pytest.raises(UnsupportedError, match="aarch64"):
        load(file, "aarch64")


def test_upstream(file: Path) -> None:
    file.write_text(UPSTREAM)
    pin = load(file, "x86_64")
    assert pin == Pin("upstream", "v1.20.2", "/srv/kubernetes.tar.xz", SHA)
    assert pin.path == Path("/srv/kubernetes.tar.xz")
    with pytest.raises(UnsupportedError):
        load(file, "aarch64")


def test_upstream_without_a_bundle_says_where_to_name_it(file: Path) -> None:
    file.write_text('distribution = "upstream"\n')
    with pytest.raises(PreconditionError) as caught:
        load(file, "x86_64")
    assert str(file) in caught.value.hint


def test_without_a_digest_nothing_is_used(file: Path) -> None:
    for text in (K3S.replace(SHA.upper(), ""), UPSTREAM.replace(SHA, "")):
        file.write_text(text)
        with pytest.raises(PreconditionError, match="digest") as caught:
            load(file, "x86_64")
        assert str(file) in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "distribution = 1",
        'distribution = "minikube"',
        "k3s = 1",
        "not toml",
        "unknown = 1",
        K3S.replace("url =", "ulr ="),
        K3S.replace("https://", "ftp://"),
        K3S.replace("v1.30.0", "../.."),
        K3S.replace('"k3s"', '"../k3s"'),
        K3S.replace(SHA.upper(), "abc"),
        K3S.replace('sha256 = "', 'sha255 = "'),
        UPSTREAM.replace("/srv/", ""),
        UPSTREAM.replace("v1.20.2", "1.20"),
    ],
)
def test_what_is_wrong_is_said(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidArgumentError, match="does not say which Kubernetes"):
        load(file, "x86_64")


def test_a_program_of_the_users_own(file: Path, tmp_path: Path) -> None:
    program = tmp_path / "my k3s"
    program.write_bytes(b"k3s")
    file.write_text("not toml")
    digest = hashlib.sha256(b"k3s").hexdigest()
    assert load(file, "x86_64", str(program)) == Pin("k3s", "local", str(program), digest)
    with pytest.raises(PreconditionError, match="ARCBOX_K3S_BINARY"):
        load(file, "x86_64", str(tmp_path / "nothing"))
