"""A router that learns and forgets a surface, or a new lot: what moves, what keeps its bits, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load, save

from sbdzsl.errors import SbdzslError
from sbdzsl.sbad import enrolment
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbad.enrolment import enrol, extend, retire
from sbdzsl.verdict import Route
from tests.sbad.test_fit import SETTINGS, changed, draw, fit
from tests.sbad.test_gate import another_lot


@pytest.fixture(scope="module", params=["whitened-nn", "paper"])
def router(request: pytest.FixtureRequest) -> SurfaceRouter:
    return fit(settings=SETTINGS.model_copy(update={"score": request.param}))


@pytest.fixture(scope="module")
def whitened() -> SurfaceRouter:
    return fit()


def images_around() -> NDArray[np.float32]:
    """Images of known surfaces, of the new one `d`, and of two that stay unseen."""
    return np.concatenate([draw(surface, 40, 7) for surface in "abcdef"])


def without_names(route: Route) -> Route:
    return replace(route, surface_margin=None, nearest_surfaces=(), nearest_scores=())


@pytest.mark.parametrize("count", [2, 5, 20])
def test_only_an_image_nearest_to_the_new_surface_moves_and_its_score_only_falls(
    router: SurfaceRouter, count: int
) -> None:
    enrolled = enrol(router, "d", draw("d", count, 1))
    moved = 0
    for row in images_around():
        before, after = router.route(row), enrolled.route(row)
        assert after.unseen_threshold == before.unseen_threshold
        assert after.class_embedding == before.class_embedding
        assert after.attributes == before.attributes
        if after.surface == "d":
            moved += 1
            assert after.unseen_score <= before.unseen_score
        else:
            assert without_names(after) == without_names(before)
    assert moved >= 40


@pytest.mark.parametrize("count", [5, 20])
def test_the_new_surface_is_recognised_and_strangers_stay_unseen(whitened: SurfaceRouter, count: int) -> None:
    enrolled = enrol(whitened, "d", draw("d", count, 1))
    found = [enrolled.route(row) for row in draw("d", 60, 7)]
    assert np.mean([route.surface == "d" and not route.is_unseen for route in found]) > 0.9
    assert all(enrolled.route(row).is_unseen for row in draw("e", 60, 7))
    assert all(enrolled.route(row).surface == "a" for row in draw("a", 60, 7))


def test_retiring_what_was_enrolled_gives_the_parents_verdicts_to_the_bit(router: SurfaceRouter) -> None:
    again = retire(enrol(router, "d", draw("d", 20, 1)), "d")
    assert again.surfaces == router.surfaces
    for row in images_around():
        assert again.route(row) == router.route(row)
    assert save(again.tensors()) == save(router.tensors())


def test_retiring_from_the_middle_leaves_the_others_distances_to_the_bit(router: SurfaceRouter) -> None:
    retired = retire(router, "b")
    assert retired.surfaces == ("a", "c")
    gates = [r.gate if r.settings.score == "whitened-nn" else r.reader for r in (router, retired)]
    for row in images_around():
        before, after = (gate.distances(row) for gate in gates)
        assert after.tolist() == before[[0, 2]].tolist()
    assert retired.calibrated == router.calibrated


def test_an_enrolled_router_is_stored_and_loaded_to_the_same_bits(router: SurfaceRouter) -> None:
    enrolled = enrol(router, "d", draw("d", 5, 1))
    loaded = SurfaceRouter.from_tensors(enrolled.settings, enrolled.meta(), load(save(enrolled.tensors())))
    for row in images_around()[::20]:
        assert loaded.route(row) == enrolled.route(row)


def test_the_class_embedding_is_the_mean_reading_or_the_row_that_is_given(whitened: SurfaceRouter) -> None:
    features = draw("d", 5, 1)
    mean = np.mean([whitened.reader.read(row) for row in features], axis=0)
    enrolled = enrol(whitened, "d", features)
    np.testing.assert_allclose(enrolled.reader.class_embeddings[-1], mean, rtol=1e-6)
    given = enrol(whitened, "d", features, class_embedding=(1, 0.5, 0))
    assert given.reader.class_embeddings[-1].tolist() == [1, 0.5, 0]
    assert given.reader.class_embeddings[:-1].tobytes() == whitened.reader.class_embeddings.tobytes()


def test_few_images_borrow_the_spread_of_the_others(whitened: SurfaceRouter) -> None:
    """A surface ten times as tight as the others: two images say little of that, sixty say nearly all."""
    tight = (draw("d", 1, 1) + 0.1 * (draw("d", 60, 2) - draw("d", 1, 3))).astype(np.float32)
    few, many = (enrol(whitened, "d", tight[:count]).gate.scales[-1] for count in (2, 60))
    usual = whitened.gate.scales.mean()
    assert few > 0.3 * usual
    assert many < 0.3 * usual


def test_groups_widen_the_new_surfaces_scale(whitened: SurfaceRouter) -> None:
    lots = np.repeat(np.arange(5), 4)
    shift = np.random.default_rng(0).standard_normal((5, 40)) * 3
    features = (draw("d", 20, 1) * 0.05 + shift[lots]).astype(np.float32)
    alone, grouped = (
        enrol(whitened, "d", features, groups).gate.scales[-1] for groups in (None, [str(lot) for lot in lots])
    )
    assert grouped > 1.5 * alone


def test_both_promises_learn_and_forget_a_surface() -> None:
    both = fit(copies=True).promising("envelope")
    images = draw("d", 20, 1)
    enrolled = enrol(both, "d", images, copies=changed(images, 1), even=changed(images, 1)[:, 0])
    moved = changed(draw("d", 40, 7), 7)[:, 0]
    assert np.mean([(route := enrolled.route(row)).surface == "d" and not route.is_unseen for row in moved]) > 0.8
    assert save(retire(enrolled, "d").tensors()) == save(both.tensors())
    with pytest.raises(ValueError, match="expected changed copies"):
        enrol(both, "d", images)


def test_a_new_lot_is_accepted_and_only_images_nearest_to_its_surface_move(whitened: SurfaceRouter) -> None:
    extended = extend(whitened, "b", another_lot(10, 1))
    for row in images_around():
        before, after = whitened.route(row), extended.route(row)
        assert after.class_embedding == before.class_embedding
        assert after.unseen_threshold == before.unseen_threshold
        if "b" not in (before.surface, after.surface):
            assert without_names(after) == without_names(before)
    found = [[one.route(row) for row in another_lot(40, 7)] for one in (whitened, extended)]
    before, after = (np.mean([r.surface == "b" and not r.is_unseen for r in routes]) for routes in found)
    assert before < 0.1
    assert after > 0.8


def test_what_would_become_of_a_new_lot_is_told_beforehand(whitened: SurfaceRouter) -> None:
    lot = another_lot(10, 1)
    new, known = (enrolment.look_at_lot(whitened, "b", features) for features in (lot, draw("b", 10, 7)))
    assert (new.num_accepted, new.num_nearest, new.num_images, new.is_strange) == (0, 9, 10, True)
    assert known.num_accepted >= 8
    assert not known.is_strange
    assert known.strangeness < 1
    scores = [whitened.route(row).unseen_score for row in lot]
    assert new.strangeness == pytest.approx(np.median(scores) / whitened.threshold())
    left_out = enrolment.leave_out(whitened, lot, ["x"] * 10, extended="b")
    assert len(left_out.images) == 10
    assert left_out.num_recognised >= 7
    assert enrolment.leave_out(whitened, lot[:1], ["x"], extended="b").images == ()
    with pytest.raises(
        SbdzslError, match=r"surface 'a': half or more of 5 images are accepted as 'b' already"
    ) as caught:
        enrolment.look_at_lot(whitened, "a", draw("b", 5, 7))
    assert caught.value.code == "surface-claimed"
    nearer_to_b = enrolment.look_at_lot(whitened, "a", lot)
    assert (nearer_to_b.num_nearest, nearer_to_b.is_strange) == (0, True)


def test_a_new_lot_under_both_promises() -> None:
    both, lot = fit(copies=True).promising("envelope"), another_lot(10, 1)
    extended = extend(both, "b", lot, changed(lot, 1))
    moved = changed(another_lot(40, 7), 7)[:, 0]
    assert np.mean([(r := extended.route(row)).surface == "b" and not r.is_unseen for row in moved]) > 0.8
    with pytest.raises(ValueError, match="expected changed copies"):
        extend(both, "b", lot)


def names(count: int) -> list[str]:
    return [str(i) for i in range(count)]


@pytest.mark.parametrize("count", [5, 20, 60])
def test_a_known_surface_is_refused_under_another_name(whitened: SurfaceRouter, count: int) -> None:
    claim = enrolment.largest_claim(whitened, draw("b", count, 7), names(count))
    assert claim.surface == "b"
    assert claim.num_expected == pytest.approx(count * 35 / (35 + count - 1))
    with pytest.raises(SbdzslError, match=rf"{claim.num_accepted} of {count} images are accepted as 'b'") as caught:
        enrolment.require_unclaimed(claim, "new")
    assert caught.value.code == "surface-claimed"
    assert f"{claim.num_claimed} ({claim.num_claimed / count:.0%})" in caught.value.message


def test_claims_are_those_of_a_plain_computation(whitened: SurfaceRouter) -> None:
    features = np.concatenate([draw("b", 12, 7), draw("d", 8, 7)])
    space = np.stack([whitened.gate.project(row) for row in features])
    bank = np.stack([whitened.gate.project(row) for row in (*draw("b", 20, 1), *draw("b", 15, 2))])
    expected = []
    for i, row in enumerate(features):
        route = whitened.route(row)
        nearest = min(np.linalg.norm(space[j] - space[i]) for j in range(20) if j != i)
        closer = min(np.linalg.norm(other - space[i]) for other in bank) < nearest
        expected.append((route.surface == "b" and not route.is_unseen, closer))
    claim = enrolment.largest_claim(whitened, features, names(20))
    assert claim.num_accepted == sum(accepted for accepted, _ in expected)
    assert claim.num_claimed == sum(accepted and closer for accepted, closer in expected)
    assert 10 <= claim.num_accepted <= 12, "those of b, but for false alarms"


def test_a_new_surface_is_not_refused(whitened: SurfaceRouter) -> None:
    claim = enrolment.largest_claim(whitened, draw("d", 20, 7), names(20))
    assert (claim.num_accepted, claim.num_claimed) == (0, 0)
    enrolment.require_unclaimed(claim, "new")


def test_a_surface_that_was_taken_for_a_known_one_may_be_enrolled(whitened: SurfaceRouter) -> None:
    """Its images are accepted as `b`, but lie apart from those of `b`: to enrol them is the cure."""
    apart = (draw("b", 1, 1) + 0.2 * (draw("b", 20, 5) - draw("b", 1, 1))).astype(np.float32)
    claim = enrolment.largest_claim(whitened, apart, names(20))
    assert (claim.surface, claim.num_accepted) == ("b", 20)
    enrolment.require_unclaimed(claim, "new")


def test_images_of_one_lot_do_not_vouch_for_each_other(whitened: SurfaceRouter) -> None:
    """Twins of images of `b`: as lots of two they are claimed, taken for independent they are not."""
    pairs = np.repeat(draw("b", 10, 7), 2, axis=0) + np.float32(1e-3) * np.arange(20, dtype=np.float32)[:, None]
    assert not enrolment.largest_claim(whitened, pairs, names(20)).is_refused
    assert enrolment.largest_claim(whitened, pairs, [str(i // 2) for i in range(20)]).is_refused


def test_images_left_out_one_by_one_are_recognised_by_the_others(whitened: SurfaceRouter) -> None:
    features = draw("d", 30, 1)
    each = [str(i) for i in range(30)]
    left_out = enrolment.leave_out(whitened, features, each)
    assert len(left_out.images) == enrolment.MAX_LEFT_OUT
    assert left_out.num_recognised > 0.8 * len(left_out.images)
    scores = left_out.unseen_scores["plain"]
    assert len(scores) == len(left_out.images)
    # An image that was enrolled is at no distance from itself; one that was left out is at some.
    assert min(scores) > 0
    known = enrol(whitened, "d", features).route(features[left_out.images[0]])
    assert known.unseen_score < scores[0]
    # Two lots that do not look alike: neither vouches for the other, though each image has a twin beside it.
    two = np.concatenate([draw("d", 5, 1), draw("e", 5, 1)])
    apart = enrolment.leave_out(whitened, two, ["x"] * 5 + ["y"] * 5)
    assert (apart.num_recognised, len(apart.images)) == (0, 10)
    assert enrolment.leave_out(whitened, features[:2], each[:2]).images == ()


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda router: enrol(router, "a", draw("d", 5, 1)), "surface-exists"),
        (lambda router: enrol(router, "d", draw("d", 1, 1)), "too-few-images"),
        (lambda router: extend(router, "d", draw("d", 5, 1)), "bad-config"),
        (
            lambda _: extend(fit(settings=SETTINGS.model_copy(update={"score": "paper"})), "a", draw("a", 5, 9)),
            "bad-config",
        ),
        (lambda router: enrolment.look_at_lot(router, "d", draw("d", 5, 1)), "bad-config"),
        (lambda router: retire(router, "d"), "bad-config"),
        (lambda router: retire(retire(retire(router, "a"), "b"), "c"), "bad-config"),
    ],
)
def test_what_is_refused(whitened: SurfaceRouter, act: object, code: str) -> None:
    with pytest.raises(SbdzslError) as caught:
        act(whitened)  # type: ignore[operator]
    assert caught.value.code == code
