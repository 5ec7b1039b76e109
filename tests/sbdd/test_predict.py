from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from sbdzsl.config import DetectorSettings
from sbdzsl.errors import BundleError
from sbdzsl.sbdd.lite import SegDecLite
from sbdzsl.sbdd.predict import DefectMap, Detector, judge, shrink
from tests.sbdd.surfaces import surface
from tests.sbdd.test_lite import trained_looking

SETTINGS = DetectorSettings(width=0.25, scale=0.5)


def detector(map_threshold: float | None = 0.0) -> Detector:
    return Detector(SETTINGS, trained_looking().folded().channels_last(), map_threshold)


def map_of(logits: np.ndarray, source: tuple[int, int], network: tuple[int, int]) -> DefectMap:
    return DefectMap(0.0, logits.astype(np.float32), *source, *network)


@pytest.mark.parametrize("shape", [(128, 128), (101, 333), (1000, 30), (17, 16)])
def test_detect_keeps_the_source_frame_for_any_size(shape: tuple[int, int]) -> None:
    found = detector(-100.0).detect(surface(0, False, shape).grey)
    assert (found.source_height, found.source_width) == shape
    assert found.heat().shape == shape
    (region,) = found.regions(-100.0)
    assert (region.x, region.y, region.width, region.height) == (0, 0, shape[1], shape[0])
    assert region.area_px == shape[0] * shape[1]
    assert found.regions(1e6) == ()


@pytest.mark.parametrize("corner", ["top left", "top right", "bottom left", "bottom right"])
def test_defect_in_a_corner_is_reported_there(corner: str) -> None:
    # 333 x 501 at half size is 166 x 250 (bankers' rounding): 21 x 32 cells, the last ones cut.
    logits = np.full((21, 32), -5.0)
    row, column = (0 if "top" in corner else -1), (0 if "left" in corner else -1)
    logits[row, column] = 3.5
    (region,) = map_of(logits, (333, 501), (166, 250)).regions(0.0)
    assert region.score == 3.5
    assert (region.x == 0) if "left" in corner else (region.x + region.width == 501)
    assert (region.y == 0) if "top" in corner else (region.y + region.height == 333)
    assert 1 <= region.width <= 16
    assert 1 <= region.height <= 16
    assert region.area_px == region.width * region.height


def test_heat_peaks_where_the_region_is() -> None:
    logits = np.full((21, 32), -5.0)
    logits[7, 20] = 4.0
    found = map_of(logits, (333, 501), (166, 250))
    (region,) = found.regions(0.0)
    y, x = np.unravel_index(found.heat().argmax(), (333, 501))
    assert region.y <= y < region.y + region.height
    assert region.x <= x < region.x + region.width


def test_regions_are_sorted_and_touching_corners_are_one_place() -> None:
    logits = np.full((10, 10), -1.0)
    logits[0, 0] = 1.0
    logits[4, 4] = logits[5, 5] = 2.0
    logits[9, 0:3] = 3.0
    found = map_of(logits, (80, 80), (80, 80)).regions(0.0)
    assert [region.score for region in found] == [3.0, 2.0, 1.0]
    assert [region.area_px for region in found] == [3 * 64, 2 * 64, 64]
    assert (found[1].x, found[1].y, found[1].width, found[1].height) == (32, 32, 16, 16)


def test_region_of_a_tie_with_the_threshold_is_none() -> None:
    assert map_of(np.zeros((4, 4)), (32, 32), (32, 32)).regions(0.0) == ()


def test_ten_thousand_regions_take_no_loop() -> None:
    generator = np.random.default_rng(0)
    logits = np.full((4000, 4000), -5.0, np.float32)
    heights = generator.uniform(1, 9, (100, 100)).astype(np.float32)
    logits.reshape(100, 40, 100, 40)[:, :15, :, :15] = heights[:, None, :, None]
    started = time.process_time()
    found = map_of(logits, (32_000, 32_000), (32_000, 32_000)).regions(0.0)
    assert time.process_time() - started < 5
    assert [region.score for region in found] == sorted(heights.ravel().tolist(), reverse=True)[:100]
    assert all(region.area_px == (15 * 8) ** 2 for region in found)


