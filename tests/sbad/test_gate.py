"""The gate on made-up features: its distances, whose spread counts, groups and copies, one surface or lot more."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.gate import SurfaceGate, fit_gate
from tests.sbad.test_fit import DIMS, changed, draw

SETTINGS = RouterSettings(own_prior=3)
LABELS = np.repeat([0, 1, 2], 20)


def features(count: int = 20, seed: int = 1) -> NDArray[np.float32]:
    return np.concatenate([draw(surface, count, seed) for surface in "abc"])


def test_distances_are_those_of_a_plain_computation() -> None:
    x = features().astype(np.float64)
    gate = fit_gate(features(), LABELS, SETTINGS).gate
    z = (x - x.mean(0)) / x.std(0)
    within = sum(np.cov(z[k == LABELS].T, bias=True) * 20 for k in range(3)) / (60 - 3)
    # All 40 dimensions carry variance, so PCA only turns the space, and any root of the covariance will do.
    pooled = 0.9 * within + 0.1 * np.trace(within) / DIMS * np.eye(DIMS)

    def apart(query: NDArray[np.float64], own: NDArray[np.float64]) -> float:
        deviations = own - own.mean(0)
        covariance = (deviations.T @ deviations + 3 * pooled) / (len(own) + 3)
        return float(np.sqrt(np.einsum("nd,de,ne->n", own - query, np.linalg.inv(covariance), own - query)).min())

    query = draw("a", 1, 5)[0]
    expected = [apart((query - x.mean(0)) / x.std(0), z[k == LABELS]) for k in range(3)]
    raw = gate.distances(query) ** (1 / gate.exponents) * gate.scales
    np.testing.assert_allclose(raw, expected, rtol=1e-4)


def test_scale_and_exponent_come_from_images_that_a_gate_did_not_learn() -> None:
    fitted = fit_gate(features(), LABELS, SETTINGS)
    gate = fitted.gate
    new = {k: np.log([gate.distances(row)[k] for row in draw("abc"[k], 200, 9)]) for k in range(3)}
    for logs in new.values():
        assert abs(logs.mean()) < 0.1
        assert 0.5 < logs.std() / gate.spread < 2
    assert abs(np.log(fitted.plain).mean()) < 0.1
    np.testing.assert_array_equal(fitted.plain, fitted.promised)


def test_an_image_is_judged_without_its_group() -> None:
    """Each image twice: a gate that learnt the twin finds it at no distance."""
    twice, labels = np.repeat(features(), 2, axis=0), np.repeat(LABELS, 2)
    pairs = [f"part{k // 2}" for k in range(len(labels))]
    assert fit_gate(twice, labels, SETTINGS, pairs).plain.min() > 0.3
    independent = fit_gate(twice, labels, SETTINGS).plain
    assert np.median(independent) < 1e-3 * independent.max(), "all but the few whose twin shares their fold"


def test_copies_drawn_evenly_are_judged_beside_the_images() -> None:
    fitted = fit_gate(features(), LABELS, SETTINGS, copies=changed(features(), 2), even=features() + np.float32(1))
    assert np.median(fitted.promised) > 1.1 * np.median(fitted.plain)


def test_a_surface_is_measured_by_its_own_spread() -> None:
    """One varies along other directions than the other: a step that is usual for one takes an image far from it."""
    centre = draw("b", 400, 2).mean(0)

    def other(seed: int) -> NDArray[np.float32]:
        return (np.roll(draw("b", 40, seed) - centre, 10, axis=1) + centre).astype(np.float32)

    both, labels = np.concatenate([draw("a", 40, 1), other(1)]), np.repeat([0, 1], 40)
    step = 4 * (np.arange(DIMS) < 10).astype(np.float32)

    def contrast(prior: float) -> float:
        gate = fit_gate(both, labels, SETTINGS.model_copy(update={"own_prior": prior})).gate
        near, far = (np.mean([gate.distances(row)[1] for row in rows]) for rows in (other(3), other(3) + step))
        return float(far / near)

    assert contrast(3) > 1.5 * contrast(1e6)


def test_groups_widen_the_scale_to_the_distance_between_lots() -> None:
    lots = np.repeat(np.arange(5), 4)
    shift = np.random.default_rng(0).standard_normal((5, DIMS)) * 3
    images = (draw("a", 20, 1) * 0.05 + shift[lots]).astype(np.float32)
    labels = np.zeros(20, dtype=np.int64)
    alone = fit_gate(images, labels, SETTINGS).gate.scales[0]
    grouped = fit_gate(images, labels, SETTINGS, [str(lot) for lot in lots]).gate.scales[0]
    assert grouped > 2 * alone
    # One lot in all says nothing about lots: images are taken for independent.
    assert fit_gate(images, labels, SETTINGS, ["one"] * 20).gate.scales[0] == alone


def test_surface_of_one_lot_borrows_the_usual_scale() -> None:
    images, labels = np.concatenate([draw("a", 20, 1), draw("b", 20, 1)]), np.repeat([0, 1], 20)
    groups = [f"a{index % 5}" for index in range(20)] + ["b"] * 20
    gate = fit_gate(images, labels, SETTINGS, groups).gate
    assert gate.scales[0] == pytest.approx(gate.scales[1])
    assert gate.exponents[1] == 1


def test_copies_make_a_change_of_conditions_count_less() -> None:
    moved = changed(features(20, 5), 5)[:, 0]
    plain = fit_gate(features(), LABELS, SETTINGS).gate
    envelope = fit_gate(features(), LABELS, SETTINGS, copies=changed(features(), 1)).gate
    far, near = (
        np.mean([gate.distances(row)[k] for row, k in zip(moved, LABELS, strict=True)]) for gate in (plain, envelope)
    )
    assert near < 0.7 * far


def test_images_of_a_surface_are_projected_images() -> None:
    gate = fit_gate(features(), LABELS, SETTINGS).gate
    expected = np.stack([gate.project(row) for row in features()[20:40]])
    np.testing.assert_allclose(gate.images_of(1), expected, atol=1e-3)


def test_a_surface_more_leaves_the_others_to_the_bit_and_goes_again() -> None:
    gate = fit_gate(features(), LABELS, SETTINGS).gate
    more = gate.with_surface(draw("d", 12, 1), SETTINGS)
    query = draw("b", 1, 8)[0]
    assert more.distances(query)[:3].tobytes() == gate.distances(query).tobytes()
    assert more.distances(draw("d", 1, 3)[0]).argmin() == 3
    less = more.without_surface(3)
    assert all(np.array_equal(getattr(less, name), getattr(gate, name)) for name in type(gate).__slots__)
    near = gate.with_surface(draw("d", 12, 1), SETTINGS, typical=0.5).distances(draw("d", 1, 3)[0])
    assert near[3] == pytest.approx(0.5 * more.distances(draw("d", 1, 3)[0])[3], rel=1e-5)
    assert np.array_equal(more.without_surface(0).distances(query)[0:2], gate.distances(query)[1:])


@pytest.mark.parametrize("with_copies", [False, True])
def test_a_new_lot_joins_its_surface_and_leaves_the_others_to_the_bit(with_copies: bool) -> None:
    x, lot = features(), another_lot(12, 4)
    copies = (changed(x, 1), changed(lot, 2)) if with_copies else (None, None)
    gate = fit_gate(x, LABELS, SETTINGS, copies=copies[0]).gate
    more = gate.with_images(1, lot, SETTINGS, copies[1])
    for query in (*draw("a", 5, 8), *draw("d", 5, 8)):
        assert more.distances(query)[[0, 2]].tobytes() == gate.distances(query)[[0, 2]].tobytes()
    before, after = (np.median([one.distances(row)[1] for row in another_lot(40, 9)]) for one in (gate, more))
    assert before > 3
    assert after < 1.3
    strange = [one.distances(row).min() for one in (gate, more) for row in draw("d", 40, 8)]
    assert np.median(strange[40:]) > 0.7 * np.median(strange[:40])
    # The order of a bank with copies: more images may join again, and the last come out as they went in.
    again = more.with_images(1, lot[:2], SETTINGS, None if copies[1] is None else copies[1][:2])
    np.testing.assert_allclose(again._learnt(1, 2 if with_copies else 0).plain[-2], gate.project(lot[0]), atol=1e-3)


def test_a_new_lot_leaves_the_old_images_as_far_apart_as_they_were() -> None:
    gate = fit_gate(features(), LABELS, SETTINGS).gate
    more = gate.with_images(1, another_lot(12, 4), SETTINGS)
    old = gate.images_of(1)

    def usual(one: SurfaceGate) -> float:
        points = old @ one.own[1]
        apart = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(20, np.inf))
        return float(np.log(apart.min(axis=1) / one.scales[1]).mean())

    assert usual(more) == pytest.approx(usual(gate), abs=1e-3)
    assert more.scales[1] != gate.scales[1]


def another_lot(count: int, seed: int) -> NDArray[np.float32]:
    """Images of `b` that all differ from the others of it in what hardly varies among those."""
    return (draw("b", count, seed) + 6.0 * ((np.arange(DIMS) >= 12) & (np.arange(DIMS) < 18))).astype(np.float32)
