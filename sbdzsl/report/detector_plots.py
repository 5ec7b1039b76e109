"""Pictures of one detector on labelled images: precision over recall, its scores, and the images it judged wrongly.

The plots are drawn into axes, in the colours given, so that a picture beside a page and one inside it are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from sbdzsl.bundle import Bundle
from sbdzsl.datasets.sample import Sample, load_mask
from sbdzsl.detector_figures import SurfaceScores
from sbdzsl.errors import DataError, LakeError
from sbdzsl.inspector import load_image
from sbdzsl.metrics import Labels, Scores, best_f1, count
from sbdzsl.report.overlay import draw_overlay
from sbdzsl.report.plots import Colours
from sbdzsl.verdict import Region

#: Errors of a surface that are shown at most: the false alarms with the highest, the misses with the lowest scores.
MAX_ERRORS = 12
#: Images in a bin above which the histogram's axis is logarithmic, so that single images are still seen.
_LOG_FROM = 20

RGB = NDArray[np.uint8]


def draw_precision_recall(figure: Figure, labels: Labels, scores: Scores, threshold: float, colours: Colours) -> None:
    """Precision over recall, as steps, with the threshold in force and the one of the best F1 on these data."""
    axes = figure.add_subplot()
    counts = count(labels, scores)
    if counts.positives:
        recall = counts.true_positives[0] / counts.positives
        precision = counts.true_positives[0] / (counts.true_positives[0] + counts.false_positives[0])
        steps = np.append(0, recall), np.append(precision[0], precision)
        axes.step(*steps, where="pre", color=colours.ink, linewidth=1.6)
    best = best_f1(labels, scores)
    for value, marker, label in (
        (threshold, "o", "threshold in force"),
        (best.threshold if best else None, "x", "best F1 on these data"),
    ):
        called = scores > value if value is not None else np.zeros(len(scores), bool)
        if called.any() and labels.any():
            point = (called & labels).sum() / labels.sum(), (called & labels).sum() / called.sum()
            axes.plot(*point, marker, color=colours.defect, markersize=8, label=label, fillstyle="none", clip_on=False)
    if labels.any():
        axes.axhline(float(labels.mean()), color=colours.dim, linestyle=":", label="chance")
    else:
        axes.text(0.5, 0.5, "no defective image: no curve", ha="center", color=colours.dim)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
    _finish(figure, axes)


def draw_scores(figure: Figure, labels: Labels, scores: Scores, threshold: float, colours: Colours) -> None:
    """Scores of good and of defective images with both thresholds; where a bin is high, on a logarithmic axis."""
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(np.append(scores, threshold), bins=40)
    for kind, colour, name in ((~labels, colours.good, "good"), (labels, colours.defect, "defective")):
        axes.hist(scores[kind], edges.tolist(), color=colour, alpha=0.65, label=f"{name} ({kind.sum():,})")
    axes.axvline(threshold, color=colours.ink, label=f"threshold in force, {threshold:.2f}")
    best = best_f1(labels, scores)
    if best:
        label = f"best F1 on these data, {best.threshold:.2f}"
        axes.axvline(best.threshold, color=colours.ink, linestyle=":", label=label)
    tall = axes.get_ylim()[1] > _LOG_FROM
    if tall:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator() if tall else MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set(xlabel="defect score (logits)", ylabel="images (log scale)" if tall else "images")
    _finish(figure, axes)


def _finish(figure: Figure, axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.5)


@dataclass(frozen=True, slots=True)
class ErrorPicture:
    """An image that a detector judged wrongly, with its map; around a missed defect the frame of its label."""

    kind: Literal["false alarm", "missed"]
    uri: str
    score: float
    picture: RGB


def errors(scores: SurfaceScores) -> list[int]:
    """Places of the images that were judged wrongly, the worst first, false alarms and misses in turn."""
    labels, called, raw = scores.labels, scores.called, scores.scores
    alarms = sorted(np.flatnonzero(called & ~labels).tolist(), key=lambda place: -raw[place])
    misses = sorted(np.flatnonzero(~called & labels).tolist(), key=lambda place: raw[place])
    in_turn = [place for pair in zip(alarms, misses, strict=False) for place in pair]
    shorter = min(len(alarms), len(misses))
    return in_turn + alarms[shorter:] + misses[shorter:]


def picture_errors(scores: SurfaceScores, places: Sequence[int], bundle: Bundle) -> list[ErrorPicture]:
    """Pictures of images by their places; those that can no longer be read are left out."""
    found = (_picture(scores, place, bundle) for place in places)
    return [picture for picture in found if picture is not None]


def _picture(scores: SurfaceScores, place: int, bundle: Bundle) -> ErrorPicture | None:
    sample, detector = scores.samples[place], bundle.detectors[scores.surface].detector
    image = load_image(sample.image_id, sample.uri, bundle.settings.image, sample.bit_depth).image
    if image is None:
        return None
    grey, threshold = image.grey(), detector.map_threshold
    found = detector.detect(grey)
    kind: Literal["false alarm", "missed"] = "missed" if sample.label == "defect" else "false alarm"
    regions = _labelled(sample, grey.shape) if kind == "missed" else found.regions(threshold)
    name = PurePosixPath(sample.uri).name
    told = f"score {found.score:.2f}, threshold {scores.threshold.value:.2f}; {name}"
    frames = "; frame: the label" if kind == "missed" and regions else ""
    drawn = draw_overlay(grey, found.heat(), threshold, regions, kind, told + frames)
    return ErrorPicture(kind, sample.uri, found.score, drawn)


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
