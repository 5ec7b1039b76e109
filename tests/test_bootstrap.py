import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sbdzsl import bootstrap, metrics

Data = tuple[NDArray[np.bool_], NDArray[np.float64]]


def drawn(num: int, seed: int = 0, shift: float = 1.5) -> Data:
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 4 == 0
    return labels, rng.normal(size=num) + shift * labels


def estimates(data: Data, seed: int = 0, resamples: int = 200) -> dict[str, bootstrap.Estimate]:
    labels, scores = data
    probabilities = 1 / (1 + np.exp(-scores))
    return bootstrap.bootstrap(
        labels, scores, scores > 0.5, np.random.default_rng(seed), probabilities, resamples=resamples
    )


def test_each_resample_is_the_figure_of_the_images_drawn() -> None:
    """The slow definition: repeat the images as often as they were drawn, and take the figure of that."""
    labels, scores = drawn(40)
    scores = np.round(scores, 1)
    found = estimates((labels, scores), seed=7, resamples=20)
    weights = bootstrap.draw_weights(labels.astype(np.intp), 20, np.random.default_rng(7)).astype(int)
    for number, weight in enumerate(weights):
        assert weight[labels].sum() == labels.sum()
        again, values = np.repeat(labels, weight), np.repeat(scores, weight)
        called = metrics.confusion(again, values, 0.5)
        best = metrics.best_f1(again, values)
        assert best is not None
        slow = {
            "ap": metrics.average_precision(again, values),
            "ap_trapezoid": metrics.average_precision_trapezoid(again, values),
            "auroc": metrics.auroc(again, values),
            "false_alarms_at_full_recall": metrics.false_alarms_at_full_recall(again, values),
            "best_f1": best.f1,
            "f1": called.f1,
            "fp": called.false_positives,
            "fn": called.false_negatives,
            "calibration_error": metrics.expected_calibration_error(again, 1 / (1 + np.exp(-values))),
        }
        assert {name: found[name].resamples[number] for name in found} == pytest.approx(slow)


def test_the_value_is_the_figure_of_the_images_themselves() -> None:
    labels, scores = drawn(60)
    found = estimates((labels, scores))
    assert found["ap"].value == pytest.approx(metrics.average_precision(labels, scores))
    assert found["f1"].value == pytest.approx(metrics.confusion(labels, scores, 0.5).f1)


def test_intervals_cover_the_true_figure() -> None:
    labels, scores = drawn(40_000, seed=99)
    truth = metrics.auroc(labels, scores)
    assert truth is not None
    covered = 0
    for seed in range(100):
        interval = estimates(drawn(120, seed))["auroc"].interval()
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 85 <= covered <= 100


def test_more_images_give_narrower_intervals() -> None:
    widths = []
    for num in (40, 160, 640):
        interval = estimates(drawn(num))["ap"].interval()
        assert interval is not None
        widths.append(interval[1] - interval[0])
    assert widths[0] > widths[1] > widths[2] > 0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_same_seed_gives_the_same_interval(seed: int) -> None:
    first, second = (estimates(drawn(30), seed, resamples=50)["ap"].interval() for _ in range(2))
    assert first == second


def test_blocks_do_not_change_the_number_of_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_BLOCK_NUMBERS", 40 * 7)
    assert len(estimates(drawn(40), resamples=50)["ap"].resamples) == 50


def test_strata_keep_their_numbers() -> None:
    strata = np.array([0, 0, 0, 1, 1, 2])
    weights = bootstrap.draw_weights(strata, 100, np.random.default_rng(0))
    for stratum in range(3):
        assert (weights[:, strata == stratum].sum(axis=1) == (strata == stratum).sum()).all()
    assert len(np.unique(weights, axis=0)) > 10


def test_figures_that_need_the_other_kind_are_none() -> None:
    scores = np.arange(5.0)
    good_only = bootstrap.bootstrap(np.zeros(5, bool), scores, scores > 3, np.random.default_rng(0), resamples=10)
    assert {name for name, one in good_only.items() if one.value is not None} == {"fp"}
    assert good_only["fp"].value == 1
    assert good_only["ap"].interval() is None
    defect_only = bootstrap.bootstrap(np.ones(5, bool), scores, scores > 3, np.random.default_rng(0), resamples=10)
    assert defect_only["auroc"].value is None
    assert defect_only["ap"].value == 1
    nothing = bootstrap.bootstrap(np.zeros(0, bool), np.zeros(0), np.zeros(0, bool), np.random.default_rng(0))
    assert {one.value for one in nothing.values()} == {None}
    assert set(nothing) == set(good_only) == set(defect_only)


def test_a_mean_over_surfaces_leaves_out_what_is_undefined() -> None:
    one, two = (estimates(drawn(40, seed))["ap"] for seed in (1, 2))
    mean = bootstrap.Estimate.mean([one, bootstrap.UNDEFINED, two])
    assert one.value is not None
    assert two.value is not None
    assert mean.value == pytest.approx((one.value + two.value) / 2)
    interval, alone = mean.interval(), one.interval()
    assert interval is not None
    assert alone is not None
    assert interval[1] - interval[0] < alone[1] - alone[0]
    assert bootstrap.Estimate.mean([]).value is None


def test_a_thousand_resamples_of_two_thousand_images_take_about_a_second() -> None:
    data = drawn(2000)
    started = time.process_time()
    estimates(data, resamples=1000)
    assert time.process_time() - started < 3
