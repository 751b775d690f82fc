"""Images from simplestreams servers: real lists over real connections, signed and not.

`data/` has lists signed by the key of `server.gpg` (made once with gpg, its private key thrown
away); `stranger.gpg` is another key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from arcboxd.errors import (
    ArcboxError,
    CorruptError,
    ImageNotFoundError,
    ImageServerError,
    PreconditionError,
)
from arcboxd.images.simplestreams import Fetched, fetch
from tests.integration.images.servers import QUICK, Reply, Request, files, serving

DATA = Path(__file__).parent / "data"
BODY = b"the root filesystem of a test\n" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
INDEX, LIST = "/streams/v1/index", "/streams/v1/images"
ROOT = "/images/20261101_13:00/rootfs.squashfs"
KEYRING = DATA / "server.gpg"


def lists(ending: str = ".json") -> dict[str, bytes]:
    """Give the signed lists, or what is signed in them."""
    found = {}
    for path in (INDEX, LIST):
        data = (DATA / f"{path.rpartition('/')[2]}.sjson").read_bytes()
        if ending == ".json":
            data = data.split(b"\n\n", 1)[1].split(b"-----BEGIN")[0]
        found[f"{path}{ending}"] = data
    return found


async def get(
    url: str, target: Path, version: str = "3.23", keyring: Path | None = None
) -> Fetched:
    return await fetch(
        url.split(","),
        "alpine",
        version,
        "x86_64",
        target,
        lambda *_: None,
        keyring=keyring,
        patience=QUICK,
    )


async def test_an_image_is_found_and_fetched(tmp_path: Path) -> None:
    async with serving(files({**lists(), ROOT: BODY})) as server:
        found = await get(f"{server.url}/", tmp_path / "new")
    assert found == Fetched(
        tmp_path / "new" / "root.squashfs",
        "squashfs",
        "alpine",
        "3.23",
        "x86_64",
        "20261101_13:00",
        SHA256,
    )
    assert found.path.read_bytes() == BODY
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["root.squashfs"]


@pytest.mark.parametrize("body", [BODY[:-1] + b"!", BODY + b"!", BODY[:-1]])
async def test_another_image_than_the_promised_is_not_kept(tmp_path: Path, body: bytes) -> None:
    async with serving(files({**lists(), ROOT: body})) as server:
        with pytest.raises(CorruptError):
            await get(server.url, tmp_path)
    assert [*tmp_path.iterdir()] == []


async def test_what_there_is_is_named(tmp_path: Path) -> None:
    async with serving(files(lists())) as server:
        with pytest.raises(ImageNotFoundError) as caught:
            await get(server.url, tmp_path, version="9")
    assert caught.value.hint == "there is: 3.23"


async def test_servers_are_asked_in_their_order(tmp_path: Path) -> None:
    empty = {**lists(), f"{LIST}.json": b'{"format": "products:1.0", "products": {}}'}
    async with (
        serving(files({})) as none,
        serving(files(empty)) as other,
        serving(files({**lists(), ROOT: BODY})) as last,
    ):
        servers = f"{none.url},{other.url},{last.url}"
        assert (await get(servers, tmp_path)).sha256 == SHA256
        # A server that failed may have had it: that is what to look at.
        with pytest.raises(ImageServerError):
            await get(f"{none.url},{other.url}", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {f"{INDEX}.json": b"no"},
        {f"{INDEX}.json": b"[]"},
        {f"{INDEX}.json": b'{"index": ' + b"[" * 100_000 + b"}"},
        {f"{LIST}.json": b'{"format": "products:1.0"}'},
        {f"{LIST}.json": b"\xff\xfe"},
    ],
    ids=lambda change: f"{next(iter(change.values()))[:12]!r}",
)
async def test_hostile_lists_are_refused(tmp_path: Path, change: Mapping[str, bytes]) -> None:
    async with serving(files({**lists(), ROOT: BODY, **change})) as server:
        with pytest.raises(CorruptError):
            await get(server.url, tmp_path)
        assert ROOT not in server.paths
    assert [*tmp_path.iterdir()] == []


async def test_a_path_out_of_the_tree_is_never_asked_for(tmp_path: Path) -> None:
    document = json.loads(lists()[f"{LIST}.json"])
    build = document["products"]["alpine:3.23:amd64:default"]["versions"]["20261101_13:00"]
    for path in ("../secret", "/etc/passwd", "http://127.0.0.1/x", "a/../../b"):
        build["items"]["root.squashfs"]["path"] = path
        content = {**lists(), f"{LIST}.json": json.dumps(document).encode()}
        async with serving(files(content)) as server:
            with pytest.raises(CorruptError, match="tree"):
                await get(server.url, tmp_path)
            assert server.paths == [f"{INDEX}.json", f"{LIST}.json"]


async def test_a_list_without_an_end_is_cut(tmp_path: Path) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.head("200 OK")
        while True:
            await reply.raw(b" " * 65536)

    async with serving(handler) as server:
        with pytest.raises(ImageServerError, match="larger"):
            await get(server.url, tmp_path)
        assert len(server.requests) == 1


async def test_a_signed_list_is_used_with_its_keyring(tmp_path: Path) -> None:
    async with serving(files({**lists(".sjson"), ROOT: BODY})) as server:
        found = await get(server.url, tmp_path, keyring=KEYRING)
        assert found.path.read_bytes() == BODY
        assert server.paths == [f"{INDEX}.sjson", f"{LIST}.sjson", ROOT]


def _changed(data: bytes) -> dict[str, bytes]:
    begin, end = b"-----BEGIN PGP SIGNED MESSAGE-----\n", b"-----END PGP SIGNATURE-----\n"
    evil = b'{"format": "products:1.0", "products": {}}\n'
    return {
        "unsigned": lists()[f"{LIST}.json"],
        "changed": data.replace(b'"size": 30000', b'"size": 30001'),
        "text before": evil + data,
        "text behind": data + evil,
        "two messages": data + data,
        "a message without signature": begin + b"Hash: SHA256\n\n" + evil + end,
        "empty": b"",
        "signature of another text": lists(".sjson")[f"{INDEX}.sjson"].replace(
            b'"index:1.0"', b'"products:1.0"'
        ),
    }


@pytest.mark.parametrize("name", [*_changed(b"")])
async def test_a_list_that_is_not_as_signed_is_refused(tmp_path: Path, name: str) -> None:
    signed = lists(".sjson")
    bad = _changed(signed[f"{LIST}.sjson"])[name]
    async with serving(files({**signed, ROOT: BODY, f"{LIST}.sjson": bad})) as server:
        with pytest.raises(CorruptError, match="sign"):
            await get(server.url, tmp_path, keyring=KEYRING)
        assert ROOT not in server.paths
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("keyring", "kind"),
    [("stranger.gpg", CorruptError), ("missing.gpg", PreconditionError)],
)
async def test_another_keyring_is_refused(
    tmp_path: Path, keyring: str, kind: type[ArcboxError]
) -> None:
    async with serving(files({**lists(".sjson"), ROOT: BODY})) as server:
        with pytest.raises(kind):
            await get(server.url, tmp_path, keyring=DATA / keyring)


async def test_an_unsigned_server_is_refused_with_a_keyring(tmp_path: Path) -> None:
    async with serving(files({**lists(), ROOT: BODY})) as server:
        with pytest.raises(ImageServerError):
            await get(server.url, tmp_path, keyring=KEYRING)


async def test_plain_http_needs_signatures(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="plain http"):
        await get("http://images.invalid", tmp_path)
