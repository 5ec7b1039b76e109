"""How far detectors of one line get on the drawn lake: average precision per surface.

python benchmarks/drawn_lake.py
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from record import record

from sbdzsl.datasets.synthetic import SURFACES, draw_image
from sbdzsl.metrics import average_precision

DETECTORS = ("deviation of the image", "largest distance from its mean", "largest local contrast")


def trivial_precision(num_images: int, seed: int) -> NDArray[np.float64]:
    """Average precision [surfaces, detectors] on the first images of each surface, 15 % of them defective."""
    rows = []
    for surface in SURFACES:
        drawn = [draw_image(surface, index, seed=seed) for index in range(num_images)]
        truth = np.array([one.defective for one in drawn])
        scores = np.array([_trivial_scores(one.pixels) for one in drawn])
        rows.append([average_precision(truth, column) for column in scores.T])
    return np.array(rows, dtype=np.float64)


def _trivial_scores(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> tuple[float, float, float]:
    grey = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    local_mean = cv2.blur(grey, (16, 16))
    local_variance = cv2.blur(grey * grey, (16, 16)) - local_mean**2
    return float(grey.std()), float(np.abs(grey - grey.mean()).max()), float(local_variance.max())


if __name__ == "__main__":
    precision = trivial_precision(num_images=400, seed=0).round(3)
    by_surface = {
        name: dict(zip(DETECTORS, row, strict=True)) for name, row in zip(SURFACES, precision.tolist(), strict=True)
    }
    mean = dict(zip(DETECTORS, precision.mean(axis=0).round(3).tolist(), strict=True))
    for name, row in (by_surface | {"mean": mean}).items():
        print(f"{name:18}", *(f"{value:.2f}" for value in row.values()))
    record("drawn_lake", {"images_per_surface": 400, "surfaces": by_surface, "mean": mean})
