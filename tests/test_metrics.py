import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from sbdzsl import metrics

scored = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=1, max_size=60)


@given(scored)
def test_average_precision_and_auroc_agree_with_the_oracle(rows: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in rows])
    scores = np.array([score for _, score in rows], dtype=np.float64)
    ap, area = metrics.average_precision(labels, scores), metrics.auroc(labels, scores)
    if not labels.any():
        assert ap is None
    else:
        assert ap == pytest.approx(average_precision_score(labels, scores))
    if labels.all() or not labels.any():
        assert area is None
    else:
        assert area == pytest.approx(roc_auc_score(labels, scores))


def test_undefined_figures_are_none() -> None:
    nothing = np.array([], dtype=bool)
    assert metrics.average_precision(nothing, np.array([])) is None
    assert metrics.auroc(nothing, np.array([])) is None
    assert metrics.confusion(np.array([False]), np.array([0.0]), 1.0).f1 is None
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
