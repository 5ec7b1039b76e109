from __future__ import annotations

import numpy as np
import pytest
import torch

from sbdzsl.config import DetectorSettings
from sbdzsl.sbdd.loss import (
    balance,
    cell_targets,
    decision_loss,
    distance_weights,
    segmentation_loss,
    weak_map_loss,
)

SETTINGS = DetectorSettings(positive_weight=3.0)


def mask_of(rows: slice, columns: slice, side: int = 64) -> np.ndarray:
    mask = np.zeros((side, side), np.bool_)
    mask[rows, columns] = True
    return mask


def targets_of(mask: np.ndarray, power: float = 1.0, **changed: float):
    sureness = torch.from_numpy(distance_weights(mask, power))[None, None]
    return cell_targets(torch.from_numpy(mask)[None, None].float(), sureness, SETTINGS.model_copy(update=changed))


def test_distance_weights_rise_from_the_border_to_one() -> None:
    weights = distance_weights(mask_of(slice(10, 21), slice(10, 21)), 2.0)
    assert weights.max() == 1
    assert weights[15, 15] == 1
    assert weights[10, 15] == pytest.approx((1 / 6) ** 2)
    assert weights[9, 15] == 0


def test_distance_weights_are_exact_so_that_one_mask_has_one_answer() -> None:
    """The transform's own rounding differs with the mask's place in memory; each bit of a training would too."""
    mask = np.random.default_rng(0).random((64, 64)) < 0.98
    mask[[0, -1]] = mask[:, [0, -1]] = False
    inside, outside = np.argwhere(mask), np.argwhere(~mask)
    squared = np.square(inside[:, None] - outside[None]).sum(axis=2).min(axis=1).astype(np.float32)
    assert len(set(squared.tolist())) > 20
    assert (distance_weights(mask, 2.0)[mask] == squared / squared.max()).all()


def test_distance_weights_of_nothing_and_of_everything_are_finite() -> None:
    assert distance_weights(np.zeros((8, 8), np.bool_), 1.0).sum() == 0
    everything = distance_weights(np.ones((8, 8), np.bool_), 1.0)
    assert everything.max() == 1
    assert np.isfinite(everything).all()


def test_cells_hold_the_defective_share_and_the_background_weighs_one() -> None:
    targets = targets_of(mask_of(slice(0, 8), slice(8, 12)))
    assert targets.defect[0, 0, 0, 1] == 0.5
    assert targets.defect.sum() == 0.5
    assert (targets.weight[targets.defect == 0] == 1).all()


def test_odd_sizes_are_completed_to_whole_cells() -> None:
    mask = np.zeros((19, 33), np.bool_)
    mask[16:, 32:] = True
    targets = targets_of(mask)
    assert targets.defect.shape == (1, 1, 3, 5)
    assert targets.defect[0, 0, 2, 4] == 1


def test_wide_defect_weighs_no_more_than_its_cap() -> None:
    small, wide = targets_of(mask_of(slice(0, 8), slice(0, 8))), targets_of(mask_of(slice(0, 48), slice(0, 48)))
    cells = wide.defect.numel()

    def defect_weight(targets) -> float:
        return float((targets.weight - (1 - targets.defect)).sum())

    cap = SETTINGS.defect_share_cap * 3 * cells
    assert defect_weight(small) < cap
    assert defect_weight(wide) <= max(cap, 0.1 * float(wide.defect.sum())) * 1.2
    uncapped = targets_of(mask_of(slice(0, 48), slice(0, 48)), defect_share_cap=1.0)
    assert defect_weight(uncapped) > 3 * defect_weight(wide)


def test_unmasked_defective_image_teaches_the_map_nothing() -> None:
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    nothing = cell_targets(torch.zeros(2, 1, 64, 64), torch.zeros(2, 1, 64, 64), SETTINGS)
    segmentation_loss(logits, nothing, torch.tensor([0.0, 1.0]), 0.2).backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() == 0
    assert logits.grad[1].abs().sum() > 0


def test_batch_without_any_known_mask_has_loss_zero() -> None:
    logits = torch.randn(2, 1, 8, 8)
    nothing = cell_targets(torch.zeros(2, 1, 64, 64), torch.zeros(2, 1, 64, 64), SETTINGS)
    assert segmentation_loss(logits, nothing, torch.zeros(2), 0.2) == 0


def test_right_map_costs_less_than_wrong_map() -> None:
    mask = mask_of(slice(16, 32), slice(16, 32))
    targets = targets_of(mask)
    right = torch.where(targets.defect > 0.5, 6.0, -6.0)
    known = torch.ones(1)
    assert segmentation_loss(right, targets, known, 0.2) < 0.1 < segmentation_loss(-right, targets, known, 0.2)


def test_decision_label_is_hard() -> None:
    logits = torch.tensor([2.0, -1.0])
    expected = -(torch.sigmoid(logits[0]).log() + (1 - torch.sigmoid(logits[1])).log()) / 2
    torch.testing.assert_close(decision_loss(logits, torch.tensor([1.0, 0.0])), expected)


def test_balance_goes_from_map_to_decision() -> None:
    maps, decisions = zip(*(balance(p, "gradual") for p in np.linspace(0, 1, 11)), strict=True)
    assert all(np.diff(maps) < 0)
    assert all(np.diff(decisions) > 0)
    assert min(maps + decisions) > 0
    assert balance(0.25, "published") == (0.75, 0.25)
    assert balance(0.25, "constant") == (1, 1)


def test_distance_power_zero_weighs_all_of_a_defect_alike() -> None:
    mask = mask_of(slice(8, 40), slice(8, 40))
    flat, peaked = (targets_of(mask, power, defect_share_cap=1.0).weight for power in (0.0, 2.0))
    assert (flat[0, 0, 1:5, 1:5] == 3).all()
    assert peaked[0, 0, 1, 1] < 0.5 < 1.5 < peaked[0, 0, 2, 2]


def test_a_defect_that_nobody_drew_pulls_up_the_highest_cells_of_its_own_map() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 1, 20, 20, requires_grad=True)
    weak_map_loss(logits, torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])).backward()
    assert logits.grad is not None
    pulled = logits.grad[0].flatten().nonzero().flatten()
    assert set(pulled.tolist()) == set(logits[0].flatten().topk(2).indices.tolist())
    assert (logits.grad[0] <= 0).all()
    assert (logits.grad[1:] == 0).all()
    assert weak_map_loss(logits, torch.zeros(3), torch.ones(3)) == 0
