import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from sbdzsl import metrics

scored = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=1, max_size=60)


def split(rows: list[tuple[bool, int]]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return np.array([label for label, _ in rows]), np.array([score for _, score in rows], dtype=np.float64)


@given(scored)
def test_average_precision_and_auroc_agree_with_the_oracle(rows: list[tuple[bool, int]]) -> None:
    labels, scores = split(rows)
    ap, area = metrics.average_precision(labels, scores), metrics.auroc(labels, scores)
    trapezoid = metrics.average_precision_trapezoid(labels, scores)
    if not labels.any():
        assert ap is None
        assert trapezoid is None
    else:
        assert ap == pytest.approx(average_precision_score(labels, scores))
        precision, recall, _ = precision_recall_curve(labels, scores)
        assert trapezoid == pytest.approx(auc(recall, precision))
    if labels.all() or not labels.any():
        assert area is None
    else:
        assert area == pytest.approx(roc_auc_score(labels, scores))


@given(scored)
def test_the_best_f1_is_the_best_of_all_thresholds(rows: list[tuple[bool, int]]) -> None:
    labels, scores = split(rows)
    best = metrics.best_f1(labels, scores)
    if not labels.any():
        assert best is None
        return
    assert best is not None
    every = [float(f1_score(labels, scores > cut)) for cut in np.arange(-5.5, 5.0)]
    assert best.f1 == pytest.approx(max(every))
    assert best.confusion.f1 == pytest.approx(best.f1)
    assert best.confusion == metrics.confusion(labels, scores, best.threshold)


@given(scored)
def test_false_alarms_at_full_recall_are_counted_at_the_lowest_positive(rows: list[tuple[bool, int]]) -> None:
    labels, scores = split(rows)
    found = metrics.false_alarms_at_full_recall(labels, scores)
    if labels.any():
        assert found == sum(scores[~labels] >= scores[labels].min())
    else:
        assert found is None


@given(scored, st.floats(0.1, 5), st.floats(-3, 3))
def test_ranking_figures_ignore_a_rising_scale(rows: list[tuple[bool, int]], slope: float, offset: float) -> None:
    labels, scores = split(rows)
    for figure in (metrics.average_precision, metrics.average_precision_trapezoid, metrics.auroc):
        assert figure(labels, scores) == figure(labels, slope * scores + offset)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=80))
def test_the_calibration_error_agrees_with_its_definition(rows: list[tuple[bool, float]]) -> None:
    labels = np.array([label for label, _ in rows])
    probabilities = np.array([probability for _, probability in rows])
    expected = 0.0
    for bin_ in range(10):
        inside = [(label, p) for label, p in zip(labels, probabilities, strict=True) if min(int(p * 10), 9) == bin_]
        if inside:
            gap = np.mean([label for label, _ in inside]) - np.mean([p for _, p in inside])
            expected += len(inside) / len(rows) * abs(gap)
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(expected)


def test_undefined_figures_are_none() -> None:
    nothing, no_scores = np.array([], dtype=bool), np.array([])
    for figure in (
        metrics.average_precision,
        metrics.average_precision_trapezoid,
        metrics.auroc,
        metrics.best_f1,
        metrics.false_alarms_at_full_recall,
        metrics.expected_calibration_error,
    ):
        assert figure(nothing, no_scores) is None  # type: ignore[operator]
    assert metrics.confusion(np.array([False]), np.array([0.0]), 1.0).f1 is None
    assert metrics.confusion(np.array([False]), np.array([2.0]), 1.0).f1 is None
    assert metrics.harmonic_mean(None, 1.0) is None


def test_a_nan_score_is_a_mistake_and_not_a_rank() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc(np.array([True, False]), np.array([np.nan, 0.0]))


def test_a_score_at_the_threshold_is_no_alarm() -> None:
    counts = metrics.confusion(np.array([True, False, True]), np.array([1.0, 1.0, 2.0]), 1.0)
    assert (counts.true_positives, counts.false_positives, counts.false_negatives) == (1, 0, 1)
    assert counts.f1 == pytest.approx(2 / 3)


def test_zero_shot_figures_are_means_over_surfaces() -> None:
    figures = metrics.zero_shot_figures(
        surfaces=["a", "a", "a", "a", "b", "x", "y", "y"],
        named=["a", "a", "b", "a", "b", "a", "b", "b"],
        flagged=np.array([False, False, False, True, False, True, True, False]),
        seen=["a", "b"],
    )
    assert figures.per_surface == {"a": 0.5, "b": 1.0, "x": 1.0, "y": 0.5}
    assert figures.s == pytest.approx(0.75)
    assert figures.u == pytest.approx(0.75)
    assert figures.h == pytest.approx(0.75)
    assert figures.false_alarms == pytest.approx(0.125)
    assert figures.naming == pytest.approx(0.875)


def test_zero_shot_figures_without_unseen_surfaces_have_no_h() -> None:
    figures = metrics.zero_shot_figures(["a"], ["a"], np.array([False]), ["a"])
    assert (figures.s, figures.u, figures.h) == (1.0, None, None)
