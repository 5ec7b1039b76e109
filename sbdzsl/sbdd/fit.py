"""Training of one surface's detector, in plain PyTorch: images in, `Detector` out.

Whatever labels there are is used: masks, defective images without a mask, or good images alone, into which defects are
drawn. The loop itself is in `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import DetectorSettings
from sbdzsl.errors import DataError, TrainingError
from sbdzsl.sbdd.batch import Prepared
from sbdzsl.sbdd.checkpoint import CheckpointFile
from sbdzsl.sbdd.predict import DefectMap, Detector, judge, network_size, shrink
from sbdzsl.sbdd.team import ALONE, Team
from sbdzsl.sbdd.trainer import Progress, Trainer

__all__ = ["FittedDetector", "Progress", "TrainingImage", "choose_map_threshold", "choose_scale", "fit_detector"]

#: Images are halved, twice at most, until the middle one has no more network pixels than this.
MAX_NETWORK_PIXELS = 180_000

#: Share of held-out good images whose map may exceed the map threshold somewhere.
MAP_ALARM_RATE = 0.05

#: How far the map threshold moves from the loud good maps towards the defective ones.
MAP_MARGIN = 0.25


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """One labelled image: `grey` float32 [H, W] in [0, 1]; `mask` bool [H, W], True at the defect.

    All in source pixels. A defective image whose mask is None or empty is one whose defect nobody drew.
    """

    image_id: str
    grey: NDArray[np.float32]
    defective: bool
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class FittedDetector:
    """A detector, how its training went, and its scores (logits) on the validation images, in their order."""

    detector: Detector
    history: tuple[Progress, ...]
    val_scores: NDArray[np.float64]
    val_labels: NDArray[np.bool_]


def fit_detector(
    train: Sequence[TrainingImage],
    val: Sequence[TrainingImage],
    settings: DetectorSettings,
    seed: int,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    checkpoint_url: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    team: Team = ALONE,
) -> FittedDetector:
    """Train a detector on `train`; thresholds and scores come from `val`, which it never learns from.

    `train` needs at least two good images, `val` one; defective images are optional in both. Images are kept at
    network scale, so a sequence that reads them when asked holds little. `progress` is called after each epoch. With a
    `checkpoint_url` the training is written there as it goes; called again with the same images, settings and seed, it
    goes on from there and ends as if it had run through; `report` is told of a checkpoint that does not fit. Each
    process of a `team` calls this with the same images, and all get the same; the first keeps the checkpoint. Raises
    `DataError` where the images cannot be trained on, `TrainingError`: "not-finite" that names the images,
    "workers-failed" where those of the team differ.
    """
    if settings.scale is None:
        settings = settings.model_copy(update={"scale": choose_scale([image.grey.shape for image in train])})
    assert settings.scale is not None
    prepared = [_prepare(image, settings.scale) for image in train]
    held_out = [_prepare(image, settings.scale) for image in val]
    _check_labels(prepared, held_out, settings)
    purpose = _purpose(prepared, held_out, settings, seed)
    team.agree(purpose, "images or settings")
    checkpoints = None
    if checkpoint_url is not None:
        checkpoints = CheckpointFile(checkpoint_url, purpose, report)
    network, history = Trainer(prepared, settings, seed, device, team).run(held_out, progress, checkpoints)
    maps = team.spread(lambda image: judge(network, image.grey), held_out)
    labels = np.array([image.defective for image in held_out], np.bool_)
    good, defective = ([found for found, is_bad in zip(maps, labels, strict=True) if is_bad == kind] for kind in (0, 1))
    threshold = choose_map_threshold(good, defective)
    scores = np.array([found.score for found in maps], np.float64)
    return FittedDetector(Detector(settings, network, threshold), history, scores, labels)


def choose_scale(shapes: Sequence[tuple[int, ...]]) -> float:
    """1, 1/2 or 1/4: the largest at which the median image has at most `MAX_NETWORK_PIXELS`; 1/4 if none does.

    `shapes` are heights and widths in source pixels. Half size costs a quarter and lost nothing where it was measured.
    """
    pixels = float(np.median([height * width for height, width in shapes])) if shapes else 0.0
    return next((scale for scale in (1.0, 0.5) if pixels * scale**2 <= MAX_NETWORK_PIXELS), 0.25)


def choose_map_threshold(good: Sequence[DefectMap], defective: Sequence[DefectMap]) -> float:
    """The map logit above which a place is shown, from held-out images, so that the overlay of a good one is empty.

    It begins at the quantile of the good maps' maxima that `MAP_ALARM_RATE` of them exceed; not at the highest, which
    would follow a single mislabelled image. From there it goes `MAP_MARGIN` of the way to the median of the defective
    maps' maxima; without a held-out defect it goes to 0, a logit's even odds, if it is not above.
    """
    loud_good = float(np.quantile([float(found.logits.max()) for found in good], 1 - MAP_ALARM_RATE, method="higher"))
    if not defective:
        return max(loud_good, 0.0)
    loud_defective = float(np.median([float(found.logits.max()) for found in defective]))
    return loud_good + MAP_MARGIN * max(0.0, loud_defective - loud_good)


def _prepare(image: TrainingImage, scale: float) -> Prepared:
    """Bring an image to network pixels; any touch of the defect keeps its pixel, so that thin ones survive."""
    grey = shrink(image.grey, scale)
    if not np.isfinite(grey).all():
        raise TrainingError("not-finite", f"{image.image_id}: pixels that are not finite; look at the file")
    if image.mask is None:
        return Prepared(image.image_id, grey, image.defective, None)
    if image.mask.shape != image.grey.shape:
        found, expected = list(image.mask.shape), list(image.grey.shape)
        raise DataError("bad-mask", f"{image.image_id}: mask of {found}, expected the image's size {expected}")
    if not image.defective and image.mask.any():
        raise DataError("bad-mask", f"{image.image_id}: labelled good but its mask is not empty; correct one of them")
    if not image.mask.any():
        return Prepared(image.image_id, grey, image.defective, None)
    height, width = network_size(image.mask.shape[0], image.mask.shape[1], scale)
    covered = cv2.resize(image.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return Prepared(image.image_id, grey, image.defective, covered > 0)


def _purpose(
    train: Sequence[Prepared], val: Sequence[Prepared], settings: DetectorSettings, seed: int
) -> dict[str, Any]:
    """What a checkpoint must agree in to be gone on from. The time limit may be raised to go on."""
    labels = [[(i.image_id, i.defective, i.mask is not None) for i in images] for images in (train, val)]
    return {"images": labels, "settings": settings.model_dump(exclude={"max_minutes"}), "seed": seed}


def _check_labels(train: Sequence[Prepared], val: Sequence[Prepared], settings: DetectorSettings) -> None:
    good = sum(not image.defective for image in train)
    if good < 2:
        raise DataError("too-few-images", f"found {good} good training images, expected at least 2; add good images")
    if all(image.defective for image in val):
        raise DataError(
            "too-few-images",
            f"found no good image among {len(val)} validation images, expected at least 1: thresholds come from them",
        )
    if good == len(train) and settings.drawn_defects == 0:
        raise DataError(
            "too-few-images",
            "found no defective training image and drawn_defects 0, so there is nothing to learn; "
            "add defective images or let defects be drawn",
        )
