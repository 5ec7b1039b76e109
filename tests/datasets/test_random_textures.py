from __future__ import annotations

import numpy as np
import pytest

from sbdzsl.datasets.random_textures import draw_surface, random_texture


@pytest.mark.parametrize("shape", [(64, 64), (40, 120), (17, 33)])
def test_surfaces_are_grey_images_of_the_size_asked_for(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        grey = draw_surface(shape, generator)
        assert grey.shape == shape
        assert grey.dtype == np.float32
        assert 0 <= grey.min() <= grey.max() <= 1


def test_same_generator_state_same_bytes_and_never_the_same_surface_twice() -> None:
    first, second = (
        [draw_surface((48, 48), generator) for _ in range(20)]
        for generator in (np.random.default_rng(1), np.random.default_rng(1))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({grey.tobytes() for grey in first}) == 20


def test_textures_have_mean_zero_and_deviation_one() -> None:
    generator = np.random.default_rng(2)
    for _ in range(30):
        texture = random_texture((96, 96), generator)
        assert abs(texture.mean()) < 0.1
        assert 0.7 < texture.std() < 1.05
        assert np.abs(texture).max() <= 4


def test_surfaces_differ_in_brightness_contrast_and_coarseness() -> None:
    generator = np.random.default_rng(3)
    drawn = [draw_surface((96, 96), generator) for _ in range(60)]
    assert np.std([grey.mean() for grey in drawn]) > 0.08
    deviations = [grey.std() for grey in drawn]
    assert np.quantile(deviations, 0.9) > 3 * np.quantile(deviations, 0.1)
    neighbours = [float(np.corrcoef(grey[:, :-1].ravel(), grey[:, 1:].ravel())[0, 1]) for grey in drawn]
    assert min(neighbours) < 0.6 < 0.95 < max(neighbours)
