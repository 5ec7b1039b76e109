"""The pictures of an evaluation: per surface a precision-recall curve, a histogram of scores and the errors themselves.

`index.html` shows them beside the figures. It needs nothing but the PNG files next to it: no script, no other host.
Names of surfaces and files are hostile input: the template escapes everything.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import cv2
import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from sbdzsl import __version__, lake
from sbdzsl.bundle import Bundle, SurfaceDetector
from sbdzsl.datasets.sample import Sample, load_mask
from sbdzsl.detector_figures import SurfaceScores
from sbdzsl.errors import DataError, LakeError
from sbdzsl.evaluation import Evaluation
from sbdzsl.inspector import load_image
from sbdzsl.metrics import Labels, Scores, best_f1, count
from sbdzsl.report.overlay import draw_overlay, encode_png
from sbdzsl.verdict import Region

#: Errors a surface's picture shows at most: the false alarms with the highest, the misses with the lowest scores.
MAX_ERRORS = 12
_COLUMNS, _TILE_WIDTH_PX, _TILE_HEIGHT_PX, _GAP_PX = 4, 320, 720, 12
#: Images in a bin above which the histogram's axis is logarithmic, so that single images are still seen.
_LOG_FROM = 20
_GOOD, _DEFECT, _INK, _DIM = "#7f8b98", "#c8323a", "#1c2024", "#59616a"

RGB = NDArray[np.uint8]


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
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"figure": _figure, "interval": _interval}
    template = environment.from_string(Path(__file__).with_name("evaluation.html.j2").read_text(encoding="utf-8"))
    page = template.render(figures=evaluation.figures, sections=sections, version=__version__)
    target = lake.join(out, "index.html")
    lake.write_bytes(target, page.encode())
    return target


def _write_surface(scores: SurfaceScores, figures: Mapping[str, Any], bundle: Bundle, out: str) -> _Section:
    def write(kind: str, data: bytes) -> str:
        name = f"{quote(scores.surface, safe=' ')}-{kind}.png"
        lake.write_bytes(lake.join(out, name), data)
        return quote(name)

    wrong = _errors(scores)
    entry = bundle.detectors[scores.surface]
    shown = [tile for place in wrong[:MAX_ERRORS] if (tile := _tile(scores, place, entry, bundle)) is not None]
    return _Section(
        surface=scores.surface,
        figures=figures,
        curve=write("precision-recall", precision_recall_png(scores.labels, scores.scores, scores.threshold.value)),
        histogram=write("scores", histogram_png(scores.labels, scores.scores, scores.threshold.value)),
        errors=write("errors", encode_png(contact_sheet(shown))) if shown else None,
        num_errors=len(wrong),
        num_shown=len(shown),
    )


def precision_recall_png(labels: Labels, scores: Scores, threshold: float) -> bytes:
    """Precision over recall, as steps, with the threshold in force and the one of the best F1 on these data."""

    def draw(axes: Axes) -> None:
        counts = count(labels, scores)
        if counts.positives:
            recall = counts.true_positives[0] / counts.positives
            precision = counts.true_positives[0] / (counts.true_positives[0] + counts.false_positives[0])
            axes.step(np.append(0, recall), np.append(precision[0], precision), where="pre", color=_INK, linewidth=1.6)
        best = best_f1(labels, scores)
        for value, marker, label in (
            (threshold, "o", "threshold in force"),
            (best.threshold if best else None, "x", "best F1 on these data"),
        ):
            called = scores > value if value is not None else np.zeros(len(scores), bool)
            if called.any() and labels.any():
                point = (called & labels).sum() / labels.sum(), (called & labels).sum() / called.sum()
                axes.plot(*point, marker, color=_DEFECT, markersize=8, label=label, fillstyle="none", clip_on=False)
        if labels.any():
            axes.axhline(float(labels.mean()), color=_DIM, linestyle=":", label="chance")
        else:
            axes.text(0.5, 0.5, "no defective image: no curve", ha="center", color=_DIM)
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="recall", ylabel="precision")

    return _plot(draw)


def histogram_png(labels: Labels, scores: Scores, threshold: float) -> bytes:
    """Scores of good and of defective images with both thresholds; where a bin is high, on a logarithmic axis."""

    def draw(axes: Axes) -> None:
        edges = np.histogram_bin_edges(np.append(scores, threshold), bins=40)
        for kind, colour, name in ((~labels, _GOOD, "good"), (labels, _DEFECT, "defective")):
            axes.hist(scores[kind], edges.tolist(), color=colour, alpha=0.65, label=f"{name} ({kind.sum():,})")
        axes.axvline(threshold, color=_INK, label=f"threshold in force, {threshold:.2f}")
        best = best_f1(labels, scores)
        if best:
            axes.axvline(
                best.threshold, color=_INK, linestyle=":", label=f"best F1 on these data, {best.threshold:.2f}"
            )
        tall = axes.get_ylim()[1] > _LOG_FROM
        if tall:
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
            axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator() if tall else MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="defect score (logits)", ylabel="images (log scale)" if tall else "images")

    return _plot(draw)


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


def _errors(scores: SurfaceScores) -> list[int]:
    """Places of the images that were judged wrongly, the worst first, false alarms and misses in turn."""
    labels, called, raw = scores.labels, scores.called, scores.scores
    alarms = sorted(np.flatnonzero(called & ~labels).tolist(), key=lambda place: -raw[place])
    misses = sorted(np.flatnonzero(~called & labels).tolist(), key=lambda place: raw[place])
    in_turn = [place for pair in zip(alarms, misses, strict=False) for place in pair]
    shorter = min(len(alarms), len(misses))
    return in_turn + alarms[shorter:] + misses[shorter:]


def _tile(scores: SurfaceScores, place: int, entry: SurfaceDetector, bundle: Bundle) -> RGB | None:
    """One wrongly judged image with its map; around a missed defect the frame of its label. None if it is gone."""
    sample = scores.samples[place]
    image = load_image(sample.image_id, sample.uri, bundle.settings.image, sample.bit_depth).image
    if image is None:
        return None
    grey, threshold = image.grey(), entry.detector.map_threshold
    found = entry.detector.detect(grey)
    missed = sample.label == "defect"
    regions = _labelled(sample, grey.shape) if missed else found.regions(threshold)
    name = PurePosixPath(sample.uri).name
    told = f"score {found.score:.2f}, threshold {scores.threshold.value:.2f}; {name}"
    frames = "; frame: the label" if missed and regions else ""
    return draw_overlay(grey, found.heat(), threshold, regions, "missed" if missed else "false alarm", told + frames)


def _labelled(sample: Sample, shape: tuple[int, ...]) -> tuple[Region, ...]:
    """Frames around the labelled places of a defect; none where its mask is not known."""
    try:
        mask = load_mask(sample, (shape[0], shape[1]))
    except (DataError, LakeError):
        # The figures list it among the masks that cannot be read.
        return ()
    if mask is None:
        return ()
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return tuple(Region(int(x), int(y), int(w), int(h), int(area), 0.0) for x, y, w, h, area in stats[1:])


def _plot(draw: Callable[[Axes], None]) -> bytes:
    figure = Figure(figsize=(5.2, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _interval(bounds: Sequence[float] | None) -> str:
    if bounds is None:
        return ""
    return " to ".join(_figure(bound) for bound in bounds)
