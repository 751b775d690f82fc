from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from arcboxd.errors import CorruptError, InvalidArgumentError
from arcboxd.kubernetes.kubeconfig import Credentials, context_name, credentials, rebuild, render
from arcboxd.kubernetes.yaml_tree import SIZE_MAX
from tests.unit.kubernetes.certificates import encoded, pair

SERVER = "https://127.0.0.1:16443"
TOKEN = "K10abc::server:secret"  # noqa: S105
Config = dict[str, Any]


def good() -> Config:
    authority, _ = pair("authority")
    certificate, key = pair()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "default",
                "cluster": {
                    "certificate-authority-data": authority,
                    "server": "https://10.0.2.15:6443",
                },
            }
        ],
        "contexts": [{"name": "admin", "context": {"cluster": "default", "user": "admin"}}],
        "current-context": "admin",
        "preferences": {},
        "users": [
            {
                "name": "admin",
                "user": {"client-certificate-data": certificate, "client-key-data": key},
            }
        ],
    }


def with_token(token: object) -> Config:
    config = good()
    config["users"][0]["user"] = {"token": token}
    return config


def remade(config: Config | str, context: str = "arcbox") -> Config:
    text = config if isinstance(config, str) else json.dumps(config)
    made = rebuild(text, context=context, server=SERVER)
    return dict(YAML(typ="safe", pure=True).load(made))


def test_only_what_is_needed_is_passed_on() -> None:
    config = good()
    found = remade(config, "arcbox-web")
    user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
    assert found == {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "arcbox-web", "cluster": {**cluster, "server": SERVER}}],
        "contexts": [
            {"name": "arcbox-web", "context": {"cluster": "arcbox-web", "user": "arcbox-web"}}
        ],
        "current-context": "arcbox-web",
        "users": [{"name": "arcbox-web", "user": user}],
    }


def test_a_token_serves_too() -> None:
    assert remade(with_token(TOKEN))["users"][0]["user"] == {"token": TOKEN}
    # Whatever is printable, it stays a text.
    odd = "a\"b\\c'{}[]#:!%&*"
    assert remade(with_token(odd))["users"][0]["user"] == {"token": odd}


def test_what_is_harmless_is_dropped() -> None:
    config = good()
    config["extensions"] = [{"name": "x", "extension": {"exec": "y"}}]
    config["preferences"] = {"colors": True}
    cluster = config["clusters"][0]["cluster"]
    cluster["extensions"] = [{"name": "x", "extension": {}}]
    cluster["insecure-skip-tls-verify"] = False
    config["contexts"][0]["context"]["namespace"] = "kube-system"
    assert remade(config) == remade(good())


def test_what_was_rebuilt_is_read_again() -> None:
    first = rebuild(json.dumps(good()), context="arcbox", server=SERVER)
    assert rebuild(first.decode(), context="arcbox", server=SERVER) == first


def test_a_chain_of_certificates_is_kept() -> None:
    config = good()
    chain = encoded("".join(base64.b64decode(pair(n)[0]).decode() for n in ("user", "authority")))
    config["users"][0]["user"]["client-certificate-data"] = chain
    assert remade(config)["users"][0]["user"]["client-certificate-data"] == chain


def test_text_around_a_certificate_does_not_pass() -> None:
    config = good()
    cluster = config["clusters"][0]["cluster"]
    pem = base64.b64decode(cluster["certificate-authority-data"]).decode()
    cluster["certificate-authority-data"] = encoded("\n\n" + pem.replace("\n", "\r\n"))
    assert remade(config) == remade(good())


def user(**fields: object) -> Callable[[Config], None]:
    return lambda config: config["users"][0]["user"].update(
        {k.replace("_", "-"): v for k, v in fields.items()}
    )


def cluster(**fields: object) -> Callable[[Config], None]:
    return lambda config: config["clusters"][0]["cluster"].update(
        {k.replace("_", "-"): v for k, v in fields.items()}
    )


def twice(kind: str) -> Callable[[Config], None]:
    return lambda config: config[kind].append(copy.deepcopy(config[kind][0]))


def top(**fields: object) -> Callable[[Config], None]:
    return lambda config: config.update({k.replace("_", "-"): v for k, v in fields.items()})


