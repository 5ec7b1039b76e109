"""Pictures of figures as inline SVG: no fonts, no links, no ids that clash, colours from the page's own variables.

The bytes depend on the figures alone. Text stays text, in the reader's font; each colour is a CSS variable of the
template, so that plots follow the light, dark and print styles of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, sqrt
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from sbdzsl.report.figures import Histogram
from sbdzsl.report.places import HeatMap, Period

#: Colours that stand in for CSS variables while matplotlib draws.
_VARIABLES = {
    "#010203": "var(--ink)",
    "#040506": "var(--dim)",
    "#070809": "var(--passed)",
    "#0a0b0c": "var(--alarm)",
    "#0d0e0f": "var(--unseen)",
    "#101112": "var(--line)",
    "#131415": "var(--stripe)",
}
_INK, _DIM, _PASSED, _DEFECT, _UNSEEN, _LINE, _STRIPE = _VARIABLES
_ALARM = {"defect": _DEFECT, "unseen": _UNSEEN}


@dataclass(frozen=True, slots=True)
class Colours:
    """Of a plot: good and defective images, what is drawn over them, and what may stay in the background."""

    good: str
    defect: str
    ink: str
    dim: str


#: Of an inline SVG, which become the page's own; and of a picture that stands by itself, on white.
PAGE, PAPER = Colours(_PASSED, _DEFECT, _INK, _DIM), Colours("#7f8b98", "#c8323a", "#1c2024", "#59616a")


_FLOOR = 0.5

#: Shades of a heat map.
LEVELS = 8

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "hatch.color": _STRIPE,
    "hatch.linewidth": 0.6,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _DIM,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _DIM,
    "ytick.labelcolor": _DIM,
}


def histogram_svg(
    histogram: Histogram, thresholds: Sequence[float], score_name: str, alarm: Literal["defect", "unseen"], plot_id: str
) -> str:
    """An `<svg>` element: counts of the score on a logarithmic axis, the alarmed part hatched, a line per threshold.

    `score_name` labels the axis, `alarm` is the verdict of a score above the threshold. Deterministic.
    `plot_id` tells apart the plots of one page: the ids inside are made from it.
    """
    edges = histogram.low + histogram.bin_width * np.arange(len(histogram.passed) + 1)
    with matplotlib.rc_context(_RC | {"svg.hashsalt": plot_id}):
        figure = Figure(figsize=(4.6, 2.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_yscale("log")
        # A logarithm has no zero: empty bins end below the axis.
        passed, alarmed = (np.maximum(counts, _FLOOR) for counts in (histogram.passed, histogram.alarmed))
        axes.stairs(passed, edges, baseline=_FLOOR, fill=True, color=_PASSED, label="passed")
        axes.stairs(
            alarmed,
            edges,
            baseline=_FLOOR,
            fill=True,
            facecolor=_ALARM[alarm],
            edgecolor=_STRIPE,
            hatch="////",
            linewidth=0,
            label=alarm,
        )
        for number, threshold in enumerate(thresholds):
            label = "" if number else f"threshold {threshold:.2f}".replace("-", "−")
            axes.axvline(threshold, color=_INK, linewidth=1.2, label=label)
        axes.set_ylim(0.7, 1.6 * max(passed.max(), alarmed.max(), 1))
        axes.set_xlim(float(edges[0]), float(edges[-1]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
        axes.minorticks_off()
        axes.set_xlabel(score_name)
        axes.set_ylabel("images (log scale)")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(
            loc="outside upper left",
            ncols=3,
            frameon=False,
            fontsize=10,
            handlelength=1.4,
            columnspacing=1.4,
            labelcolor=_INK,
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue())


def svg(draw: Callable[[Figure], object], plot_id: str, size: tuple[float, float]) -> str:
    """An `<svg>` element of what `draw` draws, in the colours of `PAGE`, into a figure of `size` in inches.

    `plot_id` tells apart the plots of one page: the ids inside are made from it.
    """
    with matplotlib.rc_context(_RC | {"svg.hashsalt": plot_id, "text.color": _INK}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue())


def heat_map_svg(found: HeatMap) -> str:
    """An `<svg>` element of the shape of the surface's images: the more defects in a cell, the stronger its colour.

    One path a level of `LEVELS` (by the square root of the count, so that single defects are still seen) keeps a map
    at a few kilobytes.
    """
    paths: dict[int, list[str]] = {}
    most = max(found.cells, default=0)
    for place, count in enumerate(found.cells):
        if count:
            row, column = divmod(place, found.columns)
            paths.setdefault(heat_level(count, most), []).append(f"M{column} {row}h1v1h-1z")
    drawn = "".join(
        f'<path style="fill: var(--alarm); fill-opacity: {level / LEVELS:.2f}" d="{"".join(cells)}"/>'
        for level, cells in sorted(paths.items())
    )
    frame = f'<rect width="{found.columns}" height="{found.rows}" style="fill: var(--soft)"/>'
    return f'<svg viewBox="0 0 {found.columns} {found.rows}" aria-hidden="true">{frame}{drawn}</svg>'


def heat_level(count: int, most: int) -> int:
    """Level of a cell, 1 to `LEVELS`, of a count from 1 to `most`."""
    return max(1, ceil(LEVELS * sqrt(count / most) - 1e-9))


def timeline_svg(periods: Sequence[Period]) -> str:
    """An `<svg>` element: the share of defects in two or more periods with its 95 % interval, below it the images."""
    starts = [period.start.replace(tzinfo=None) for period in periods]
    width = min((later - earlier for earlier, later in pairwise(starts)))
    middles = [start + width / 2 for start in starts]
    values = 100 * np.array([period.defect_rate.value for period in periods], dtype=np.float64)
    low, high = (
        100 * np.array([getattr(period.defect_rate, end) for period in periods], dtype=np.float64)
        for end in ("low", "high")
    )
    with matplotlib.rc_context(_RC | {"svg.hashsalt": "timeline"}):
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        upper.bar(middles, values, width=width * 0.86, color=_DEFECT, linewidth=0)
        upper.vlines(middles, low, high, color=_INK, linewidth=1)
        upper.set_ylim(0, 1.1 * max(float(np.percentile(high, 90)), float(values.max()), 1e-3))
        upper.set_ylabel("defects, %")
        lower.bar(
            middles, [period.defect_rate.of for period in periods], width=width * 0.86, color=_PASSED, linewidth=0
        )
        lower.set_ylabel("images")
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
        lower.xaxis.set_major_locator(locator)
        lower.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        lower.xaxis.get_offset_text().set_color(_DIM)
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue())


def _inline(document: str) -> str:
    """A whole SVG document as an element of an HTML page."""
    svg = document[document.index("<svg") :]
    # Its style sheet would hold for the whole page, and namespaces are the parser's own inside HTML.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    # Only what is referred to keeps its id: clip paths, hatches and tick marks, named by a hash of their content.
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match.group(0) if match.group(1) in used else "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f'fill="{colour}"', f'style="fill: {variable}"').replace(colour, variable)
    # The picture is described beside it; the width is the page's business.
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    return re.sub(r"\s+", " ", svg).strip()
