from __future__ import annotations

import pytest

from arcboxd.cli.sizes import format_size, parse_size
from arcboxd.cli.usage import CliUsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096B", 4096),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("2GiB", 2 << 30),
        ("2gb", 2 << 30),
        ("2 G", 2 << 30),
        ("1.5G", 3 << 29),
        ("0.5K", 512),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "G", "-1G", "+1", "1e9", "2X", "2GG", "1,5G", "1.G", ".5G", "0", "0.0G", "1.3"),
        *("0.1K", "9999999999T", "٣G", "0x10", "2G\nx", "nan", "inf", "1 0"),
    ],
)
def test_what_is_no_size_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(CliUsageError) as caught:
        parse_size(text, "--memory")
    assert caught.value.message.startswith("--memory ")
    assert "512M" in caught.value.hint


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1 << 10, "1KiB"), (3 << 29, "1.5GiB"), (5 << 40, "5TiB")],
)
def test_sizes_are_written_in_their_largest_unit(size: int, text: str) -> None:
    assert format_size(size) == text
