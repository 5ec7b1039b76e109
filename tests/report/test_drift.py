"""Drift: known shifts are found and named, none is invented, too few is said, and the index is what the books say."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from sbdzsl.report.drift import FALSE_ALARMS, MEASURES, compare, measure_drift, smallest_seen, stability_index
from sbdzsl.report.figures import sample_rows
from tests.verdicts import SURFACES, draw_references, draw_verdicts

COLUMNS = ("verdict", "defect_threshold", *MEASURES)


def _rows(num: int = 4000, **changes: pl.Expr) -> pl.DataFrame:
    rows = pl.from_arrow(draw_verdicts(num, seed=11)).lazy().with_columns(**changes)
    return sample_rows(rows, COLUMNS).table


def _on(surface: str, name: str, changed: pl.Expr) -> pl.Expr:
    return pl.when(pl.col("surface") == surface).then(changed).otherwise(pl.col(name))


def test_no_drift_where_there_is_none() -> None:
    found = measure_drift(_rows(), draw_references())
    assert [one.surface for one in found] == sorted(SURFACES)
    for surface in found:
        assert [one.measure for one in surface.measures] == list(MEASURES)
        assert all(one.moved is False for one in surface.measures)
        assert surface.warning is None


@pytest.mark.parametrize(
    ("measure", "change", "words"),
    [
        ("brightness", lambda value: value * 1.15, ("brighter", "lamp", "--promise envelope")),
        ("brightness", lambda value: value / 1.15, ("darker",)),
        ("sharpness", lambda value: value / 2, ("less sharp", "focus")),
        ("unseen_score", lambda value: value * 1.5, ("stranger", "sbdzsl groups")),
        ("defect_score", lambda value: value - 4, ("lower", "threshold")),
    ],
)
def test_what_moved_is_named_with_what_to_do(measure: str, change: Any, words: tuple[str, ...]) -> None:
    rows = _rows(**{measure: _on("leather", measure, change(pl.col(measure)))})
    found = {one.surface: one for one in measure_drift(rows, draw_references())}
    assert [one.measure for one in found["leather"].moved] == [measure]
    warning = found["leather"].warning
    assert warning is not None
    for word in ("leather", "median", *words):
        assert word in warning
    assert not any(found[surface].moved for surface in SURFACES if surface != "leather")


def test_defects_alone_are_no_drift() -> None:
    """Half of all images defective: a matter of the defect rate; the good ones score as they did."""
    rows = pl.from_arrow(draw_verdicts(4000, seed=2, shares=(0.5, 0.5, 0, 0))).lazy()
    found = measure_drift(sample_rows(rows, COLUMNS).table, draw_references())
    assert not any(one.moved for surface in found for one in surface.measures if one.measure == "defect_score")


def test_too_few_is_no_answer() -> None:
    few = measure_drift(_rows(60), draw_references(18))
    for surface in few:
        for one in surface.measures:
            assert (one.moved, one.psi, one.ks, one.p_value) == (None, None, None, None)
            assert one.smallest_seen is not None
            assert one.smallest_seen > 0.5
    nothing = measure_drift(_rows(60), {"gravel": draw_references()["leather"], "leather": {}})
    for surface in nothing:
        assert all((one.moved, one.smallest_seen) == (None, None) for one in surface.measures)


def test_a_change_that_leaves_nothing_in_common_is_seen_with_few_images() -> None:
    references = draw_references(14)
    found = {
        one.surface: one
        for one in measure_drift(_rows(brightness=_on("carpet", "brightness", pl.lit(0.3))), references)
    }
    assert [(one.measure, one.moved) for one in found["carpet"].moved] == [("brightness", True)]
    assert {one.moved for one in found["carpet"].measures} == {True, None}
    assert {one.moved for one in found["leather"].measures} == {None}


def test_the_number_of_images_that_is_asked_for_sees_the_shift_it_is_said_to_see() -> None:
    rng, seen = np.random.default_rng(0), 0
    distance = smallest_seen(100, 100, 8)
    shift = 2 * stats.norm.ppf((1 + distance) / 2)  # two normal distributions so far apart have that distance
    for _ in range(400):
        found = stats.ks_2samp(rng.normal(size=100), rng.normal(shift, size=100), method="asymp")
        seen += found.pvalue < FALSE_ALARMS / 8
    assert seen / 400 >= 0.78  # 0.8, less two standard deviations of 400 draws


def test_the_noise_of_the_index_is_its_95_percent_point() -> None:
    rng = np.random.default_rng(1)
    for num_reference, num_images in ((60, 300), (300, 5000)):
        above = []
        for _ in range(600):
            index, noise = stability_index(rng.normal(size=num_reference), rng.normal(size=num_images))
            above.append(index > noise)
        assert 0.02 < np.mean(above) < 0.09


def test_the_index_is_the_sum_over_bins() -> None:
    reference, found = np.arange(100.0), np.concatenate([np.arange(50.0), np.arange(50.0)])
    index, _ = stability_index(reference, found)
    expected, actual = np.full(10, 10.5) / 105, np.array([20.5] * 5 + [0.5] * 5) / 105
    assert index == pytest.approx(((actual - expected) * np.log(actual / expected)).sum())


def test_comparisons_are_corrected_together() -> None:
    rng = np.random.default_rng(5)
    pairs = [("brightness", rng.normal(size=200), rng.normal(0.45, 1, size=200)) for _ in range(12)]
    alone, together = compare(pairs[:1])[0], compare(pairs)
    raw = [stats.ks_2samp(reference, found, method="asymp").pvalue for _, reference, found in pairs]
    assert alone.p_value == pytest.approx(raw[0])
    # Holm: the smallest p-value times their number, and never smaller than one before it.
    assert min(one.p_value for one in together) == pytest.approx(min(1, 12 * min(raw)))
    order = np.argsort(raw)
    corrected = np.array([one.p_value for one in together])[order]
    assert (np.diff(corrected) >= 0).all()
    assert all(one.smallest_seen > alone.smallest_seen for one in together)


def test_no_warning_without_a_change_that_matters() -> None:
    """A million images see any difference; a warning takes one of a size to act on."""
    rng = np.random.default_rng(3)
    (one,) = compare([("brightness", rng.normal(size=500), rng.normal(0.25, 1, size=200_000))])
    assert one.p_value is not None
    assert one.psi is not None
    assert one.p_value < FALSE_ALARMS
    assert one.psi < 0.25
    assert one.moved is False
