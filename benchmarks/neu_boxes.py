"""NEU steel strip: every image is defective and labelled by boxes. How well does the map find them?

    python benchmarks/neu_boxes.py

Six kinds as one surface, split 60/20/20 by image, three seeds. Training needs good images and the set has none: the
largest square without a box of each training and validation image, of 64 pixels or more, stands in for one. Pixel AP is
against filled boxes, so it cannot reach 1: a box holds much good steel. A box is found where the map is above its
threshold on at least half of it. Needs the shared images (SBDZSL_SHARED); about four minutes on one core.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import cv2
import numpy as np
import torch
from detector_runs import decoded
from numpy.typing import NDArray
from record import record, shared_data
from sbdd import SEEDS, spread

from sbdzsl import datasets, lake
from sbdzsl.config import DetectorSettings
from sbdzsl.pixel_metrics import PixelTally
from sbdzsl.sbdd.fit import TrainingImage, fit_detector

SMALLEST_GOOD_PX = 64
FOUND_SHARE = 0.5


def run(seed: int) -> dict[str, Any]:
    """Train and test one split."""
    images: dict[str, list[TrainingImage]] = {"train": [], "val": [], "test": []}
    boxes: list[tuple[TrainingImage, list[NDArray[np.int64]]]] = []
    for sample in datasets.ingest("neu", str(shared_data() / "NEU-DET"), surface="steel_strip", seed=seed).samples:
        assert sample.split is not None
        image = decoded(sample)
        images[sample.split].append(image)
        if sample.split == "test":
            assert sample.mask_uri is not None
            boxes.append((image, corners(lake.read_bytes(sample.mask_uri))))
        elif (good := largest_good_square(image)) is not None:
            images[sample.split].append(good)
    fitted = fit_detector(images["train"], images["val"], DetectorSettings(), seed)
    pixels, found, of, called = PixelTally(), 0, 0, []
    for image, places in boxes:
        assert image.mask is not None
        heat = fitted.detector.detect(image.grey).heat()
        pixels.add(heat, image.mask)
        above = heat > fitted.detector.map_threshold
        called.append(float(above[~image.mask].mean()) if (~image.mask).any() else 0.0)
        for left, top, right, bottom in places:
            found += bool(above[top - 1 : bottom, left - 1 : right].mean() >= FOUND_SHARE)
            of += 1
    good = sum(not image.defective for image in images["train"])
    return {
        "seed": seed,
        "train": {"defective": len(images["train"]) - good, "good_squares": good},
        "test_images": len(boxes),
        "boxes": of,
        "box_recall": found / of,
        "pixels_outside_called": float(np.mean(called)),
        "pixel_ap": pixels.ap(),
        "chance_pixel_ap": float(np.mean([image.mask.mean() for image, _ in boxes if image.mask is not None])),
        "aupro": pixels.aupro(),
    }


def largest_good_square(image: TrainingImage) -> TrainingImage | None:
    """The largest square of the image that no box touches; None where it is smaller than `SMALLEST_GOOD_PX`."""
    assert image.mask is not None
    padded = cv2.copyMakeBorder((~image.mask).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    # The chessboard distance to the nearest box or border is half the side of the largest square around a pixel.
    distance = cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    reach = int(distance[y, x]) - 1
    if 2 * reach + 1 < SMALLEST_GOOD_PX:
        return None
    cut = image.grey[y - reach : y + reach + 1, x - reach : x + reach + 1]
    return TrainingImage(f"{image.image_id} (good square)", np.ascontiguousarray(cut), defective=False)


def corners(xml: bytes) -> list[NDArray[np.int64]]:
    """Boxes of a Pascal VOC file: xmin, ymin, xmax, ymax, counted from 1, both ends included."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = ElementTree.fromstring(xml).iter("bndbox")
    return [np.array([int(box.findtext(side, "")) for side in sides], np.int64) for box in boxes]


def main() -> None:
    """Three seeds, one result."""
    torch.set_num_threads(1)
    runs = [run(seed) for seed in SEEDS]
    for one in runs:
        print(one)
    names = ("pixel_ap", "box_recall", "aupro", "chance_pixel_ap", "pixels_outside_called")
    record("neu_boxes", {name: spread([one[name] for one in runs]) for name in names} | {"runs": runs})


if __name__ == "__main__":
    main()