def test_same_image_same_bits_whatever_ran_before() -> None:
    subject, image = detector(), surface(3, True, (130, 94)).grey
    first = subject.detect(image)
    for shape in [(64, 64), (200, 150), (130, 94)]:
        subject.detect(surface(8, False, shape).grey)
    again = subject.detect(image)
    assert again.score == first.score
    assert np.array_equal(again.logits, first.logits)


def test_the_score_is_the_sum_of_decision_and_map_peak() -> None:
    network = SegDecLite(0.25).eval()
    grey = np.random.default_rng(0).random((64, 96), dtype=np.float32)
    with torch.inference_mode():
        decision, logits = network(torch.from_numpy(grey)[None, None])
    found = judge(network, grey)
    assert found.score == pytest.approx(float(decision[0]) + float(logits.max()), abs=1e-4)
    assert found.logits.max() == pytest.approx(float(logits.max()), abs=1e-4)


@pytest.mark.parametrize("shape", [(512, 512), (1250, 500), (373, 249), (640, 1001)])
def test_number_of_threads_does_not_change_a_bit(shape: tuple[int, int]) -> None:
    network = trained_looking(width=1.0).folded().channels_last()
    subject = Detector(DetectorSettings(scale=0.5), network, 0.0)
    image, outcomes = surface(3, True, shape).grey, []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outcomes.append(subject.detect(image))
    finally:
        torch.set_num_threads(before)
    for other in outcomes[1:]:
        assert other.score == outcomes[0].score
        assert np.array_equal(other.logits, outcomes[0].logits)


def test_tensors_round_trip_to_identical_bits() -> None:
    subject, image = detector(1.25), surface(3, True).grey
    copy = Detector.from_tensors(SETTINGS, subject.tensors())
    assert copy.map_threshold == 1.25
    assert copy.detect(image).score == subject.detect(image).score
    assert np.array_equal(copy.detect(image).logits, subject.detect(image).logits)


def test_wrong_tensors_are_refused() -> None:
    tensors = detector().tensors()
    missing = {name: value for name, value in tensors.items() if name != "map_threshold"}
    reshaped = tensors | {"network.map.bias": torch.zeros(2)}
    for damaged in (
        missing,
        tensors | {"stranger": torch.zeros(1)},
        reshaped,
        tensors | {"map_threshold": torch.tensor([float("nan")])},
    ):
        with pytest.raises(BundleError) as caught:
            Detector.from_tensors(SETTINGS, damaged)
        assert caught.value.code == "damaged-bundle"
    with pytest.raises(BundleError, match="stem"):
        Detector.from_tensors(SETTINGS.model_copy(update={"width": 1.0}), tensors)


def test_unfitted_detector_cannot_pass_for_a_fitted_one() -> None:
    unfitted = detector(None)
    with pytest.raises(ValueError, match="not fitted"):
        _ = unfitted.map_threshold
    with pytest.raises(ValueError, match="not fitted"):
        unfitted.detect(surface(0, False).grey)
    with pytest.raises(ValueError, match="not fitted"):
        unfitted.tensors()
    with pytest.raises(ValueError, match="scale"):
        Detector(DetectorSettings(), trained_looking().folded(), 0.0)


def test_sixteen_bit_steps_reach_the_network() -> None:
    grey = surface(0, False).grey
    assert not np.array_equal(shrink(grey, 0.5), shrink(grey + np.float32(1 / 65535), 0.5))
    with pytest.raises(ValueError, match="uint8"):
        shrink((255 * grey).astype(np.uint8), 0.5)  # type: ignore[arg-type]
