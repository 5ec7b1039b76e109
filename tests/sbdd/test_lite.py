from __future__ import annotations

import pytest
import torch

from sbdzsl.sbdd.lite import Flatten, SegDecLite, log_mean_exp
from sbdzsl.sbdd.segdec import scale_gradient


def trained_looking(width: float = 0.25, seed: int = 0) -> SegDecLite:
    """A network whose batch norms hold statistics other than the initial ones."""
    torch.manual_seed(seed)
    network = SegDecLite(width)
    network.train()
    for _ in range(3):
        network(torch.rand(4, 1, 64, 64))
    return network.eval()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 40), (17, 130), (16, 16), (33, 95)])
def test_any_size_gives_one_decision_and_a_map_at_stride_eight(height: int, width: int) -> None:
    decision, map_logits = trained_looking()(torch.rand(2, 1, height, width))
    assert decision.shape == (2,)
    assert map_logits.shape == (2, 1, -(-height // 8), -(-width // 8))


def test_folded_network_has_no_norm_and_says_the_same() -> None:
    network = trained_looking()
    folded = network.folded()
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    x = torch.rand(3, 1, 64, 96)
    for ours, theirs in zip(folded(x), network(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_width_one_stays_lite() -> None:
    assert sum(parameter.numel() for parameter in SegDecLite().parameters()) < 300_000


def trunk_gradients(factor: float) -> list[float]:
    """Size of the gradient each trunk parameter gets from the decision."""
    network = trained_looking().train()
    decision, _ = network(torch.rand(4, 1, 64, 64), decision_gradient=factor)
    decision.square().sum().backward()
    named = dict(network.named_parameters())
    assert named["decision.linear.weight"].grad is not None
    return [
        0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
        for name, parameter in named.items()
        if not name.startswith("decision.")
    ]


def test_gradient_stop_keeps_the_decision_out_of_the_trunk() -> None:
    assert sum(trunk_gradients(0.0)) == 0
    assert all(size > 0 for size in trunk_gradients(1.0))


def test_scaled_gradient_is_the_full_one_times_the_factor() -> None:
    assert sum(trunk_gradients(0.1)) == pytest.approx(0.1 * sum(trunk_gradients(1.0)), rel=1e-3)
    x = torch.rand(5)
    assert torch.equal(scale_gradient(x, 0.1), x)


def test_map_sees_the_whole_image() -> None:
    network = trained_looking()
    x = torch.rand(1, 1, 256, 256)
    changed = x.clone()
    changed[..., 200:, 200:] = 1
    assert not torch.equal(network(x)[1][..., 0, 0], network(changed)[1][..., 0, 0])


def test_flatten_takes_out_brightness_and_most_of_a_light_gradient() -> None:
    torch.manual_seed(0)
    x = 0.3 + 0.05 * torch.rand(1, 1, 128, 128)
    flatten, slope = Flatten(), torch.linspace(0, 0.2, 128)
    torch.testing.assert_close(flatten(x + 0.3), flatten(x), rtol=1e-3, atol=1e-3)
    edge = 24  # where the window is cut off by the border, part of the gradient stays
    inner = (flatten(x + slope) - flatten(x))[..., edge:-edge, edge:-edge]
    assert inner.abs().mean() < 0.3
    assert (slope.std() / x.std()) > 3
    assert flatten(torch.full((1, 1, 64, 64), 0.7)).abs().max() < 1e-3


def test_smooth_maximum_lies_between_mean_and_maximum() -> None:
    cells = torch.randn(3, 50) * 4
    soft = [log_mean_exp(cells, sharpness).squeeze(1) for sharpness in (1e-3, 1.0, 100.0)]
    torch.testing.assert_close(soft[0], cells.mean(1), rtol=0.02, atol=0.02)
    assert (soft[1] > cells.mean(1)).all()
    assert (soft[1] < cells.amax(1)).all()
    torch.testing.assert_close(soft[2], cells.amax(1), rtol=0, atol=0.05)
