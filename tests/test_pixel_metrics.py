import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from sbdzsl.bootstrap import draw_weights
from sbdzsl.pixel_metrics import PixelTally

Picture = tuple[NDArray[np.float32], NDArray[np.bool_]]


def picture(rng: np.random.Generator, defective: bool, side: int = 64, contrast: float = 3.0) -> Picture:
    """Smooth noise of about one logit, lifted where one to three rectangles are defective."""
    heat = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), 3) * 10 - 4
    mask = np.zeros((side, side), np.bool_)
    for _ in range(int(rng.integers(1, 4)) if defective else 0):
        y, x = rng.integers(0, side - 12, 2)
        height, width = rng.integers(3, 12, 2)
        mask[y : y + height, x : x + width] = True
    return heat + contrast * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2), mask


def tally(pictures: list[Picture]) -> PixelTally:
    counted = PixelTally()
    for heat, mask in pictures:
        counted.add(heat, mask)
    return counted


def slow_aupro(pictures: list[Picture], limit: float = 0.3) -> float:
    """As defined: sort all pixels, mean overlap over regions at every threshold, trapezoids up to the limit."""
    heats = np.concatenate([heat.ravel() for heat, _ in pictures])
    masks = np.concatenate([mask.ravel() for _, mask in pictures])
    regions, seen = [], 0
    for _, mask in pictures:
        count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        regions.append(np.where(labels > 0, labels + seen, 0).ravel())
        seen += count - 1
    region = np.concatenate(regions)
    order = np.argsort(-heats, kind="stable")
    fall_out = np.cumsum(~masks[order]) / (~masks).sum()
    overlap = np.zeros(len(order))
    for number in range(1, seen + 1):
        mine = region[order] == number
        overlap += np.cumsum(mine) / mine.sum() / seen
    x, y = np.concatenate([[0.0], fall_out]), np.concatenate([[0.0], overlap])
    inside = x <= limit
    at_limit = np.interp(limit, x, y)
    return float(np.trapezoid(np.append(y[inside], at_limit), np.append(x[inside], limit)) / limit)


@pytest.mark.parametrize("contrast", [0.5, 3.0, 12.0])
def test_figures_are_within_their_stated_distance_of_the_exact_ones(contrast: float) -> None:
    rng = np.random.default_rng(0)
    pictures = [picture(rng, number % 3 == 0, contrast=contrast) for number in range(30)]
    counted = tally(pictures)
    heats = np.concatenate([heat.ravel() for heat, _ in pictures])
    masks = np.concatenate([mask.ravel() for _, mask in pictures])
    assert counted.ap() == pytest.approx(average_precision_score(masks, heats), abs=1e-3)
    assert counted.aupro() == pytest.approx(slow_aupro(pictures), abs=1e-3)


def test_each_region_counts_alike() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[2:4, 2:4] = mask[10:30, 10:30] = True
    heat = np.full((40, 40), -5, np.float32)
    heat[10:30, 10:30] = 5
    counted = tally([(heat, mask)])
    assert counted.num_regions == 2
    # The large one is found at once, the small one only where everything is called: 1/2, plus the way to the limit.
    assert counted.aupro() == pytest.approx(0.5 + 0.5 * 0.3 / 2, abs=1e-9)


def test_a_perfect_map_and_one_without_information() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[5:8, 5:8] = True
    perfect = tally([(np.where(mask, 4, -4).astype(np.float32), mask)])
    assert perfect.ap() == pytest.approx(1)
    assert perfect.aupro() == pytest.approx(1)
    flat = tally([(np.zeros((20, 20), np.float32), mask)])
    assert flat.ap() == pytest.approx(mask.mean())
    assert flat.aupro() == pytest.approx(0.15)


def test_maps_beyond_the_range_fall_into_the_outer_bins() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[5:8, 5:8] = True
    assert tally([(np.where(mask, 1e6, -1e6).astype(np.float32), mask)]).ap() == 1


def test_undefined_figures_are_none() -> None:
    rng = np.random.default_rng(0)
    good = tally([picture(rng, False)])
    assert good.ap() is None
    assert good.aupro() is None
    everywhere = tally([(np.zeros((8, 8), np.float32), np.ones((8, 8), np.bool_))])
    assert everywhere.ap() == 1
    assert everywhere.aupro() is None
    assert tally([]).ap() is None
    assert {one.value for one in tally([]).estimates(rng, 10).values()} == {None}
    assert {one.value for one in good.estimates(rng, 10).values()} == {None}


def test_resamples_are_the_figures_of_the_images_drawn() -> None:
    rng = np.random.default_rng(1)
    pictures = [picture(rng, number % 2 == 0) for number in range(8)]
    found = tally(pictures).estimates(np.random.default_rng(5), 6)
    strata = np.array([number % 2 == 0 for number in range(8)], np.intp)
    for number, weights in enumerate(draw_weights(strata, 6, np.random.default_rng(5)).astype(int)):
        again = tally([one for one, times in zip(pictures, weights, strict=True) for _ in range(times)])
        assert found["pixel_ap"].resamples[number] == pytest.approx(again.ap(), abs=1e-5)
        assert found["aupro"].resamples[number] == pytest.approx(again.aupro(), abs=1e-5)


def test_a_mask_of_another_size_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="mask"):
        PixelTally().add(np.zeros((4, 4), np.float32), np.zeros((4, 5), np.bool_))
