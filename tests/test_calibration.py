import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbdzsl import calibration
from sbdzsl.config import ThresholdRule
from sbdzsl.errors import DataError
from sbdzsl.sbdd.fit import fit_detector
from tests.sbdd.surfaces import TINY, surfaces

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


def chosen(word: str, good: object, defect: object = NONE) -> calibration.Threshold:
    rule = ThresholdRule.parse(word)
    return calibration.choose_threshold(rule, np.array(good, dtype=np.float64), np.array(defect, dtype=np.float64))


def test_too_few_images_promise_what_they_can() -> None:
    found = chosen("false-alarm-rate:0.02", np.arange(9.0))
    assert found.value == 8.0
    assert found.promised_rate == pytest.approx(0.1)
    assert math.isinf(calibration.conformal_threshold(np.arange(9.0), 0.02))


def test_a_rate_that_the_images_support_is_spent_on_finding_defects() -> None:
    found = chosen("false-alarm-rate:0.02", np.arange(99.0), [50.0, 200.0])
    assert found.value == 97.0
    assert (found.promised_rate, found.num_good, found.num_defect) == (0.02, 99, 2)
    assert (found.num_false_alarms, found.num_misses) == (1, 1)


def test_with_too_few_images_the_threshold_moves_into_the_gap_below_the_next_defect() -> None:
    found = chosen("false-alarm-rate:0.02", np.arange(9.0), [5.0, 20.0])
    assert found.value == pytest.approx((8 + 20) / 2)
    assert found.promised_rate == pytest.approx(0.1)


def test_the_named_policies_do_as_they_say() -> None:
    good, defect = [0.0, 1.0, 4.0], [3.0, 6.0, 8.0]
    assert chosen("zero-misses", good, defect).value == 2.0
    assert chosen("max-f1", good, defect).value == 2.0
    assert chosen("fixed:3.5", good, defect).value == 3.5
    # A dear miss moves the threshold below the faintest defect, a dear false alarm above the loudest good image.
    assert chosen("cost:100@0.5", good, defect).value == 2.0
    assert chosen("cost:0.01@0.5", good, defect).value == 5.0
    # Where the loudest image is good and an alarm is dear, the least cost is never to alarm.
    assert chosen("cost:0.01@0.5", [9.0], defect).value == 9.0
    assert chosen("cost:1@0.5", good, defect).value == 2.0
    assert chosen("cost:1@0.2", good, defect).value == 5.0


held_out = st.tuples(
    st.lists(st.integers(-4, 4), min_size=1, max_size=25), st.lists(st.integers(-4, 4), min_size=1, max_size=25)
)


