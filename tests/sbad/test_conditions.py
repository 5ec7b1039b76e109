"""Changes of conditions: each does what its name says, draws stay in the envelope, the same seed gives the same."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sbdzsl.config import EnvelopeSettings
from sbdzsl.sbad.conditions import Conditions, changed_copies, draw_conditions

ENVELOPE = EnvelopeSettings()


def texture(height: int = 60, width: int = 80, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.2, 0.8, (height, width)).astype(np.float32)


def apply(conditions: Conditions, grey: NDArray[np.float32]) -> NDArray[np.float32]:
    return conditions.apply(grey, np.random.default_rng(1))


def test_conditions_as_they_were_change_nothing() -> None:
    np.testing.assert_array_equal(apply(Conditions(), texture()), texture())


def test_light_is_gamma_then_gain_then_offset_and_saturates() -> None:
    grey = texture()
    lit = apply(Conditions(gain=1.2, gamma=1.1, offset=0.05), grey)
    np.testing.assert_allclose(lit, np.clip(grey**1.1 * 1.2 + 0.05, 0, 1), atol=1e-6)
    assert apply(Conditions(gain=4.0), grey).max() == 1
    assert apply(Conditions(offset=-0.5), grey).min() == 0


def test_blur_and_noise_have_the_deviation_that_is_asked_for() -> None:
    step = np.zeros((40, 80), np.float32)
    step[:, 40:] = 1
    slope = np.diff(apply(Conditions(blur_px=2.0), step)[20])
    places = np.arange(79)
    mean = (slope * places).sum()
    assert np.sqrt((slope * (places - mean) ** 2).sum()) == pytest.approx(2.0, rel=0.05)
    flat = np.full((200, 200), 0.5, np.float32)
    assert apply(Conditions(noise=0.03), flat).std() == pytest.approx(0.03, rel=0.05)


def test_zoom_turn_and_flips_move_the_scene() -> None:
    grey = np.zeros((81, 81), np.float32)
    grey[40, 60] = 1  # 20 pixels right of the centre
    for conditions, place in (
        (Conditions(zoom=1.5), (40, 70)),
        (Conditions(turn_degrees=90), (20, 40)),
        (Conditions(flips=(True, False)), (40, 20)),
        (Conditions(zoom=1.5, flips=(True, True)), (40, 10)),
    ):
        moved = apply(conditions, grey)
        assert moved.shape == grey.shape
        assert np.unravel_index(moved.argmax(), moved.shape) == place


@pytest.mark.parametrize("extreme", [False, True])
def test_draws_stay_in_the_envelope(extreme: bool) -> None:
    generator = np.random.default_rng(0)
    drawn = [draw_conditions(ENVELOPE, generator, extreme=extreme) for _ in range(400)]
    slack = 1 + 1e-9
    for name in ("gain", "gamma", "zoom"):
        values = np.array([getattr(one, name) for one in drawn])
        limit = getattr(ENVELOPE, name)
        assert 1 / limit / slack <= values.min() < 1 < values.max() <= limit * slack
    for name in ("offset", "turn_degrees", "blur_px", "noise"):
        values = np.abs([getattr(one, name) for one in drawn])
        assert 0.9 * getattr(ENVELOPE, name) < values.max() <= getattr(ENVELOPE, name) * slack
    at_the_edge = np.mean([one.blur_px > 0.999 * ENVELOPE.blur_px for one in drawn])
    assert (0.25 < at_the_edge < 0.45) if extreme else at_the_edge < 0.02
    assert {one.flips for one in drawn} == {(a, b) for a in (False, True) for b in (False, True)}


def test_an_envelope_of_nothing_leaves_images_alone() -> None:
    nothing = EnvelopeSettings(gain=1, gamma=1, offset=0, blur_px=0, noise=0, zoom=1, turn_degrees=0, flips=False)
    (copy,) = changed_copies(texture(), nothing, 1, (0,), extreme=True)
    np.testing.assert_array_equal(copy, texture())
    assert draw_conditions(nothing, np.random.default_rng(0)) == replace(Conditions(), turn_degrees=0.0)


def test_the_same_seed_gives_the_same_copies() -> None:
    first, again, other = (
        list(changed_copies(texture(), ENVELOPE, 3, seed, extreme=True)) for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    assert all(a.tobytes() != b.tobytes() for a, b in zip(first, other, strict=True))
    assert all(copy.dtype == np.float32 and copy.shape == (60, 80) for copy in first)
