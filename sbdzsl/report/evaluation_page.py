"""The pictures of an evaluation: per surface a precision-recall curve, a histogram of scores and the errors themselves.

`index.html` shows them beside the figures. It needs nothing but the PNG files next to it: no script, no other host.
Names of surfaces and files are hostile input: the template escapes everything.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from matplotlib.figure import Figure

from sbdzsl import __version__, lake
from sbdzsl.bundle import Bundle
from sbdzsl.detector_figures import SurfaceScores
from sbdzsl.evaluation import Evaluation
from sbdzsl.report.detector_plots import (
    MAX_ERRORS,
    RGB,
    draw_precision_recall,
    draw_scores,
    errors,
    picture_errors,
)
from sbdzsl.report.html import environment
from sbdzsl.report.overlay import encode_png
from sbdzsl.report.plots import PAPER

_COLUMNS, _TILE_WIDTH_PX, _TILE_HEIGHT_PX, _GAP_PX = 4, 320, 720, 12


@dataclass(frozen=True, slots=True)
class _Section:
    surface: str
    figures: Mapping[str, Any]
    curve: str
    histogram: str
    errors: str | None
    num_errors: int
    num_shown: int


def write_evaluation(evaluation: Evaluation, bundle: Bundle, out: str) -> str:
    """Write `index.html` and its PNG files into the folder or URL `out`; returns the page's URL.

    The images of the errors are read again. Raises `LakeError` where `out` cannot be written.
    """
    sections = [
        _write_surface(scores, evaluation.figures["surfaces"][surface], bundle, out)
        for surface, scores in evaluation.scores.items()
        if scores.samples
    ]
    template = environment().get_template("evaluation.html.j2")
    page = template.render(figures=evaluation.figures, sections=sections, version=__version__)
    target = lake.join(out, "index.html")
    lake.write_bytes(target, page.encode())
    return target


def _write_surface(scores: SurfaceScores, figures: Mapping[str, Any], bundle: Bundle, out: str) -> _Section:
    def write(kind: str, data: bytes) -> str:
        name = f"{quote(scores.surface, safe=' ')}-{kind}.png"
        lake.write_bytes(lake.join(out, name), data)
        return quote(name)

    labels, raw, threshold = scores.labels, scores.scores, scores.threshold.value
    wrong = errors(scores)
    shown = [one.picture for one in picture_errors(scores, wrong[:MAX_ERRORS], bundle)]
    curve = _png(lambda figure: draw_precision_recall(figure, labels, raw, threshold, PAPER))
    return _Section(
        surface=scores.surface,
        figures=figures,
        curve=write("precision-recall", curve),
        histogram=write("scores", _png(lambda figure: draw_scores(figure, labels, raw, threshold, PAPER))),
        errors=write("errors", encode_png(contact_sheet(shown))) if shown else None,
        num_errors=len(wrong),
        num_shown=len(shown),
    )


def contact_sheet(tiles: Sequence[RGB]) -> RGB:
    """Pictures [H, W, 3] in rows of four on white, each shrunk to its cell where it is larger."""
    cells = [_fitted(tile) for tile in tiles]
    rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    heights = [max(cell.shape[0] for cell in row) + _GAP_PX for row in rows]
    pitch = max(cell.shape[1] for cell in cells) + _GAP_PX
    sheet = np.full((sum(heights) + _GAP_PX, min(len(cells), _COLUMNS) * pitch + _GAP_PX, 3), 255, np.uint8)
    top = _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for number, cell in enumerate(row):
            left = _GAP_PX + number * pitch
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        top += height
    return sheet


def _fitted(tile: RGB) -> RGB:
    height, width = tile.shape[:2]
    scale = min(1.0, _TILE_WIDTH_PX / width, _TILE_HEIGHT_PX / height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return tile if scale == 1 else np.asarray(cv2.resize(tile, size, interpolation=cv2.INTER_AREA), np.uint8)


def _png(draw: Callable[[Figure], object]) -> bytes:
    figure = Figure(figsize=(5.2, 3.6), dpi=110, layout="constrained")
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
