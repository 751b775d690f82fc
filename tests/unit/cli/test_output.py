from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from arcboxd.cli import output
from arcboxd.domain.machine import MachineState

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (0, "just now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (3600, "1 hour ago"),
        (2 * 86400 + 7, "2 days ago"),
        (800 * 86400, "2 years ago"),
    ],
)
def test_age_names_the_largest_unit(seconds: int, text: str) -> None:
    assert output.age(NOW - timedelta(seconds=seconds), NOW) == text


def test_times_are_in_utc() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert output.rfc3339(local) == "2026-01-31T12:00:00Z"


def test_control_characters_are_shown_not_sent() -> None:
    assert output.printable("a\x1b[31m\r\n\x9bü✓") == "a\\x1b[31m\\r\\n\\x9bü✓"


@dataclass(frozen=True)
class View:
    when: datetime
    where: Path
    many: tuple[int, ...]
    none: None = None


def test_json_has_the_fields_names(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json([View(NOW, Path("/x"), (1, 2))])
    assert json.loads(capsys.readouterr().out) == [
        {"when": "2026-01-31T12:00:00Z", "where": "/x", "many": [1, 2], "none": None}
    ]
    output.print_json([])
    assert capsys.readouterr().out == "[]\n"
    output.print_json({"a": [1, None]}, one_line=True)
    assert capsys.readouterr().out == '{"a": [1, null]}\n'


def test_what_json_cannot_say_is_a_bug_that_shows() -> None:
    with pytest.raises(TypeError):
        output.plain(object())


def test_columns_are_aligned_without_trailing_space(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "STATE"), [("a-long-name", "running"), ("b", "stopped")])
    assert capsys.readouterr().out == (
        "NAME          STATE\na-long-name   running\nb             stopped\n"
    )


def test_every_state_but_stopped_has_a_colour() -> None:
    assert set(MachineState) - set(output._COLOURS) == {"stopped"}


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_fields([("Name", "web"), ("Nothing", ""), ("State", "running")])
    assert capsys.readouterr().out == "Name:  web\nState: running\n"
