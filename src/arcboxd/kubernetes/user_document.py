"""The text of a user's kubeconfig: entries of ours in it, and all else as it was. No I/O.

ruamel.yaml's round trip keeps comments, order, quotes, anchors and the width of lists. It is kept
from taking ``0123e4`` for a number and ``no`` for a truth: it would write some of them otherwise.
What it wrote is read again and compared before anyone is given it.
"""

from __future__ import annotations

import io
import json
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from arcboxd.errors import PreconditionError
from arcboxd.kubernetes.kubeconfig import Credentials

_PROVIDER = "arcbox"
_LISTS = {"clusters": "cluster", "contexts": "context", "users": "user"}
_SELECTED = "current-context"
_NEW = "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers: []\n"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_WIDE = 1 << 30
_HINT = "mend it, or move it away, and try again"


class _Texts(VersionedResolver):
    """Takes every plain scalar for a text, but one without a character."""

    @property
    def versioned_resolver(self) -> Any:  # noqa: ANN401 - ruamel's own
        return {"": [("tag:yaml.org,2002:null", re.compile("$"))]}


class Document:
    """A kubeconfig that can be changed."""

    def __init__(self, text: str, where: str) -> None:
        """Read a text; an empty one is a kubeconfig without anything.

        Args:
            text: What the file holds.
            where: Its name, for people.

        Raises:
            PreconditionError: It is not understood.
        """
        self.before = text
        self._where = where
        self._is_json = text.lstrip().startswith("{")
        self._root = self._load(text if text.strip() else _NEW)
        self._was = _plain(self._root)
        self._check()

    @property
    def selected(self) -> str | None:
        """Name the context that is selected; None when nothing says so."""
        value = self._root.get(_SELECTED)
        return None if value is None else str(value)

    def select(self, context: str | None) -> None:
        """Select a context, or none."""
        if context is not None:
            self._root[_SELECTED] = context
        else:
            self._root.pop(_SELECTED, None)

    def has_context(self, name: str) -> bool:
        """Tell whether there is such a context."""
        return any(item["name"] == name for item in self._items("contexts"))

    def is_ours(self, name: str) -> bool:
        """Tell whether there is such a context, and we made it."""
        return any(
            item["name"] == name and _marked(item, "context") for item in self._items("contexts")
        )

    def put(self, name: str, server: str, found: Credentials) -> None:
        """Add a cluster, a user and a context of one name, or renew ours.

        Raises:
            PreconditionError: Somebody else has made one of that name.
        """
        # Quoted: it may look like a number.
        user: dict[str, object] = {"token": DoubleQuotedScalarString(found.token)}
        if not found.token:
            user = {
                "client-certificate-data": found.certificate,
                "client-key-data": found.key,
            }
        self._put(
            "clusters", name, {"certificate-authority-data": found.authority, "server": server}
        )
        self._put("contexts", name, {"cluster": name, "user": name})
        self._put("users", name, user)

    def remove(self, name: str) -> None:
        """Take out what is ours of that name. Idempotent."""
        for key, kind in _LISTS.items():
            items = self._items(key)
            for at in reversed(range(len(items))):
                if items[at]["name"] == name and _marked(items[at], kind):
                    self._keep_comments(key, items[at])
                    del items[at]

    def _keep_comments(self, key: str, item: object) -> None:
        """Put what the user wrote behind an entry, which ruamel takes for its, before what follows.

        The last thing in a file has nothing behind it to put them before.
        """
        keys = list(self._root)
        behind = keys[keys.index(key) + 1 :]
        if behind and (words := _comments(item)) and isinstance(self._root, CommentedMap):
            self._root.yaml_set_comment_before_after_key(behind[0], before="\n".join(words))

    def text(self) -> str | None:
        """Write it; None if nothing was changed.

        Raises:
            PreconditionError: What came out is not what was meant.
        """
        wanted = _plain(self._root)
        if wanted == self._was:
            return None
        if self._is_json:
            return json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
        out = io.StringIO()
        try:
            self._yaml(indented=self._indented()).dump(self._root, out)
            written = _plain(self._load(out.getvalue()))
        except (YAMLError, RecursionError, TypeError, ValueError) as error:
            raise self._odd(f"it cannot be written: {error}") from error
        if written != wanted:
            raise self._odd("something in it cannot be kept as it is")
        return out.getvalue()

    def _put(self, key: str, name: str, content: dict[str, object]) -> None:
        kind = _LISTS[key]
        mark = {"name": _PROVIDER, "extension": {"provider": _PROVIDER}}
        entry = {"name": name, kind: {**content, "extensions": [mark]}}
        items = self._items(key)
        for item in items:
            if item["name"] == name and not _marked(item, kind):
                verb = "unset users." if kind == "user" else f"delete-{kind} "
                raise PreconditionError(
                    f"there is a {kind} {name!r} in {self._where} that is not arcbox's",
                    hint=f"remove it first, if nobody needs it: kubectl config {verb}{name}",
                )
        for item in items:
            if item["name"] == name:
                if _plain(item) != entry:
                    item[kind] = entry[kind]
                return
        if _is_null(self._root.get(key)) or (not items and not self._is_json):
            self._root[key] = items = CommentedSeq()
        items.append(entry)

    def _items(self, key: str) -> Any:  # noqa: ANN401 - a list of ruamel's, checked by _check
        items = self._root.get(key)
        return [] if _is_null(items) else items

    def _check(self) -> None:
        if self._root.get("kind", "Config") != "Config":
            raise self._odd("its kind is not Config")
        if not isinstance(self._root.get(_SELECTED, ""), str | None):
            raise self._odd(f"its {_SELECTED} is no name")
        for key, kind in _LISTS.items():
            items = self._items(key)
            if not isinstance(items, list):
                raise self._odd(f"its {key} are no list")
            for item in items:
                content = item.get(kind) if isinstance(item, dict) else None
                if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                    raise self._odd(f"one of its {key} has no name")
                if not isinstance(content, dict) and not _is_null(content):
                    raise self._odd(f"one of its {key} is none")

    def _load(self, text: str) -> Any:  # noqa: ANN401 - a mapping of ruamel's
        try:
            root = json.loads(text) if self._is_json else self._yaml().load(text)
        except (YAMLError, RecursionError, ValueError) as error:
            if self._is_json and not isinstance(error, RecursionError):
                self._is_json = False  # a mapping on one line may be YAML only
                return self._load(text)
            raise self._odd(" ".join(str(error).split())[:300]) from error
        if _is_null(root):
            # Comments alone.
            root = CommentedMap(json.loads('{"apiVersion": "v1", "kind": "Config"}'))
        if not isinstance(root, dict):
            raise self._odd("it is no mapping")
        return root

    def _indented(self) -> bool:
        """Tell whether its lists are indented below their names."""
        for key in _LISTS:
            items = self._root.get(key)
            if isinstance(items, CommentedSeq) and items and items.lc.col:
                return bool(items.lc.col > self._root.lc.col)
        return False

    def _yaml(self, *, indented: bool = False) -> YAML:
        yaml = YAML(typ="rt")
        yaml.Resolver = _Texts
        yaml.preserve_quotes = True
        yaml.width = _WIDE
        if indented:
            yaml.indent(mapping=2, sequence=4, offset=2)
        return yaml

    def _odd(self, why: str) -> PreconditionError:
        return PreconditionError(
            f"{self._where} is no kubeconfig that we understand, and was not touched: {why}",
            hint=_HINT,
        )


def _marked(item: Any, kind: str) -> bool:  # noqa: ANN401 - an entry of ruamel's
    """Tell whether an entry says that it is ours, as minikube's say that they are its own."""
    content = item.get(kind)
    extensions = content.get("extensions") if isinstance(content, dict) else None
    for each in extensions if isinstance(extensions, list) else ():
        extension = each.get("extension") if isinstance(each, dict) else None
        if isinstance(extension, dict) and extension.get("provider") == _PROVIDER:
            return True
    return False


def _comments(value: Any) -> list[str]:  # noqa: ANN401 - an entry of ruamel's
    """Give the lines of comments in a value, without their number signs."""
    found: list[str] = []
    children: list[Any] = []
    if isinstance(value, CommentedMap):
        children = list(value.values())
    elif isinstance(value, CommentedSeq):
        children = list(value)
    else:
        return found
    for tokens in value.ca.items.values():
        for token in tokens:
            text = getattr(token, "value", "")
            found += [li.strip()[1:].strip() for li in text.splitlines() if li.strip()]
    for child in children:
        found += _comments(child)
    return found


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, str) and value in _NULLS)


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever YAML can say
    """Give a value without ruamel's classes, so that two can be compared."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, str) else value
