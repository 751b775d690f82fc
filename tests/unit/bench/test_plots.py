from __future__ import annotations

from pathlib import Path

import pytest

from bench import plots, report
from bench.figures import Figure


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(plots, "IMAGES", tmp_path / "img")


def save(name: str, key: str, samples: tuple[float, ...], beside: tuple[float, ...] = ()) -> None:
    report.save(name, [Figure(key, "what", "s", samples, beside)], {})


def test_without_results_there_are_no_pictures() -> None:
    assert plots.draw() == []


def test_a_picture_shows_the_ratios_and_is_the_same_each_time() -> None:
    save("cold", "total", (12.0,), (4.0,))
    save("warm", "total", (1.0, 3.0, 1.0), (4.0, 4.0, 4.0))
    assert plots.starts() == [("cold start", 3.0), ("start from a template", 0.25)]
    (path,) = plots.draw()
    first = path.read_text()
    for word in ("cold start:  3", "start from a template:  0.25"):
        assert f">{word}<" in first
    assert "<script" not in first
    plots.draw()
    assert path.read_text() == first


def test_clones_are_drawn_one_by_one() -> None:
    save("clones", "total", (1.0, 2.0, 4.0), (4.0, 4.0, 4.0))
    (path,) = plots.draw()
    assert path.name == "clones.svg"
    assert path.read_text().count("<circle") == 3
