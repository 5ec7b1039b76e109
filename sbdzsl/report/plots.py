"""Histograms as inline SVG: no fonts, no links, no ids that clash, colours from the page's own variables.

The bytes depend on the figures alone. Text stays text, in the reader's font; each colour is a CSS variable of the
template, so that plots follow the light, dark and print styles of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sbdzsl.report.summary import Histogram

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

_FLOOR = 0.5

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
