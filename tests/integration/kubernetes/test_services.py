"""The client of an API server, against a real one on loopback, and against hostile ones."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from arcboxd.errors import CorruptError
from arcboxd.kubernetes import services as client_module
from arcboxd.kubernetes.kubeconfig import Credentials, credentials
from arcboxd.kubernetes.service_objects import ListAnewError, NodePort, Service
from arcboxd.kubernetes.services import ServiceClient, tls_context
from tests.api_server import ApiServer, Keys, service, serving
from tests.unit.kubernetes.certificates import encoded, pair

TOKEN = "K10abc::server:secret"  # noqa: S105


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys") / "one")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys") / "other")


@pytest.fixture
async def server(keys: Keys) -> AsyncIterator[ApiServer]:
    async with serving(keys.server()) as server:
        yield server


def client(server: ApiServer, config: str, timeout_s: float = 10.0) -> ServiceClient:
    address = f"https://127.0.0.1:{server.port}"
    return ServiceClient(address, credentials(config), timeout_s=timeout_s)


async def first(server: ApiServer, config: str, version: str = "100") -> object:
    async with client(server, config) as api, aclosing(api.watch(version)) as changes:
        async for change in changes:
            return change
    return None


async def test_all_pages_are_one_list(server: ApiServer, keys: Keys) -> None:
    server.page_size = 3
    for at in range(8):
        server.put(service(f"s{at}", 30000 + at))
    async with client(server, keys.kubeconfig()) as api:
        found, version = await api.services()
    assert found == [Service("default", f"s{n}", (NodePort("tcp", 30000 + n),)) for n in range(8)]
    assert (version, server.lists) == ("108", 3)
    assert [r.query.get("continue", "") for r in server.requests] == ["", "3", "6"]
    # One connection for all of it, which asks for nothing compressed.
    assert server.connected == 1
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_a_list_without_end_ends(server: ApiServer, keys: Keys) -> None:
    endless = b'{"metadata":{"resourceVersion":"7","continue":"0"},"items":[]}'
    server.body = endless
    async with client(server, keys.kubeconfig()) as api:
        assert await api.services() == ([], "7")
    assert 1 < server.lists <= client_module._PAGES_MAX


async def test_of_too_many_services_the_first_are_taken(
    server: ApiServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SERVICES_MAX", 4)
    server.page_size = 3
    for at in range(9):
        server.put(service(f"s{at}", 30000 + at))
    async with client(server, keys.kubeconfig()) as api:
        found, _ = await api.services()
    assert [each.name for each in found] == ["s0", "s1", "s2", "s3"]
    assert server.lists == 2


async def test_a_watch_tells_what_came_after_its_version(server: ApiServer, keys: Keys) -> None:
    server.put(service("old", 30001))
    async with client(server, keys.kubeconfig()) as api:
        _, version = await api.services()
        server.put(service("web", 30080))
        async with aclosing(api.watch(version)) as changes:
            change = await anext(changes)
            assert change.service == Service("default", "web", (NodePort("tcp", 30080),))
            server.tell("BOOKMARK", {"kind": "Service", "metadata": {"resourceVersion": "500"}})
            change = await anext(changes)
            assert (change.service, change.version) == (None, "500")
            server.say(b"\n\r\n")
            server.remove("old")
            server.put(service("new", 30002))
            told = [await anext(changes), await anext(changes)]
            assert [each.service for each in told] == [
                Service("default", "old"),
                Service("default", "new", (NodePort("tcp", 30002),)),
            ]
            server.say(None)
            assert [each async for each in changes] == []
    query = server.requests[-1].query
    assert (query["allowWatchBookmarks"], query["timeoutSeconds"]) == ("true", "300")


async def test_who_has_other_keys_is_refused(server: ApiServer, keys: Keys, others: Keys) -> None:
    for config in (keys.kubeconfig(client=others), keys.kubeconfig(token=TOKEN)):
        with pytest.raises(ListAnewError):
            async with client(server, config) as api:
                await api.services()
    assert server.requests == []


async def test_an_impostor_is_told_nothing(keys: Keys, others: Keys) -> None:
    async with serving(others.server(ask=False)) as impostor:
        with pytest.raises(ListAnewError):
            async with client(impostor, keys.kubeconfig(token=TOKEN)) as api:
                await api.services()
        assert impostor.requests == []
    # Nor one that has the right authority's certificate, but for another address.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(keys.path("client.pem"), keys.path("client.key"))
    async with serving(tls) as impostor:
        with pytest.raises(ListAnewError):
            async with client(impostor, keys.kubeconfig(token=TOKEN)) as api:
                await api.services()
        assert impostor.requests == []


async def test_a_token_proves_as_well(keys: Keys) -> None:
    async with serving(keys.server(ask=False)) as server:
        async with client(server, keys.kubeconfig(token=TOKEN)) as api:
            assert await api.services() == ([], "100")
        assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


async def test_no_proxy_of_the_environment_is_asked(
    server: ApiServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with client(server, keys.kubeconfig()) as api:
        assert await api.services() == ([], "100")


@pytest.mark.parametrize(
    "status",
    ["401 Unauthorized", "403 Forbidden", "410 Gone", "500 Internal Server Error", "206 Partial"],
)
async def test_another_status_is_no_answer(server: ApiServer, keys: Keys, status: str) -> None:
    server.status = status
    server.put(service("web", 30080))
    with pytest.raises(ListAnewError, match=status[:3]):
        async with client(server, keys.kubeconfig()) as api:
            await api.services()
    with pytest.raises(ListAnewError, match=status[:3]):
        await first(server, keys.kubeconfig())


async def test_a_redirect_is_not_followed(server: ApiServer, keys: Keys) -> None:
    server.status = "307 Temporary Redirect"
    server.headers = (f"Location: https://127.0.0.1:{server.port}/api/v1/services?elsewhere",)
    with pytest.raises(ListAnewError):
        async with client(server, keys.kubeconfig()) as api:
            await api.services()
    assert server.lists == 1


async def test_a_server_that_is_away_or_breaks_off_can_be_tried_again(
    server: ApiServer, keys: Keys
) -> None:
    async with client(server, keys.kubeconfig()) as api:
        _, version = await api.services()
        async with aclosing(api.watch(version)) as changes:
            server.put(service("web", 30080))
            await anext(changes)
            await server.cut()
            with pytest.raises(ListAnewError):
                await anext(changes)
        await server.close()
        with pytest.raises(ListAnewError):
            await api.services()


async def test_a_server_that_says_nothing_is_not_waited_for(server: ApiServer, keys: Keys) -> None:
    server.headers = ("Content-Length: 99999",)
    with pytest.raises(ListAnewError):
        async with client(server, keys.kubeconfig(), timeout_s=0.2) as api:
            await api.services()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b'{"metadata":{"resourceVersion":"7"},"items":7}',
        b" " * ((8 << 20) + 1),
    ],
)
async def test_a_list_that_is_none_is_refused(server: ApiServer, keys: Keys, body: bytes) -> None:
    server.body = body
    with pytest.raises(CorruptError):
        async with client(server, keys.kubeconfig()) as api:
            await api.services()


async def test_what_is_compressed_all_the_same_is_not_unpacked(
    server: ApiServer, keys: Keys
) -> None:
    server.headers = ("Content-Encoding: gzip",)
    server.body = b"\x1f\x8b\x08\x00"
    with pytest.raises(CorruptError):
        async with client(server, keys.kubeconfig()) as api:
            await api.services()


@pytest.mark.parametrize(
    "told",
    [b"no\n", b"x" * ((1 << 20) + 1), b"x" * ((1 << 20) + 1) + b"\n", b'{"type":"ADDED"}\n'],
)
async def test_a_watch_that_tells_nonsense_is_ended(
    server: ApiServer, keys: Keys, told: bytes
) -> None:
    server.watched = told
    with pytest.raises(CorruptError):
        await first(server, keys.kubeconfig())


async def test_a_watch_that_cannot_go_on_says_so(server: ApiServer, keys: Keys) -> None:
    server.watched = b'{"type":"ERROR","object":{"code":410,"reason":"Expired"}}\n'
    with pytest.raises(ListAnewError, match="410"):
        await first(server, keys.kubeconfig())


async def test_half_a_line_is_none(server: ApiServer, keys: Keys) -> None:
    server.watched = b'{"type":"ADDED","obj'
    server.watch_ends = True
    assert await first(server, keys.kubeconfig()) is None


def test_keys_that_openssl_cannot_use_are_refused(keys: Keys, others: Keys) -> None:
    authority, certificate = keys.encoded("authority.pem"), keys.encoded("client.pem")
    key, other = keys.encoded("client.key"), others.encoded("client.key")
    tls_context(Credentials(authority, certificate, key))
    nonsense = encoded("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    locked = encoded(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    for broken in (
        Credentials(nonsense, certificate, key),
        Credentials("", certificate, key),
        Credentials(authority, nonsense, key),
        Credentials(authority, certificate, other),
        Credentials(authority, certificate, locked),
    ):
        with pytest.raises(CorruptError, match="certificates cannot be used"):
            tls_context(broken)


def test_keys_are_in_no_file(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    certificate, key = pair()
    seen: list[str] = []
    load = ssl.SSLContext.load_cert_chain

    def spy(self: ssl.SSLContext, certfile: str, **more: str) -> None:
        seen.append(str(Path(certfile).readlink()))
        load(self, certfile, **more)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    tls_context(Credentials(keys.encoded("authority.pem"), certificate, key))
    (where,) = seen
    assert where.startswith("/memfd:")
    assert set(Path("/proc/self/fd").iterdir()) == before
