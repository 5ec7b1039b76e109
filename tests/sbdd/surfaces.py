"""Tiny drawn surfaces for the detector's tests: noise, and a bright blob where the image is defective."""

from __future__ import annotations

import numpy as np

from sbdzsl.config import DetectorSettings
from sbdzsl.sbdd.fit import TrainingImage

#: Small enough for a fraction of a second an epoch.
TINY = DetectorSettings(width=0.5, epochs=10, batch_size=8, dilation_px=3)


def surface(index: int, defective: bool, shape: tuple[int, int] = (64, 64), masked: bool = True) -> TrainingImage:
    generator = np.random.default_rng(index)
    grey = generator.normal(0.4, 0.03, shape).astype(np.float32)
    mask = np.zeros(shape, np.bool_)
    if defective:
        y, x = (int(generator.integers(0, side - 10)) for side in shape)
        mask[y : y + 10, x : x + 10] = True
        grey[mask] += 0.4
    return TrainingImage(f"surface-{index}", grey.clip(0, 1), defective, mask if defective and masked else None)


def surfaces(
    start: int, good: int, defective: int, shape: tuple[int, int] = (64, 64), masked: bool = True
) -> list[TrainingImage]:
    return [surface(start + i, i < defective, shape, masked) for i in range(good + defective)]
