from __future__ import annotations

import pytest
import torch

from sbdzsl.sbdd.fit import fit_detector
from sbdzsl.sbdd.predict import Detector
from sbdzsl.sbdd.reference import FeatureNorm, SegDecReference
from tests.sbdd.surfaces import TINY, surfaces


def test_width_one_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = SegDecReference()
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_637_212


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 40), (16, 16), (33, 95)])
def test_any_size_gives_one_decision_and_a_map_at_stride_eight(height: int, width: int) -> None:
    decision, map_logits = SegDecReference(0.05)(torch.rand(2, 1, height, width))
    assert decision.shape == (2,)
    assert map_logits.shape == (2, 1, -(-height // 8), -(-width // 8))


def test_an_images_mean_map_logit_is_zero_whatever_it_shows() -> None:
    _, map_logits = SegDecReference(0.05)(torch.rand(3, 1, 64, 96))
    assert map_logits.mean(dim=(1, 2, 3)).abs().max() < 1e-5
    assert map_logits.std() > 0.01


def test_the_norm_divides_by_the_root_of_the_deviation() -> None:
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64) * 4 + 7
    found = FeatureNorm(3, bias=True).double()(x)
    expected = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), correction=0, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(found, expected)


def test_a_constant_image_gives_finite_gradients() -> None:
    network = SegDecReference(0.05)
    decision, map_logits = network(torch.zeros(1, 1, 64, 64))
    (decision.sum() + map_logits.square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_stopped_gradient_keeps_the_decision_out_of_the_trunk() -> None:
    for factor in (0.0, 1.0):
        network = SegDecReference(0.05)
        decision, _ = network(torch.rand(1, 1, 64, 64), decision_gradient=factor)
        decision.sum().backward()
        assert (network.map.weight.grad is None) == (factor == 0)


def test_it_trains_and_is_stored_like_any_other() -> None:
    settings = TINY.model_copy(update={"network": "reference", "width": 0.1, "epochs": 2})
    detector = fit_detector(surfaces(0, 8, 4), surfaces(100, 4, 2), settings, seed=0).detector
    again = Detector.from_tensors(detector.settings, detector.tensors())
    grey = surfaces(200, 0, 1)[0].grey
    assert again.detect(grey).score == detector.detect(grey).score
