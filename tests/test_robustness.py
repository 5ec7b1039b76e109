import numpy as np
import pytest
from numpy.typing import NDArray

from sbdzsl.robustness import robustness

Grey = NDArray[np.float32]
NAMES = {"none": 1, "brightness": 4, "contrast": 2, "blur": 3, "noise": 3, "shift": 3}


def images(num: int) -> list[tuple[Grey, bool]]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(num):
        grey = rng.normal(0.4, 0.02, (32, 32)).astype(np.float32)
        if number % 2:
            grey[10:12, 10:12] = 0.8
        found.append((grey, number % 2 == 1))
    return found


def test_each_change_has_a_row_and_the_first_is_none() -> None:
    rows = robustness(lambda grey: float(grey.max()), images(8), 0.6)
    assert {name: sum(row.change == name for row in rows) for name in NAMES} == NAMES
    assert sum(NAMES.values()) == len(rows)
    assert (rows[0].change, rows[0].ap, rows[0].fp, rows[0].fn) == ("none", 1.0, 0, 0)
    assert {(row.num_good, row.num_defect) for row in rows} == {(4, 4)}


def test_a_detector_of_brightness_fails_under_light_and_blur_but_not_under_shift() -> None:
    rows = {(row.change, row.amount): row for row in robustness(lambda grey: float(grey.max()), images(20), 0.6)}
    assert rows["brightness", 0.8].fn == 0
    assert rows["blur", 2.0].fn == 10
    assert rows["blur", 2.0].ap == 1.0
    for pixels in (1, 2, 3):
        assert (rows["shift", pixels].fp, rows["shift", pixels].fn) == (0, 0)
    dim = {(row.change, row.amount): row for row in robustness(lambda grey: float(grey.max()), images(20), 0.7)}
    assert dim["brightness", 0.8].fn == 10


def test_a_shift_moves_the_scene_and_keeps_its_size() -> None:
    seen: list[Grey] = []
    grey = np.zeros((20, 30), np.float32)
    grey[5, 7] = 1
    robustness(lambda changed: seen.append(changed) or 0.0, [(grey, True)], 0.5)  # type: ignore[func-returns-value]
    assert {changed.shape for changed in seen} == {(20, 30)}
    for pixels, changed in zip((1, 2, 3), seen[-3:], strict=True):
        assert np.argwhere(changed == 1).tolist()[-1] == [5 + pixels, 7 + pixels]
    assert all(changed.min() >= 0 and changed.max() <= 1 for changed in seen)
    assert all(changed.dtype == np.float32 for changed in seen)


def test_noise_follows_from_the_seed_alone() -> None:
    first, second, other = (
        robustness(lambda grey: float(grey.std()), images(4), 0.05, seed=seed) for seed in (1, 1, 2)
    )
    assert first == second
    noisy = [row for row in first if row.change == "noise"]
    assert len(noisy) == 3
    scores: list[float] = []
    robustness(lambda grey: scores.append(float(grey.mean())) or 0.0, images(1), 0.5, seed=1)  # type: ignore[func-returns-value]
    again: list[float] = []
    robustness(lambda grey: again.append(float(grey.mean())) or 0.0, images(1), 0.5, seed=2)  # type: ignore[func-returns-value]
    assert scores[10:13] != again[10:13]
    assert scores[:10] == again[:10]
    assert other is not None


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_alone_has_errors_but_no_ranking(kind: bool) -> None:
    only = [one for one in images(8) if one[1] == kind]
    row = robustness(lambda grey: float(grey.max()), only, 0.6)[0]
    assert row.auroc is None
    assert row.ap == (1.0 if kind else None)
    assert (row.fp, row.fn) == (0, 0)
