"""What the host takes from a cluster's Services, and from what a hostile guest says of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcboxd.errors import CorruptError
from arcboxd.kubernetes.service_objects import (
    PAGE_ITEMS,
    PORTS_MAX,
    ListAnewError,
    NodePort,
    Service,
    change,
    page,
)

WEB = NodePort("tcp", 30080)


def service(**spec: object) -> dict[str, Any]:
    spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}], **spec}
    return {"metadata": {"namespace": "default", "name": "web"}, "spec": spec}


def listed(*items: object, **metadata: object) -> bytes:
    given = {"resourceVersion": "7", **metadata}
    return json.dumps({"kind": "ServiceList", "metadata": given, "items": items}).encode()


def line(kind: object, thing: object) -> bytes:
    return json.dumps({"type": kind, "object": thing}).encode()


def ports(item: object) -> tuple[NodePort, ...]:
    (found,) = page(listed(item)).services
    assert (found.namespace, found.name) == ("default", "web")
    return found.ports


def test_node_ports_are_taken_of_both_kinds_and_protocols() -> None:
    assert ports(service()) == (WEB,)
    entries = [
        {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353, "nodePort": 30053},
        {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": "dns", "nodePort": 30053},
        {"protocol": "SCTP", "port": 9, "nodePort": 30009},
        {"port": 1, "nodePort": 1},
        {"port": 2, "nodePort": 65535},
    ]
    expected = (
        NodePort("udp", 30053),
        NodePort("tcp", 30053),
        NodePort("tcp", 1),
        NodePort("tcp", 65535),
    )
    assert ports(service(type="LoadBalancer", ports=entries)) == expected


@pytest.mark.parametrize(
    "kind", ["ClusterIP", "ExternalName", "nodeport", "", None, 7, ["NodePort"]]
)
def test_services_of_the_cluster_alone_have_none(kind: object) -> None:
    assert ports(service(type=kind)) == ()


@pytest.mark.parametrize(
    "entry",
    [
        {"port": 80},
        {"nodePort": 0},
        {"nodePort": -1},
        {"nodePort": 65536},
        {"nodePort": 1 << 70},
        {"nodePort": "30080"},
        {"nodePort": 30080.0},
        {"nodePort": True},
        {"nodePort": None},
        {"nodePort": [30080]},
        {"nodePort": 30080, "protocol": "tcp"},
        {"nodePort": 30080, "protocol": "ICMP"},
        {"nodePort": 30080, "protocol": None},
        {"nodePort": 30080, "protocol": ["TCP"]},
        {"nodePort": 30080, "protocol": {}},
        "30080",
        30080,
        None,
        [],
    ],
)
def test_an_entry_that_makes_no_sense_costs_only_itself(entry: object) -> None:
    good = {"port": 80, "nodePort": 30080}
    assert ports(service(ports=[entry, good])) == (WEB,)
    assert ports(service(ports=[good, entry])) == (WEB,)


@pytest.mark.parametrize("entries", [None, {}, "30080", 7, {"nodePort": 30080}])
def test_ports_that_are_no_list_are_none(entries: object) -> None:
    assert ports(service(ports=entries)) == ()


def test_a_services_ports_are_few_and_each_is_there_once() -> None:
    many = [{"nodePort": 20000 + at} for at in range(PORTS_MAX + 9)]
    assert len(ports(service(ports=many))) == PORTS_MAX
    assert ports(service(ports=[{"nodePort": 30080}] * PORTS_MAX)) == (WEB,)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        {},
        {"name": "web"},
        {"namespace": "default"},
        {"namespace": "default", "name": ""},
        {"namespace": "default", "name": 7},
        {"namespace": "default", "name": ["web"]},
        {"namespace": "default", "name": "a/b"},
        {"namespace": "..", "name": "web"},
        {"namespace": "default", "name": "web\n"},
        {"namespace": "default", "name": "\x1b[2J"},
        {"namespace": "default", "name": "\ud800"},
        {"namespace": "default", "name": "WEB"},
        {"namespace": "default", "name": "-web"},
        {"namespace": "n" * 64, "name": "web"},
        {"namespace": "default", "name": "w" * 100_000},
    ],
)
def test_a_service_that_cannot_be_named_is_left_out(metadata: object) -> None:
    good = service()
    found = page(listed({**good, "metadata": metadata}, good, "web", None, []))
    assert found.services == (Service("default", "web", (WEB,)),)
    assert change(line("ADDED", {**good, "metadata": metadata})).service is None


def test_a_page_says_where_it_goes_on() -> None:
    assert page(listed(**{"continue": "abc="})).rest == "abc="
    assert page(listed()).rest == ""
    assert page(listed(**{"continue": None})).version == "7"
    assert page(b'{"metadata":{"resourceVersion":"7"},"items":null}').services == ()
    assert len(page(listed(*[service()] * (PAGE_ITEMS + 1))).services) == PAGE_ITEMS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"services"',
        b"{}",
        b"[" * 200_000,
        b'{"metadata":' * 50_000,
        b'{"metadata":{"resourceVersion":"7"},"items":{}}',
        b'{"metadata":{"resourceVersion":"7"},"items":"web"}',
        b'{"metadata":{"resourceVersion":' + b"7" * 5000 + b'},"items":[]}',
        b'{"metadata":{"resourceVersion":7},"items":[]}',
        b'{"metadata":{"resourceVersion":""},"items":[]}',
        b'{"metadata":{"resourceVersion":"7 8"},"items":[]}',
        b'{"metadata":{"resourceVersion":"7\\r\\nHost: x"},"items":[]}',
        b'{"metadata":{"resourceVersion":"7","continue":5},"items":[]}',
        b'{"metadata":{"resourceVersion":"7","continue":"a b"},"items":[]}',
        b'{"metadata":{"resourceVersion":"' + b"7" * 200 + b'"},"items":[]}',
        b'{"metadata":[],"items":[]}',
        b'{"items":[]}',
        b'{"metadata":{"resourceVersion":"7"},"items":[]} {}',
    ],
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError) as caught:
        page(data)
    assert len(str(caught.value)) < 200


def test_changes_are_of_four_kinds() -> None:
    thing = service()
    thing["metadata"]["resourceVersion"] = "12"
    there = Service("default", "web", (WEB,))
    for kind in ("ADDED", "MODIFIED"):
        found = change(line(kind, thing))
        assert (found.service, found.version) == (there, "12")
    assert change(line("DELETED", thing)).service == Service("default", "web")
    mark = change(line("BOOKMARK", {"metadata": {"resourceVersion": "99"}}))
    assert (mark.service, mark.version) == (None, "99")


@pytest.mark.parametrize("version", [None, 7, "", "a b", "7" * 200, ["7"]])
def test_a_change_without_a_version_is_one_all_the_same(version: object) -> None:
    thing = service()
    thing["metadata"]["resourceVersion"] = version
    found = change(line("MODIFIED", thing))
    assert found.service is not None
    assert found.version == ""
    assert change(line("BOOKMARK", {"metadata": version})).version == ""


def test_a_service_that_lost_its_sense_loses_its_ports() -> None:
    thing = {**service(), "spec": "NodePort"}
    assert change(line("MODIFIED", thing)).service == Service("default", "web")


@pytest.mark.parametrize(
    "thing", [{"code": 410, "reason": "Expired"}, {"code": "x" * 100_000}, {}, None, "gone", [410]]
)
def test_an_error_means_to_list_anew(thing: object) -> None:
    with pytest.raises(ListAnewError) as caught:
        change(line("ERROR", thing))
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    "data",
    [
        b"no",
        b"\x00",
        b"[]",
        b"{}",
        line("ADDED", None),
        line("ADDED", "web"),
        line("ADDED", []),
        line("EXEC", service()),
        line(7, service()),
        line(None, service()),
        b'{"type":"ADDED","object":' * 20_000,
    ],
)
def test_what_is_no_change_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        change(data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["metadata", "namespace", "name", "spec", "type", "ports", "nodePort", "protocol"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(anything, anything)
def test_no_shape_of_an_object_is_a_surprise(metadata: object, spec: object) -> None:
    names = {"namespace": "default", "name": "web"}
    for item in (metadata, {"metadata": metadata, "spec": spec}, {"metadata": names, "spec": spec}):
        found = page(listed(item)).services
        assert all(0 < port.port < 1 << 16 for each in found for port in each.ports)
