from __future__ import annotations

import numpy as np
import pytest

from sbdzsl.sbdd.augment import DRAWN_KINDS, DefectDrawer, augment
from tests.sbdd.surfaces import surface


@pytest.mark.parametrize("kind", DRAWN_KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", [(64, 64), (33, 120), (16, 16)])
def test_drawn_defects_change_the_image_where_the_mask_says(kind, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    changed_inside = 0.0
    for index in range(20):
        good = surface(index, False, shape).grey
        before = good.copy()
        image, mask = kind(good, generator)
        assert np.array_equal(good, before), "the good image itself must stay as it was"
        assert image.shape == mask.shape == shape
        assert image.dtype == np.float32
        assert mask.dtype == np.bool_
        assert mask.any()
        assert image.min() >= 0
        assert image.max() <= 1
        # Rims are soft: well away from the mask nothing may change.
        far = ~_grown(mask, 14)
        assert np.array_equal(image[far], good[far])
        changed_inside += float(np.abs(image - good)[mask].mean())
    assert changed_inside > 0


def test_pasted_defects_are_the_training_ones() -> None:
    source = surface(1, True)
    assert source.mask is not None
    drawer = DefectDrawer([(source.grey, source.mask)])
    generator = np.random.default_rng(0)
    brightest = [drawer.draw(surface(9, False).grey, generator)[0].max() for _ in range(40)]
    # The blob is 0.4 above its surround; about half of the images get it.
    assert sum(value > 0.7 for value in brightest) >= 8


def test_defect_as_large_as_the_image_is_not_pasted() -> None:
    drawer = DefectDrawer([(np.ones((64, 64), np.float32), np.ones((64, 64), np.bool_))])
    _, mask = drawer.draw(surface(0, False).grey, np.random.default_rng(0))
    assert mask.any()
    assert not mask.all()


def test_pasting_fits_images_smaller_than_the_defect() -> None:
    source = surface(1, True, (200, 200))
    assert source.mask is not None
    wide = np.zeros((200, 200), np.bool_)
    wide[40:130, 40:130] = True
    drawer = DefectDrawer([(source.grey, wide)])
    generator = np.random.default_rng(0)
    for _ in range(20):
        image, mask = drawer.draw(surface(2, False, (40, 70)).grey, generator)
        assert image.shape == mask.shape == (40, 70)
        assert mask.any()


def test_image_and_mask_move_together() -> None:
    generator = np.random.default_rng(2)
    grey = np.full((64, 64), 0.2, np.float32)
    grey[10:26, 30:50] = 0.8
    planes = np.dstack([grey, grey > 0.5]).astype(np.float32)
    moved = [augment(planes.copy(), generator) for _ in range(16)]
    for image in moved:
        assert image.shape == planes.shape
        assert image[..., 0][image[..., 1] > 0.9].min() > image[..., 0][image[..., 1] < 0.1].max()
        assert image[..., 0].min() >= 0
        assert image[..., 0].max() <= 1
    assert len({image[..., 1].tobytes() for image in moved}) > 8


def test_same_generator_state_same_bytes() -> None:
    planes = np.random.default_rng(0).random((48, 40, 2), np.float32)
    first, second, other = (augment(planes.copy(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    grown = mask.copy()
    for y, x in np.argwhere(mask):
        grown[max(0, y - by) : y + by + 1, max(0, x - by) : x + by + 1] = True
    return grown
