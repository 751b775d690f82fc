"""Names of images in registries, and what their manifests and challenges say."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from arcboxd.errors import (
    ArcboxError,
    CorruptError,
    ImageNotFoundError,
    InvalidArgumentError,
    UnsupportedError,
)
from arcboxd.images import json_input
from arcboxd.images.oci_manifest import (
    CONFIG_TYPES,
    INDEX_TYPES,
    LAYERS_MAX_BYTES,
    MANIFEST_TYPES,
    check_config,
    choose_platform,
    is_index,
    read_manifest,
)
from arcboxd.images.reference import parse_reference
from arcboxd.images.registry_login import Challenge, credentials, parse_challenge

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "origin", "repository", "manifest"),
    [
        ("alpine", "https://registry-1.docker.io", "library/alpine", "latest"),
        ("alpine:3.23", "https://registry-1.docker.io", "library/alpine", "3.23"),
        ("docker.io/alpine", "https://registry-1.docker.io", "library/alpine", "latest"),
        ("docker://some/image:x", "https://registry-1.docker.io", "some/image", "x"),
        ("quay.example/a/b-c/d__e:v1.2", "https://quay.example", "a/b-c/d__e", "v1.2"),
        ("registry:5000/x", "https://registry:5000", "x", "latest"),
        ("localhost/x", "http://localhost", "x", "latest"),
        ("localhost:5000/x:1", "http://localhost:5000", "x", "1"),
        ("127.0.0.1:5000/x:1", "http://127.0.0.1:5000", "x", "1"),
        ("127.9.9.9/x", "http://127.9.9.9", "x", "latest"),
        ("[::1]:5000/x", "http://[::1]:5000", "x", "latest"),
        ("https://localhost:5000/x", "https://localhost:5000", "x", "latest"),
        ("http://registry/x", "http://registry", "x", "latest"),
        ("10.0.0.1:5000/x", "https://10.0.0.1:5000", "x", "latest"),
        (f"quay.example/x:1@{DIGEST}", "https://quay.example", "x", DIGEST),
    ],
)
def test_references(text: str, origin: str, repository: str, manifest: str) -> None:
    found = parse_reference(text)
    assert (found.origin, found.repository, found.manifest) == (origin, repository, manifest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Alpine",
        "a//b",
        "a/../b",
        "../a",
        "x/",
        "a:b:c",
        "a:",
        "a@sha256:12",
        "a@md5:" + "0" * 32,
        "a b",
        "a\n",
        "a/b?c",
        "user:pw@host.example/x",
        "file:///etc/passwd",
        "http://docker.io/x",
        "host.example:port/x",
        "[::1/x",
        "a" * 600,
        "a/" + "b-" * 200 + "!",
    ],
)
def test_no_references(text: str) -> None:
    if text == "a\n":
        assert parse_reference(text).repository == "library/a"
        return
    with pytest.raises(InvalidArgumentError):
        parse_reference(text)


def blob(media_type: str, **more: object) -> dict[str, Any]:
    return {"mediaType": media_type, "size": 5, "digest": DIGEST, **more}


LAYER = blob("application/vnd.oci.image.layer.v1.tar+gzip")
CONFIG = blob(min(CONFIG_TYPES))
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}


def entry(arch: str, system: str = "linux", **more: object) -> dict[str, Any]:
    return blob(MANIFEST_TYPES[0], platform={"os": system, "architecture": arch}, **more)


def test_a_platform_is_chosen() -> None:
    entries = [
        entry("unknown", "unknown"),
        entry("amd64", "windows"),
        entry("arm64", digest="sha256:" + "cd" * 32),
        entry("amd64"),
        blob("text/plain", platform={"os": "linux", "architecture": "s390x"}),
    ]
    assert choose_platform({"manifests": entries}, "x86_64", "x").digest == DIGEST
    assert choose_platform({"manifests": entries}, "aarch64", "x").sha256 == "cd" * 32
    with pytest.raises(ImageNotFoundError) as caught:
        choose_platform({"manifests": entries[:2]}, "aarch64", "x")
    assert caught.value.hint == "there is: amd64"


def test_an_index_and_a_manifest_are_told_apart() -> None:
    assert is_index({"schemaVersion": 2, "manifests": []}, "x")
    assert not is_index({**MANIFEST, "mediaType": MANIFEST_TYPES[1]}, "x")
    for bad in (
        {},
        {"schemaVersion": 2},
        {**MANIFEST, "manifests": []},
        {**MANIFEST, "mediaType": INDEX_TYPES[0]},
        {**MANIFEST, "mediaType": ["x"]},
        {"schemaVersion": "2", "layers": []},
    ):
        with pytest.raises(CorruptError):
            is_index(bad, "x")
    with pytest.raises(UnsupportedError):
        is_index({"schemaVersion": 1, "fsLayers": []}, "x")


def test_addresses_and_annotations_in_a_manifest_mean_nothing() -> None:
    layer = {**LAYER, "urls": ["http://example.com/x"], "annotations": {"a": "b"}}
    assert read_manifest({**MANIFEST, "layers": [layer]}, "x") == read_manifest(MANIFEST, "x")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"layers": [blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]}, 1),
        ({"layers": [blob("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")]}, 1),
        ({"layers": [blob("application/vnd.oci.image.layer.v1.tar+encrypted")]}, 1),
        ({"config": blob("application/vnd.cncf.helm.config.v1+json")}, 1),
        ({"layers": [{**LAYER, "digest": "sha512:" + "ab" * 64}]}, 1),
        ({"layers": [{**LAYER, "digest": "../../etc/passwd"}]}, 0),
        ({"layers": [{**LAYER, "digest": "sha256:../" + "ab" * 30}]}, 0),
        ({"layers": [{**LAYER, "digest": None}]}, 0),
        ({"layers": [{**LAYER, "size": -1}]}, 0),
        ({"layers": [{**LAYER, "size": "5"}]}, 0),
        ({"layers": [{**LAYER, "size": LAYERS_MAX_BYTES - 1}] * 2}, 0),
        ({"layers": [LAYER] * 1000}, 0),
        ({"layers": []}, 0),
        ({"layers": {}}, 0),
        ({"layers": ["x"]}, 0),
        ({"config": None}, 0),
        ({"config": {**CONFIG, "size": 1 << 30}}, 0),
    ],
)
def test_a_hostile_manifest_is_refused(change: dict[str, Any], kind: int) -> None:
    expected: type[ArcboxError] = UnsupportedError if kind else CorruptError
    with pytest.raises(expected):
        read_manifest({**MANIFEST, **change}, "x")


def test_a_config_for_another_platform_is_refused() -> None:
    check_config({"os": "linux", "architecture": "arm64"}, "aarch64", "x")
    for bad in ({}, {"os": "linux", "architecture": "amd64"}, {"os": "windows"}, {"os": 7}):
        with pytest.raises(ImageNotFoundError):
            check_config(bad, "aarch64", "x")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"], ids=len
)
def test_no_json(data: bytes) -> None:
    with pytest.raises(CorruptError):
        json_input.parse(data, "it")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (
            'Bearer realm="https://auth.example/token",service="reg",scope="repository:a:push"',
            Challenge("bearer", "https://auth.example/token", "reg"),
        ),
        ('Basic realm="x"', Challenge("basic", "x", "")),
        ("Negotiate", Challenge("", "", "")),
        ("", Challenge("", "", "")),
    ],
)
def test_challenges(header: str, found: Challenge) -> None:
    assert parse_challenge(header) == found


def test_credentials_of_docker(tmp_path: Path) -> None:
    def auth(text: str) -> dict[str, str]:
        return {"auth": base64.b64encode(text.encode()).decode()}

    environ = {"DOCKER_CONFIG": str(tmp_path)}
    file = tmp_path / "config.json"
    assert credentials("x", environ) == ""
    config = {
        "credsStore": "never-run",
        "auths": {
            "https://index.docker.io/v1/": auth("hub:pw"),
            "reg.example:5000": auth("me:pw"),
            "empty.example": {},
            "odd.example": auth("no colon"),
            "evil.example": {"auth": "bm86\r\nX: y"},
        },
    }
    file.write_text(json.dumps(config))
    assert credentials("docker.io", environ) == auth("hub:pw")["auth"]
    assert credentials("reg.example:5000", environ) == auth("me:pw")["auth"]
    for registry in ("reg.example", "empty.example", "odd.example", "evil.example"):
        assert credentials(registry, environ) == ""
    for text in ("", "[]", '{"auths": 7}'):
        file.write_text(text)
        assert credentials("docker.io", environ) == ""
    assert credentials("docker.io", {"HOME": str(tmp_path / "nobody")}) == ""
