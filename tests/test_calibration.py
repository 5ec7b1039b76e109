import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbdzsl import calibration
from sbdzsl.errors import DataError

NONE = np.array([])


@given(st.integers(1, 300), st.sampled_from([0.02, 0.05, 0.2]), st.integers(0, 2**32 - 1))
def test_flagging_above_the_threshold_is_the_p_value_below_the_rate(n: int, rate: float, seed: int) -> None:
    held_out = np.sort(np.random.default_rng(seed).integers(0, 20, n).astype(np.float64))
    threshold = calibration.conformal_threshold(held_out, rate)
    for score in np.arange(-1.0, 22.0):
        assert (score > threshold) == (calibration.conformal_p_value(held_out, score) <= rate + 1e-9)


def test_the_promised_rate_is_kept_on_new_images() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        threshold = calibration.conformal_threshold(rng.normal(size=100), 0.05)
        rates.append(float(np.mean(rng.normal(size=400) > threshold)))
    assert np.mean(rates) <= 0.052
    low, high = calibration.realised_rate_interval(100, 0.05)
    assert (low, high) == (pytest.approx(0.016, abs=2e-3), pytest.approx(0.099, abs=2e-3))
    # The interval speaks of the true rate; 400 images add their own noise to it.
    assert 0.85 <= np.mean([(low <= rate <= high) for rate in rates]) <= 1.0


def test_too_few_images_promise_what_they_can() -> None:
    chosen = calibration.choose_threshold("false-alarm-rate", np.arange(9.0), NONE, 0.02)
    assert chosen.value == 8.0
    assert chosen.promised_rate == pytest.approx(0.1)
    assert math.isinf(calibration.conformal_threshold(np.arange(9.0), 0.02))


def test_a_rate_that_the_images_support_is_spent_on_finding_defects() -> None:
    chosen = calibration.choose_threshold("false-alarm-rate", np.arange(99.0), np.array([50.0, 200.0]), 0.02)
    assert chosen.value == 97.0
    assert (chosen.promised_rate, chosen.num_good, chosen.num_defect) == (0.02, 99, 2)


def test_with_too_few_images_the_threshold_moves_into_the_gap_below_the_next_defect() -> None:
    chosen = calibration.choose_threshold("false-alarm-rate", np.arange(9.0), np.array([5.0, 20.0]), 0.02)
    assert chosen.value == pytest.approx((8 + 20) / 2)
    assert chosen.promised_rate == pytest.approx(0.1)


def test_the_named_policies_do_as_they_say() -> None:
    good, defect = np.array([0.0, 1.0, 4.0]), np.array([3.0, 6.0, 8.0])
    assert calibration.choose_threshold("zero-misses", good, defect, 0.02).value == 2.0
    best = calibration.choose_threshold("max-f1", good, defect, 0.02).value
    assert best == 2.0
    swallowed = calibration.choose_threshold("zero-misses", np.array([5.0]), np.array([5.0]), 0.02).value
    assert swallowed < 5.0


@pytest.mark.parametrize(("policy", "good"), [("max-f1", [1.0]), ("zero-misses", [1.0]), ("false-alarm-rate", [])])
def test_a_policy_without_its_data_says_what_it_needs(policy: str, good: list[float]) -> None:
    with pytest.raises(DataError, match="held-out") as caught:
        calibration.choose_threshold(policy, np.array(good), NONE, 0.02)  # type: ignore[arg-type]
    assert caught.value.code == "too-few-images"


def test_platt_probabilities_match_the_observed_shares() -> None:
    rng = np.random.default_rng(1)
    good, defect = rng.normal(-2, 2, 3000), rng.normal(2, 2, 1000)
    platt = calibration.fit_platt(good, defect)
    assert platt is not None
    scores, labels = np.concatenate([good, defect]), np.repeat([False, True], [3000, 1000])
    probabilities = np.array([platt.probability(score) for score in scores])
    for low in (0.1, 0.4, 0.7):
        rows = (probabilities >= low) & (probabilities < low + 0.2)
        assert labels[rows].mean() == pytest.approx(probabilities[rows].mean(), abs=0.06)


def test_platt_stays_finite_on_separable_scores_and_refuses_one_kind() -> None:
    platt = calibration.fit_platt(np.array([-30.0, -20.0]), np.array([20.0, 1000.0]))
    assert platt is not None
    assert 0 <= platt.probability(-1e6) < 0.5 < platt.probability(1e6) <= 1
    assert calibration.fit_platt(np.array([1.0]), NONE) is None


def test_scores_that_rank_the_wrong_way_give_no_probability() -> None:
    assert calibration.fit_platt(np.array([2.0, 3.0, 4.0]), np.array([0.0, 1.0])) is None