@given(held_out, st.floats(0.1, 100), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_no_threshold_costs_less_and_none_has_a_better_f1(
    scores: tuple[list[int], list[int]], price: float, share: float
) -> None:
    good, defect = (np.array(kind, dtype=np.float64) for kind in scores)

    def cost(value: float) -> float:
        return float(share * price * np.mean(defect <= value) + (1 - share) * np.mean(good > value))

    def f1(value: float) -> float:
        hits = int((defect > value).sum())
        return 2 * hits / (hits + int((good > value).sum()) + len(defect))

    cuts = np.arange(-4.5, 5.0)
    assert cost(chosen(f"cost:{price}@{share}", *scores).value) == pytest.approx(min(cost(cut) for cut in cuts))
    assert f1(chosen("max-f1", *scores).value) == pytest.approx(max(f1(cut) for cut in cuts))
    lossless = chosen("zero-misses", *scores)
    assert lossless.num_misses == 0
    assert lossless.num_false_alarms == min((good > cut).sum() for cut in cuts if (defect > cut).all())


RULES = ("false-alarm-rate:0.1", "max-f1", "zero-misses", "cost:20@0.1")


@given(held_out, st.sampled_from(RULES), st.integers(-3, 3), st.floats(-50, 50))
@settings(deadline=None)
def test_the_same_data_at_another_resolution_alarm_alike(
    scores: tuple[list[int], list[int]], word: str, exponent: int, offset: float
) -> None:
    """Another resolution shifts and stretches all scores: what alarms, and so the rate, stays."""
    good, defect = (np.array(kind, dtype=np.float64) for kind in scores)
    at_one = chosen(word, good, defect)
    scaled = [kind * 2.0**exponent + round(offset) for kind in (good, defect)]
    at_other = chosen(word, *scaled)
    for before, after in zip((good, defect), scaled, strict=True):
        assert ((before > at_one.value) == (after > at_other.value)).all()
    assert (at_one.false_alarm_range, at_one.miss_range) == (at_other.false_alarm_range, at_other.miss_range)
    # A curved scale keeps the order but not the middles of gaps: held-out images alarm alike all the same.
    curved = chosen(word, np.expm1(good), np.expm1(defect))
    assert (curved.num_false_alarms, curved.num_misses) == (at_one.num_false_alarms, at_one.num_misses)


@pytest.mark.parametrize("side", [64, 128])
def test_detectors_at_two_resolutions_keep_the_same_alarm_rate(side: int) -> None:
    """The drawn surface at two sizes: other networks, other scores, and the one promised rate on new good images."""
    tiny = TINY.model_copy(update={"epochs": 3})
    shape = (side, side)
    fitted = fit_detector(surfaces(0, 20, 8, shape), surfaces(1000, 60, 8, shape), tiny, seed=0)
    good, defect = fitted.val_scores[~fitted.val_labels], fitted.val_scores[fitted.val_labels]
    threshold = chosen("false-alarm-rate:0.1", good, defect)
    assert threshold.rate_interval is not None
    new = [fitted.detector.detect(one.grey).score for one in surfaces(5000, 200, 0, shape)]
    rate = float(np.mean(np.array(new) > threshold.value))
    low, high = threshold.rate_interval
    assert low - 0.02 <= rate <= high + 0.02
    assert threshold.num_false_alarms == 5  # the sixth of 60 is the threshold itself


@pytest.mark.parametrize("word", RULES)
@pytest.mark.parametrize(
    ("good", "defect"),
    [
        ([1.0], [1.0]),
        ([2.0] * 60, [2.0] * 5),
        ([0.0], [5.0]),
        ([5.0], [0.0]),
        (np.arange(200.0), [150.5]),
        ([0.0, 0.0, 1.0], [1.0, 1.0, 2.0]),
    ],
)
def test_ties_and_single_images_give_a_finite_threshold(word: str, good: object, defect: object) -> None:
    found = chosen(word, good, defect)
    assert math.isfinite(found.value)
    if word == "zero-misses":
        assert found.num_misses == 0
    if word.startswith("false-alarm-rate"):
        assert found.num_false_alarms <= 0.1 * found.num_good
    else:
        assert found.value_interval is not None
        assert found.value_interval[0] <= found.value_interval[1]


@pytest.mark.parametrize(
    ("word", "good", "defect"),
    [
        ("max-f1", [1.0], []),
        ("zero-misses", [1.0], []),
        ("cost:20@0.01", [1.0], []),
        ("max-f1", [], [1.0]),
        ("cost:20@0.01", [], [1.0]),
        ("false-alarm-rate:0.02", [], [1.0]),
    ],
)
def test_a_policy_without_its_data_says_what_it_needs(word: str, good: list[float], defect: list[float]) -> None:
    with pytest.raises(DataError, match="held-out") as caught:
        chosen(word, good, defect)
    assert caught.value.code == "too-few-images"


def test_ranges_are_exact_and_none_where_there_is_nothing_to_measure() -> None:
    found = chosen("fixed:0.5", [], [0.0, 1.0])
    assert found.false_alarm_range is None
    assert found.miss_range == (pytest.approx(0.0126, abs=1e-4), pytest.approx(0.9874, abs=1e-4))
    assert found.promised_rate is found.rate_interval is found.value_interval is None
    # The published 0 of 17 missed: the rate may still be 0.16 or 0.2 (rule of three at 95 % one-sided, two-sided here).
    assert calibration.proportion_range(0, 17) == (0.0, pytest.approx(0.1951, abs=1e-4))
    assert calibration.proportion_range(17, 17) == (pytest.approx(0.8049, abs=1e-4), 1.0)
    assert calibration.proportion_range(3, 50) == (pytest.approx(0.0125, abs=1e-4), pytest.approx(0.1655, abs=1e-4))


def test_the_interval_of_a_threshold_narrows_with_the_images() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for num in (20, 200, 2000):
        interval = chosen("max-f1", rng.normal(size=num), rng.normal(size=num) + 2).value_interval
        assert interval is not None
        widths.append(interval[1] - interval[0])
    assert widths[0] > widths[1] > widths[2] > 0


def test_the_digest_names_the_held_out_scores_and_not_their_order() -> None:
    one, two = chosen("max-f1", [1.0, 2.0], [3.0]), chosen("fixed:0", [2.0, 1.0], [3.0])
    assert one.data_digest == two.data_digest
    others = [chosen("fixed:0", [1.0, 2.0, 3.0]), chosen("fixed:0", [1.0, 2.5], [3.0]), chosen("fixed:0", [3.0], [2.0])]
    assert len({one.data_digest, *(other.data_digest for other in others)}) == 4
    expected = hashlib.sha256(np.array([1.0, 2.0], "<f8").tobytes() + b"|" + np.array([3.0], "<f8").tobytes())
    assert one.data_digest == expected.hexdigest()


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