def _pem(label: str, body: str) -> str:
    return encoded(f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")


EXEC = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": ["-c", "x"]}
SECRETS, TOKENS = {"password": "x"}, {"token": "x"}
HOSTILE: dict[str, Callable[[Config], None]] = {
    "a program to run": user(exec=EXEC),
    "an auth provider": user(auth_provider={"name": "gcp", "config": {"cmd-path": "/bin/sh"}}),
    "a user name": user(username="admin"),
    "a password": user(**SECRETS),
    "a token file": user(tokenFile="/home/me/.ssh/id_ed25519"),
    "a certificate's file": user(client_certificate="/etc/shadow"),
    "a key's file": user(client_key="/home/me/.ssh/id_rsa"),
    "an authority's file": cluster(certificate_authority="/etc/passwd"),
    "impersonation": user(**{"as": "system:admin"}),
    "groups": user(**{"as-groups": ["system:masters"]}),
    "a uid": user(**{"as-uid": "0"}),
    "a proxy": cluster(proxy_url="http://evil.example:1"),
    "no check of the server": cluster(insecure_skip_tls_verify=True),
    "no check, as a text": cluster(insecure_skip_tls_verify="True"),
    "another server's name": cluster(tls_server_name="evil.example"),
    "an unknown field of the user": user(future="x"),
    "an unknown field of the cluster": cluster(future="x"),
    "both a token and a certificate": user(**TOKENS),
    "half a pair": lambda c: c["users"][0]["user"].pop("client-key-data"),
    "neither": lambda c: c["users"][0]["user"].clear(),
    "no authority": lambda c: c["clusters"][0]["cluster"].pop("certificate-authority-data"),
    "two users": twice("users"),
    "two clusters": twice("clusters"),
    "two contexts": twice("contexts"),
    "no users": top(users=[]),
    "users that are no list": top(users={"name": "x"}),
    "a user that is no mapping": top(users=["x"]),
    "a user with more": lambda c: c["users"][0].update(exec=EXEC),
    "a user that is text": lambda c: c["users"][0].update(user="x"),
    "another current context": top(current_context="other"),
    "another user in the context": lambda c: c["contexts"][0]["context"].update(user="root"),
    "another cluster in the context": lambda c: c["contexts"][0]["context"].update(cluster="x"),
    "another version": top(apiVersion="v2"),
    "another kind": top(kind="List"),
    "a key for a certificate": user(client_certificate_data=pair()[1]),
    "a certificate for a key": user(client_key_data=pair()[0]),
    "a key for an authority": cluster(certificate_authority_data=pair()[1]),
    "two keys": user(client_key_data=encoded(2 * base64.b64decode(pair()[1]).decode())),
    "no base64": cluster(certificate_authority_data="***"),
    "a path in base64": user(client_key_data=encoded("/etc/shadow")),
    "PEM of nothing": cluster(certificate_authority_data=_pem("CERTIFICATE", "")),
    "PEM of text": cluster(certificate_authority_data=_pem("CERTIFICATE", encoded("0 hello"))),
    "PEM that is cut off": cluster(certificate_authority_data=pair()[0][:400]),
    "an encrypted key": user(client_key_data=_pem("ENCRYPTED PRIVATE KEY", "MAA=")),
    "headers in PEM": user(
        client_key_data=_pem("EC PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\nMAA=")
    ),
    "a list for a certificate": cluster(certificate_authority_data=["x"]),
    "a huge certificate": cluster(certificate_authority_data="A" * 50_000),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_kubeconfigs_are_refused(change: Callable[[Config], None]) -> None:
    config = good()
    change(config)
    with pytest.raises(CorruptError, match="the kubeconfig was refused: "):
        remade(config)


@pytest.mark.parametrize(
    "token", ["", "a b", "a\nb", "a\r\nX-Evil: 1", "\x7f", "ä", "x" * 9000, ["x"], {"a": "b"}]
)
def test_hostile_tokens_are_refused(token: object) -> None:
    with pytest.raises(CorruptError):
        remade(with_token(token))


BOMB = "a: &a [x]\n" + "".join(f"{c}: &{c} [*{p},*{p}]\n" for p, c in zip("ab", "bc", strict=True))
TEXTS = {
    "nothing": "",
    "comments only": "# nothing\n",
    "a list": "- a\n",
    "a text": "kind",
    "no YAML": "a: b: c",
    "a tag": "a: !!python/object/apply:os.system [id]\n",
    "a tag of ours": "a: !x b\n",
    "aliases": BOMB,
    "an anchor": "a: &a b\n",
    "a merge": "<<: {apiVersion: v1}\n",
    "a key that is a list": "[a]: b\n",
    "one key twice": "kind: Config\nkind: Config\n",
    "two documents": "apiVersion: v1\n---\nkind: Config\n",
    "too deep": "[" * 100 + "]" * 100,
    "much too deep": "[" * 60_000,
    "too many parts": "- a\n" * 5000,
    "too large": "a: " + "b" * SIZE_MAX,
    "a NUL": "a: \0",
    "half a surrogate": "a: \ud800",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_texts_that_are_no_kubeconfig_are_refused(text: str) -> None:
    with pytest.raises(CorruptError, match="the kubeconfig was refused: "):
        rebuild(text, context="arcbox", server=SERVER)


def test_a_second_document_behind_a_good_one_is_refused() -> None:
    with pytest.raises(CorruptError, match="more than one document"):
        remade(json.dumps(good()) + "\n---\n" + json.dumps(good()))


@given(st.text(max_size=300))
def test_any_text_is_refused_in_one_way(text: str) -> None:
    with pytest.raises(CorruptError):
        credentials(text)


@pytest.mark.parametrize(
    "context", ["", "prod", "arcbox-", "arcbox-Web", "arcbox\nx", "arcbox-a b"]
)
def test_names_that_are_not_ours_are_never_given(context: str) -> None:
    with pytest.raises(InvalidArgumentError):
        render(Credentials("x", token=TOKEN), context=context, server=SERVER)


@pytest.mark.parametrize(
    "server",
    [
        *("", "http://127.0.0.1:1", "https://127.0.0.1", "https://127.0.0.1:0"),
        *("https://127.0.0.1:70000", "https://evil.example:1", "https://127.0.0.1:1/\nx: y"),
    ],
)
def test_addresses_that_are_not_ours_are_never_given(server: str) -> None:
    with pytest.raises(InvalidArgumentError):
        render(Credentials("x", token=TOKEN), context="arcbox", server=server)


def test_contexts_are_named_by_their_machine() -> None:
    assert context_name("default", "default") == "arcbox"
    assert context_name("web", "default") == "arcbox-web"
