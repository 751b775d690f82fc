from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from arcboxd.cli import loglines
from arcboxd.cli.usage import CliUsageError

NOW = datetime(2026, 11, 22, 5, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
        ("2026-11-22T04:00:00+00:00", timedelta(hours=1)),
    ],
)
def test_since(text: str, ago: timedelta) -> None:
    assert loglines.since(text, NOW) == NOW - ago


def test_a_time_without_a_zone_is_local() -> None:
    assert loglines.since("2026-11-22T05:00:00") == datetime(2026, 11, 22, 5).astimezone()
    assert loglines.since("99999999999d", NOW) < NOW - timedelta(days=300_000)


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "yesterday", "2026-13-01", "\u0661m"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(CliUsageError):
        loglines.since(text, NOW)


@pytest.mark.parametrize(
    ("line", "moment"),
    [
        (b'time="2026-11-22T05:00:00.123456789Z" level=info', NOW + timedelta(microseconds=123456)),
        (b'time="2026-11-22T05:00:00Z" level=info', NOW),
        (b'time="2026-11-22T07:00:00.5+02:00" level=info', NOW + timedelta(milliseconds=500)),
        (b"2026-11-22 05:00:00,250 INFO x: y", NOW + timedelta(milliseconds=250)),
        (b"Traceback (most recent call last):", None),
        (b'msg="time is up"', None),
    ],
)
def test_line_time(line: bytes, moment: datetime | None) -> None:
    assert loglines.line_time(line, UTC) == moment


def test_the_daemons_times_are_this_hosts() -> None:
    local = datetime(2026, 11, 22, 5).astimezone()
    assert loglines.line_time(b"2026-11-22 05:00:00,000 INFO x: y", None) == local
    east = timezone(timedelta(hours=2))
    assert loglines.line_time(b"2026-11-22 07:00:00,000 INFO x: y", east) == NOW


def test_lines_without_a_time_belong_to_the_one_before() -> None:
    after = loglines.After(NOW, UTC)
    lines = [
        (b"left over", False),
        (b"2026-11-22 04:59:59,999 ERROR x: old", False),
        (b"  its traceback", False),
        (b"2026-11-22 05:00:00,000 ERROR x: new", True),
        (b"  its traceback", True),
    ]
    assert [after.passes(line) for line, _ in lines] == [wanted for _, wanted in lines]
    after.begin_again()
    assert not any(after.passes(line) for line, _ in lines)
    assert after.passes(b"2026-11-22 05:00:00,001 INFO x: newer")


def test_everything_passes_without_a_moment() -> None:
    after = loglines.After(None, UTC)
    assert after.passes(b"no time at all")
    after.begin_again()
    assert after.passes(b"still none")


def test_lines_are_cut_wherever_the_pieces_end() -> None:
    pieces = [b"a\nb", b"", b"c\n", b"\nend"]
    assert list(loglines.lines(pieces)) == [b"a\n", b"bc\n", b"\n", b"end"]
    assert list(loglines.last(loglines.lines(pieces), 2)) == [b"\n", b"end"]


def test_a_file_is_followed_however_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"1\n2\n3\n")
    chunks = loglines.follow(path, 2)

    def taken(size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += next(chunks)
        return data

    assert taken(4) == b"2\n3\n"
    with path.open("ab") as file:
        file.write(b"4\n")
    assert taken(2) == b"4\n"
    path.rename(tmp_path / "log.1")
    path.write_bytes(b"5\n")
    assert taken(2) == b"5\n"
    path.write_bytes(b"")
    timer = threading.Timer(0.5, path.write_bytes, [b"6\n"])
    timer.start()
    assert taken(2) == b"6\n"
    timer.join()


def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert not list(loglines.read(path))
    chunks: Iterator[bytes] = loglines.follow(path, 1)
    timer = threading.Timer(0.3, path.write_bytes, [b"all\nof it\n"])
    timer.start()
    assert next(chunks) == b"all\nof it\n"
    timer.join()
