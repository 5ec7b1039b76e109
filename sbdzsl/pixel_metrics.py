"""Figures over pixels: how well a map finds the place of a defect. Streaming: one image at a time, histograms kept.

Pixels are sorted into bins of 1/64 logit between -32 and 32, and those of one bin count as evenly mixed; those beyond
fall into the outer bins. On maps that spread over a logit or more the figures are within 0.001 of the exact ones
(tested), and any number of pixels costs some tens of kilobytes an image. Pixels of all images are taken together: a map
has to mean the same on each, so figures over several detectors are means of theirs.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl.bootstrap import RESAMPLES, UNDEFINED, Estimate, draw_weights
from sbdzsl.metrics import Floats

LOW, HIGH = -32.0, 32.0
NUM_BINS = 4096

#: AUPRO is the area up to this false-positive rate of pixels, divided by it (Bergmann et al. 2020).
MAX_FALL_OUT = 0.3

#: Resamples that are counted at once: each takes a few rows of `NUM_BINS` numbers.
_BLOCK = 250


class PixelTally:
    """Counts of the pixels of labelled images, filled by `add`; figures by `estimates` or one by one."""

    def __init__(self) -> None:
        self._good: list[NDArray[np.int64]] = []
        self._defect: list[NDArray[np.int64]] = []
        self._overlap: list[Floats] = []
        self._regions: list[int] = []
        #: Rows of `_defect`, `_overlap` and `_regions` belong to these images; the others have no defect.
        self._defective: list[int] = []

    @property
    def num_images(self) -> int:
        """Images added."""
        return len(self._good)

    @property
    def num_regions(self) -> int:
        """Connected places of defect (8 neighbours) in all of them."""
        return sum(self._regions)

    def add(self, heat: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Count one image: `heat` [H, W] map logits, `mask` [H, W] True at the defect, in one frame."""
        if heat.shape != mask.shape:
            raise ValueError(f"the map is {heat.shape}, the mask {mask.shape}")
        # Bins are numbered from the highest logit down, the order in which a threshold meets them.
        place = np.clip((HIGH - heat) * (NUM_BINS / (HIGH - LOW)), 0, NUM_BINS - 1).astype(np.intp)
        counts = np.bincount(place.ravel(), minlength=NUM_BINS)
        if mask.any():
            defect = np.bincount(place[mask], minlength=NUM_BINS)
            counts -= defect
            num, regions = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
            sizes = np.bincount(regions[mask], minlength=num)
            shares = np.bincount(place[mask], weights=1 / sizes[regions[mask]], minlength=NUM_BINS)
            self._defective.append(len(self._good))
            self._defect.append(defect)
            self._overlap.append(np.asarray(shares, np.float64))
            self._regions.append(num - 1)
        self._good.append(counts)

    def ap(self) -> float | None:
        """Average precision of pixels, all images together; None without a defect pixel."""
        return _single(self._ap(np.ones((1, self.num_images))))

    def aupro(self) -> float | None:
        """Mean share of each connected place of defect that is found, over the false-positive rate of pixels up to 0.3.

        Every place counts alike, however large. Normalised to [0, 1]; chance is about 0.15. None without a defect
        pixel or without a good one.
        """
        return _single(self._aupro(np.ones((1, self.num_images))))

    def estimates(self, generator: np.random.Generator, resamples: int = RESAMPLES) -> dict[str, Estimate]:
        """`pixel_ap` and `aupro` with their bootstrap: whole images are drawn, those with and without defect apart."""
        strata = np.isin(np.arange(self.num_images), self._defective).astype(np.intp)
        found: dict[str, Estimate] = {}
        blocks = [
            draw_weights(strata, min(_BLOCK, resamples - done), generator) for done in range(0, resamples, _BLOCK)
        ]
        for name, figure in (("pixel_ap", self._ap), ("aupro", self._aupro)):
            value = _single(figure(np.ones((1, self.num_images))))
            if value is None:
                found[name] = UNDEFINED
                continue
            drawn = [resampled for weights in blocks if (resampled := figure(weights)) is not None]
            found[name] = Estimate(value, np.concatenate(drawn))
        return found

    def _ap(self, weights: Floats) -> Floats | None:
        if not self._defective:
            return None
        hits, alarms = _weighted(weights[:, self._defective], self._defect), _weighted(weights, self._good)
        # Precision in the middle of each bin, as if the pixels in it came in even mixture.
        found = np.cumsum(hits, axis=1) - hits / 2
        called = found + np.cumsum(alarms, axis=1) - alarms / 2
        precision = np.divide(found, called, out=np.zeros_like(called), where=called > 0)
        return np.sum(precision * hits, axis=1) / hits.sum(axis=1)

    def _aupro(self, weights: Floats) -> Floats | None:
        if not self._defective or not any(counts.any() for counts in self._good):
            return None
        good = np.cumsum(_weighted(weights, self._good), axis=1)
        drawn = weights[:, self._defective]
        num_regions = drawn @ np.array(self._regions, dtype=np.float64)
        overlap = np.cumsum(_weighted(drawn, self._overlap), axis=1) / num_regions[:, None]
        # A resample may, in principle, have drawn no good pixel at all.
        return _area_up_to(good / np.maximum(good[:, -1:], 1), overlap, MAX_FALL_OUT) / MAX_FALL_OUT


def _weighted(weights: Floats, histograms: list[NDArray[np.int64]] | list[Floats]) -> Floats:
    """[R, N] weights times N histograms: [R, bins]: exact for one data set, in float32 for many."""
    kind = np.float64 if len(weights) == 1 else np.float32
    return (weights.astype(kind) @ np.stack(histograms).astype(kind)).astype(np.float64)


def _area_up_to(x: Floats, y: Floats, limit: float) -> Floats:
    """Area [R] under the curves through (0, 0) and the points (x, y) [R, B], x rising, up to x = `limit`."""
    x, y = np.pad(x, ((0, 0), (1, 0))), np.pad(y, ((0, 0), (1, 0)))
    width = np.diff(x, axis=1)
    kept = np.clip(limit - x[:, :-1], 0, width)
    slope = np.divide(np.diff(y, axis=1), width, out=np.zeros_like(width), where=width > 0)
    return np.sum(kept * (y[:, :-1] + slope * kept / 2), axis=1)


def _single(found: Floats | None) -> float | None:
    return None if found is None else float(found[0])
