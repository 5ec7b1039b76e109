from __future__ import annotations

import numpy as np
import torch

from sbdzsl.config import DetectorSettings
from sbdzsl.metrics import auroc
from sbdzsl.sbdd.augment import draw_crack
from sbdzsl.sbdd.network import build_network
from sbdzsl.sbdd.start import start_weights


def test_the_default_network_begins_with_learnt_weights_that_fit_it() -> None:
    weights = start_weights(DetectorSettings())
    assert weights is not None
    build_network(DetectorSettings()).load_state_dict(weights)
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert weights["stem.conv.weight"].dtype == torch.float32


def test_other_networks_begin_at_random() -> None:
    assert start_weights(DetectorSettings(width=0.37)) is None
    assert start_weights(DetectorSettings(network="reference")) is None


def test_the_weights_know_a_drawn_scratch_before_any_training() -> None:
    """Strokes on noise: the learnt weights rank them, random ones do not have to."""
    weights = start_weights(DetectorSettings())
    assert weights is not None
    network = build_network(DetectorSettings())
    network.load_state_dict(weights)
    folded, generator = network.folded(), np.random.default_rng(5)
    scores, labels = [], []
    for index in range(40):
        grey = generator.normal(0.5, 0.05, (128, 128)).clip(0, 1).astype(np.float32)
        image = draw_crack(grey, generator)[0] if index % 2 else grey
        _, map_logits = folded(torch.from_numpy(image)[None, None])
        scores.append(float(map_logits.max()))
        labels.append(bool(index % 2))
    area = auroc(np.array(labels), np.array(scores))
    assert area is not None
    assert area > 0.9
