"""Where a copy goes: as `cp -r` has it."""

from __future__ import annotations

import pytest

from arcboxd.cli.cp import parse_remote
from arcboxd.cli.usage import CliUsageError
from arcboxd.client.copying import Source, place
from arcboxd.errors import PreconditionError

FILE = Source("/a/f", is_folder=False, contents=False)
TREE = Source("/a/d/", is_folder=True, contents=False)
CONTENTS = Source("/a/d/.", is_folder=True, contents=True)


@pytest.mark.parametrize(
    ("source", "target", "there", "above", "goes"),
    [
        (FILE, "/t", "dir", "dir", ("/t", "f")),
        (FILE, "/t/", "dir", "dir", ("/t/", "f")),
        (FILE, "/t/g", "none", "dir", ("/t", "g")),
        (FILE, "/t/g", "file", "dir", ("/t", "g")),
        (FILE, "g", "none", "dir", ("/", "g")),
        (TREE, "/t", "dir", "dir", ("/t", "d")),
        (TREE, "/t/e", "none", "dir", ("/t", "e")),
        (TREE, "/t/e/", "none", "dir", ("/t", "e")),
        (CONTENTS, "/t", "dir", "dir", ("/t", "")),
        (CONTENTS, "/t/e", "none", "dir", ("/t", "e")),
        (FILE, "/t/g/", "none", "dir", None),
        (FILE, "/t/g/", "file", "dir", None),
        (FILE, "/t/g", "none", "none", None),
        (FILE, "/t/g", "none", "file", None),
        (TREE, "/t", "file", "dir", None),
        (CONTENTS, "/t", "file", "dir", None),
    ],
)
def test_place(
    source: Source, target: str, there: str, above: str, goes: tuple[str, str] | None
) -> None:
    if goes is None:
        with pytest.raises(PreconditionError, match="cannot copy"):
            place(source, target, there=there, above=above)
    else:
        assert place(source, target, there=there, above=above) == goes


def test_which_side_a_path_is_of() -> None:
    assert parse_remote("dev:/etc/x:y") == ("dev", "/etc/x:y")
    for local in ("./dev:/x", "/a:b", "x", "Dev:/x", "-"):
        assert parse_remote(local) is None
    with pytest.raises(CliUsageError, match="does not begin with a slash"):
        parse_remote("dev:notes")
