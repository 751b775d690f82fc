"""Pictures for the README, drawn from ``results/*.json``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import pygal  # type: ignore[import-untyped]
from pygal.style import Style  # type: ignore[import-untyped]

from bench import report
from bench.figures import Figure, Spread

# pygal puts a finder of the kind that Python 3.12 no longer has on the path, which breaks others'
# imports (pytest's). Its own modules need it no more.
sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]

IMAGES = report.RESULTS.parent.parent / "docs" / "img"

_STYLE = Style(
    background="white",
    plot_background="white",
    foreground="#3d3d3d",
    foreground_strong="#1a1a1a",
    foreground_subtle="#8a8a8a",
    colors=("#2f6f9f", "#c8663c"),
    opacity="1",
    guide_stroke_color="#c8c8c8",
    major_guide_stroke_color="#c8c8c8",
    value_colors=("#1a1a1a",),
    font_family="sans-serif",
    title_font_size=16,
    label_font_size=13,
    major_label_font_size=13,
    value_font_size=13,
)
_COMMON = {
    "style": _STYLE,
    "width": 760,
    "js": (),
    "show_legend": False,
    "no_prefix": True,  # or each drawing has another random id in it
    "margin": 16,
    "max_scale": 6,
}


class Bar(NamedTuple):
    """One bar of a chart."""

    label: str
    value: float


def draw() -> list[Path]:
    """Draw every picture that there are results for, over earlier ones."""
    IMAGES.mkdir(exist_ok=True)
    charts = {
        "starts": _bars(starts(), "Time to an answer, as a multiple of a bare kernel's boot"),
        "memory": _bars(memory(), "Host memory of a machine's own right after its start, MiB"),
        "clones": _row(report.load("clones").get("total")),
    }
    drawn = []
    for name, chart in charts.items():
        if chart is not None:
            path = IMAGES / f"{name}.svg"
            chart.add_xml_filter(_without_scripts)
            path.write_text(chart.render(is_unicode=True) + "\n")
            drawn.append(path)
    return drawn


def starts() -> list[Bar]:
    """Give the ratios to the floor, of what there are results for."""
    shown = (
        ("floor", "floor", "bare kernel"),
        ("cold", "total", "cold start"),
        ("many", "all", "20 clones at once, all"),
        ("suspend", "back", "resume of a suspended machine"),
        ("warm", "total", "start from a template"),
        ("staged", "total", "start of a staged clone"),
    )
    return list(_found((name, key, label, "ratio") for name, key, label in shown))


def memory() -> list[Bar]:
    """Give what machines have of their own."""
    return list(
        _found(
            (
                ("memory", "cold", "booted", "value"),
                ("memory", "own", "started from a template", "value"),
            )
        )
    )


def _found(shown: Iterable[tuple[str, str, str, str]]) -> Iterable[Bar]:
    for name, key, label, what in shown:
        if (figure := report.load(name).get(key)) is not None:
            # The floor itself has no ratio: it is one.
            ratio = figure.ratio or Spread(1, 1, 1)
            yield Bar(label, (ratio if what == "ratio" else figure.value).median)


def _without_scripts(root: Element) -> Element:
    """Leave out what a picture in a page never runs."""
    for parent in list(root.iter()):
        for child in list(parent):
            if str(child.tag).endswith("script"):
                parent.remove(child)
    return root


def _bars(bars: Sequence[Bar], title: str) -> pygal.HorizontalBar | None:
    if not bars:
        return None
    chart = pygal.HorizontalBar(**_COMMON, title=title, height=90 + 32 * len(bars))
    # Drawn from the bottom upwards. A value beside its bar would be drawn over the bar's end.
    shown = list(reversed(bars))
    chart.x_labels = [f"{bar.label}:  {bar.value:.3g}" for bar in shown]
    chart.add("", [bar.value for bar in shown])
    return chart


def _row(total: Figure | None) -> pygal.XY | None:
    if total is None or total.ratio is None:
        return None
    pairs = zip(total.samples, total.beside, strict=True)
    chart = pygal.XY(
        **_COMMON,
        title=f"{len(total.samples)} clones in a row, as multiples of a bare kernel's boot",
        height=260,
        stroke=False,
        dots_size=2,
        include_x_axis=True,
        value_formatter="{:.2g}".format,
        x_value_formatter="{:.0f}".format,
    )
    chart.add("", [(i, took / floor) for i, (took, floor) in enumerate(pairs, start=1)])
    return chart
