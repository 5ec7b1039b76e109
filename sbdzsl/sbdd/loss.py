"""Losses of the detector: segmentation on map cells, decision on the image, and their balance over the training.

Shapes: `B` images, `H`, `W` network pixels, `h`, `w` map cells. After Bozic et al. 2021 (Computers in Industry 129),
section 3; `README.md` in this folder lists the departures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.config import DetectorSettings
from sbdzsl.sbdd.segdec import MAP_STRIDE

#: The cap never makes a defective cell weigh less than this, so that even a defect as large as the image is learned.
DEFECT_WEIGHT_FLOOR = 0.1

#: A defect nobody drew is looked for in this share of the map's cells: the highest ones.
WEAK_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class CellTargets:
    """What the map should say: `defect` [B, 1, h, w], the share of a cell that is defective, and `weight` alike."""

    defect: Tensor
    weight: Tensor


def distance_weights(mask: NDArray[np.bool_], power: float) -> NDArray[np.float32]:
    """How sure each pixel of a mask [H, W] is: (D / max D)^power inside, 0 outside; float32 [H, W] in [0, 1].

    D is the Euclidean distance to the nearest pixel outside, in network pixels: labels are coarse, so their borders
    count less (equation 4 of Bozic et al. 2021). The maximum is over the mask; an empty mask gives zeros.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    # A frame of background: a mask that fills the image has distances too.
    framed = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # The last bit of a distance depends on where in memory the mask lies, and a training with it. Its square is whole.
    squared = np.rint(np.square(distance))
    return np.where(mask, (squared / squared.max()) ** (power / 2), 0).astype(np.float32)


def cell_targets(mask: Tensor, sureness: Tensor, settings: DetectorSettings) -> CellTargets:
    """Bring masks to map cells.

    `mask` [B, 1, H, W] of 0 and 1, `sureness` the distance weights of it. A cell's target is the defective share of
    its pixels, its weight the mean of the pixels' weights: 1 outside, `positive_weight` times sureness inside. The
    defective cells of one image together weigh at most like `defect_share_cap` of its cells at `positive_weight`.
    """
    pad = (0, -mask.shape[-1] % MAP_STRIDE, 0, -mask.shape[-2] % MAP_STRIDE)
    planes = F.pad(torch.cat([mask, sureness * mask], dim=1), pad, mode="replicate")
    pooled = F.avg_pool2d(planes, MAP_STRIDE)
    defect, sure = pooled[:, :1], pooled[:, 1:]
    inside = settings.positive_weight * sure
    budget = settings.defect_share_cap * settings.positive_weight * defect[0].numel()
    shrink = (budget / inside.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)).clamp_max(1)
    inside = torch.where(shrink < 1, torch.maximum(inside * shrink, DEFECT_WEIGHT_FLOOR * defect), inside)
    return CellTargets(defect, (1 - defect) + inside)


def segmentation_loss(map_logits: Tensor, targets: CellTargets, known: Tensor, dice_weight: float) -> Tensor:
    """Weighted cross-entropy plus Dice on the map; a scalar.

    `map_logits` [B, 1, h, w]; `known` [B], 0 for a defective image without a mask: it says nothing about cells and
    contributes nothing (gamma of equation 2 of Bozic et al. 2021), while good images always teach an empty map.
    L = mean(w * BCE) + dice_weight * mean over images with a defect of (1 - (2 sum pt + 1) / (sum p + sum t + 1)).
    """
    entropy = F.binary_cross_entropy_with_logits(map_logits, targets.defect, reduction="none") * targets.weight
    entropy = (entropy.mean(dim=(1, 2, 3)) * known).sum() / known.sum().clamp_min(1)
    p, t = map_logits.sigmoid(), targets.defect
    overlap = (2 * (p * t).sum(dim=(1, 2, 3)) + 1) / (p.sum(dim=(1, 2, 3)) + t.sum(dim=(1, 2, 3)) + 1)
    drawn = known * (t.amax(dim=(1, 2, 3)) > 0)
    return entropy + dice_weight * ((1 - overlap) * drawn).sum() / drawn.sum().clamp_min(1)


def decision_loss(decision_logits: Tensor, defective: Tensor) -> Tensor:
    """Cross-entropy of the decision logits [B] against hard labels [B] of 0 and 1; a scalar.

    The published code takes the maximum of the shrunken mask as label, so that a small defect is hardly a defect.
    """
    return F.binary_cross_entropy_with_logits(decision_logits, defective)


def weak_map_loss(map_logits: Tensor, defective: Tensor, known: Tensor) -> Tensor:
    """Says of images whose defect nobody drew that it is somewhere; a scalar.

    -log sigmoid of the mean of the highest `WEAK_SHARE` of the map [B, 1, h, w] (one cell at least), over defective
    images [B] whose cells are not `known` [B]; 0 without such images. Multiple-instance learning by top-k pooling.
    """
    weak = defective * (1 - known)
    cells = map_logits.flatten(1)
    highest = cells.topk(max(1, round(WEAK_SHARE * cells.shape[1])), dim=1).values.mean(dim=1)
    return (F.softplus(-highest) * weak).sum() / weak.sum().clamp_min(1)


def balance(progress: float, schedule: Literal["gradual", "published", "constant"]) -> tuple[float, float]:
    """Weights of segmentation and decision loss at `progress` in 0..1: first the map, then the decision.

    `published`: 1 - progress and progress (equation 3 of Bozic et al. 2021). `gradual`: the map keeps half of its
    weight to the end, and the decision starts at 0.2, since its gradient hardly reaches the trunk. `constant`: 1 and 1.
    """
    if schedule == "published":
        return 1 - progress, progress
    return (1 - 0.5 * progress, 0.2 + 0.8 * progress) if schedule == "gradual" else (1.0, 1.0)
