"""Pictures of the class embeddings: that they show what they are given, also for the smallest cases."""

import cv2
import numpy as np
import pytest
import torch

from sbdzsl.sbad.ce_vae import LearnedEmbeddings
from sbdzsl.sbad.plots import embeddings_png, latent_png, principal_plane


def made_up(num_surfaces: int, num_attributes: int, seed: int = 0) -> LearnedEmbeddings:
    rng = np.random.default_rng(seed)
    real = rng.random((num_surfaces, num_attributes)).astype(np.float32)
    learned = real + 0.1 * rng.standard_normal(real.shape).astype(np.float32)
    labels = np.repeat(np.arange(num_surfaces), 8)
    means = learned[labels] + 0.05 * rng.standard_normal((len(labels), num_attributes)).astype(np.float32)
    return LearnedEmbeddings(*(torch.from_numpy(array) for array in (real, learned, means, labels)))


def decode(png: bytes) -> np.ndarray:  # type: ignore[type-arg]
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


@pytest.mark.parametrize(("num_surfaces", "num_attributes"), [(8, 29), (1, 1), (2, 1), (12, 3)])
def test_pictures_of_any_size(num_surfaces: int, num_attributes: int) -> None:
    learnt = made_up(num_surfaces, num_attributes)
    names = [f"surface {k}" for k in range(num_surfaces)]
    heat = embeddings_png(learnt, names, [f"attribute {k}" for k in range(num_attributes)])
    points = latent_png(learnt, names)
    for png in (heat, points):
        image = decode(png)
        assert image.min() < 100  # ink on white
        assert image.max() == 255
    other = made_up(num_surfaces, num_attributes, seed=1)
    assert latent_png(other, names) != points
    assert latent_png(learnt, names) == points


def test_the_plane_holds_the_largest_variance() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((400, 6)) * np.array([5, 1, 3, 0.1, 0.1, 0.1]) + 7
    centre, plane, shares = principal_plane(points)
    np.testing.assert_allclose(centre, points.mean(0))
    np.testing.assert_allclose(np.abs(plane[[0, 2], [0, 1]]), 1, atol=0.02)
    covariance = np.cov(points.T)
    np.testing.assert_allclose(shares, np.sort(np.linalg.eigvalsh(covariance))[::-1][:2] / np.trace(covariance))


def test_points_without_a_second_direction() -> None:
    assert principal_plane(np.arange(5.0)[:, None])[2].tolist() == [1, 0]
    assert principal_plane(np.zeros((3, 4)))[2].tolist() == [0, 0]
