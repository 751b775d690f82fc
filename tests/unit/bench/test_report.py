from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report
from bench.figures import Figure, Wanted

WARM = Figure(
    "total", "create, start", "s", (0.5, 0.4, 0.6), (4.0, 4.0, 4.0), wanted=Wanted(0.2, 0.1, True)
)
OWN = Figure("most", "the largest", "MiB", (104.25,), wanted=Wanted(60))
COUNT = Figure("same", "seen before", "", (0,), wanted=Wanted(0))


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_table_says_value_ratio_spread_and_whether_it_is_what_was_wanted() -> None:
    head, warm, own, count = report.table("warm", [WARM, OWN, COUNT]).splitlines()
    assert head.split() == ["warm", "median", "spread", "ratio", "spread", "wanted"]
    for part in ("500 ms", "400 to 600", "0.125 F", "0.1 to 0.15", "≤ 0.2 F, aim 0.1 F", "met"):
        assert part in warm
    assert own.endswith("MISSED")
    assert "104 MiB" in own
    assert "≤ 60 MiB" in own
    # A single sample has no spread.
    assert " to " not in own
    assert count.split()[-4:] == ["0", "≤", "0", "met"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0015, "s", "1.5 ms"),
        (0.06, "s", "60 ms"),
        (0.9996, "s", "1000 ms"),
        (12.345, "s", "12.3 s"),
        (1234.5, "MiB", "1234 MiB"),
        (100, "", "100"),
    ],
)
def test_amounts_are_short(value: float, unit: str, text: str) -> None:
    assert report.amount(value, unit) == text


def test_what_was_saved_is_read_back() -> None:
    path = report.save("warm", [WARM, OWN, COUNT], {"accelerator": "tcg"})
    assert report.load("warm") == {"total": WARM, "most": OWN, "same": COUNT}
    document = json.loads(path.read_text())
    assert document["accelerator"] == "tcg"
    assert document["figures"][0]["ratio"] == {"median": 0.125, "least": 0.1, "most": 0.15}


def test_no_result_is_no_figures() -> None:
    assert report.load("never") == {}
