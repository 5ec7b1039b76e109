"""What a detector does when the camera or the light is not what it was: figures at the stored threshold.

The changes are small ones that happen on a line. Each image is judged once as it is and once a change: sixteen times
the cost of judging it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl.metrics import auroc, average_precision, confusion

Grey = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Robustness:
    """Figures under one change: AP by the step rule, AUROC, and errors at the threshold that was stored before.

    `change` names it, `amount` says how much, in `unit`. AP and AUROC are None where they are not defined.
    """

    change: str
    amount: float
    unit: str
    ap: float | None
    auroc: float | None
    fp: int
    fn: int
    num_good: int
    num_defect: int


def robustness(
    score: Callable[[Grey], float], images: Iterable[tuple[Grey, bool]], threshold: float, seed: int = 0
) -> tuple[Robustness, ...]:
    """Judge images under every change; the first row is without any.

    `score` is a detector's raw score of a grey image, float32 [H, W] in [0, 1]; `images` are such images and whether
    they are defective, read one at a time. The noise follows from `seed` and the place of an image.
    """
    changes = _changes()
    scores: list[list[float]] = []
    labels: list[bool] = []
    for number, (grey, defective) in enumerate(images):
        generator = np.random.default_rng([seed, number])
        scores.append([score(change.apply(grey, generator)) for change in changes])
        labels.append(defective)
    truth = np.array(labels, dtype=bool)
    table = np.array(scores, dtype=np.float64).reshape(len(labels), len(changes))
    return tuple(_row(change, truth, table[:, place], threshold) for place, change in enumerate(changes))


@dataclass(frozen=True, slots=True)
class _Change:
    name: str
    amount: float
    unit: str
    apply: Callable[[Grey, np.random.Generator], Grey]


def _changes() -> list[_Change]:
    found = [_Change("none", 0, "", lambda grey, _: grey)]
    found += [_Change("brightness", amount, "times", _brightness(amount)) for amount in (0.8, 0.9, 1.1, 1.2)]
    found += [_Change("contrast", amount, "times", _contrast(amount)) for amount in (0.8, 1.2)]
    found += [_Change("blur", amount, "px, standard deviation", _blur(amount)) for amount in (0.5, 1.0, 2.0)]
    found += [_Change("noise", amount, "of white, standard deviation", _noise(amount)) for amount in (0.01, 0.02, 0.05)]
    found += [_Change("shift", amount, "px, right and down", _shift(amount)) for amount in (1, 2, 3)]
    return found


def _brightness(factor: float) -> Callable[[Grey, np.random.Generator], Grey]:
    return lambda grey, _: _saturated(grey * factor)


def _contrast(factor: float) -> Callable[[Grey, np.random.Generator], Grey]:
    return lambda grey, _: _saturated(grey.mean() + (grey - grey.mean()) * factor)


def _blur(deviation_px: float) -> Callable[[Grey, np.random.Generator], Grey]:
    return lambda grey, _: np.asarray(cv2.GaussianBlur(grey, (0, 0), deviation_px), np.float32)


def _noise(deviation: float) -> Callable[[Grey, np.random.Generator], Grey]:
    return lambda grey, generator: _saturated(
        grey + generator.standard_normal(grey.shape, np.float32) * np.float32(deviation)
    )


def _shift(pixels: int) -> Callable[[Grey, np.random.Generator], Grey]:
    """The scene moved right and down; what comes into view is mirrored, as the surface goes on."""
    return lambda grey, _: np.pad(grey, ((pixels, 0), (pixels, 0)), "reflect")[: grey.shape[0], : grey.shape[1]]


def _saturated(grey: Grey) -> Grey:
    """A camera's values end at black and white."""
    return np.clip(grey, 0, 1, dtype=np.float32)


def _row(change: _Change, labels: NDArray[np.bool_], scores: NDArray[np.float64], threshold: float) -> Robustness:
    counts = confusion(labels, scores, threshold)
    return Robustness(
        change=change.name,
        amount=change.amount,
        unit=change.unit,
        ap=average_precision(labels, scores),
        auroc=auroc(labels, scores),
        fp=counts.false_positives,
        fn=counts.false_negatives,
        num_good=int((~labels).sum()),
        num_defect=int(labels.sum()),
    )
