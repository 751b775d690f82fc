"""What of our own code goes into the guest."""

from __future__ import annotations

from arcboxd.assets.agent_bundle import _sources, lock_file, sources_digest


def test_the_guest_gets_its_own_half_only() -> None:
    places = [place for place, _ in _sources()]
    assert len(places) == len({*places})
    assert {"bin/start", "bin/supervise"} <= {*places}
    assert {f"python/site/arcboxd/{n}.py" for n in ("__init__", "errors", "aio")} <= {*places}
    assert "python/site/arcbox_agent/__init__.py" in places
    for word in ("_grpc.py", ".pyi", "machines", "hypervisor", "daemon", "__pycache__"):
        assert not [place for place in places if word in place and "arcboxd" in place]


def test_the_digest_is_stable() -> None:
    assert sources_digest() == sources_digest()


def test_the_lock_has_hashes_and_no_addresses() -> None:
    text = lock_file().read_text()
    assert "grpclib==" in text
    assert "--hash=sha256:" in text
    assert "http" not in text
