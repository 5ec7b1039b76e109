"""Training images made into the tensors of one step: defects drawn, masks widened and weighted, planes augmented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.config import DetectorSettings
from sbdzsl.sbdd.augment import DefectDrawer, augment
from sbdzsl.sbdd.loss import CellTargets, cell_targets, distance_weights
from sbdzsl.sbdd.team import Team


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training image in network pixels; `mask` as it was labelled, None where nobody drew it."""

    image_id: str
    grey: NDArray[np.float32]
    defective: bool
    mask: NDArray[np.bool_] | None


class Assembler:
    """Makes batches of the images of one training, by chance from its `generator`; in a team, each makes its rows."""

    def __init__(
        self,
        images: Sequence[Prepared],
        settings: DetectorSettings,
        generator: np.random.Generator,
        device: torch.device,
        team: Team,
    ) -> None:
        self._settings = settings
        self._generator = generator
        self._device = device
        self._team = team
        self._drawer = DefectDrawer([(i.grey, i.mask) for i in images if i.mask is not None])

    def assemble(self, images: Sequence[Prepared]) -> tuple[Tensor, CellTargets, Tensor, Tensor]:
        """Grey [b, 1, H, W] of this worker's rows; of all B rows the targets, labels [B], and who knows its cells [B].

        Smaller images are mirrored up to the largest, mask and all, so that no pixel is other than surface.
        """
        height = max(image.grey.shape[0] for image in images)
        width = max(image.grey.shape[1] for image in images)
        team, count = self._team, len(images)
        rows = team.rows(count)
        stack, defective, known = [], [], []
        for image, generator in zip(images[rows], self._generators(count)[rows], strict=True):
            grey, mask = image.grey, image.mask
            if not image.defective and generator.random() < self._settings.drawn_defects:
                grey, mask = self._drawer.draw(grey, generator)
            defective.append(image.defective or mask is not None)
            known.append(not image.defective or mask is not None)
            mask = np.zeros(grey.shape, np.bool_) if mask is None else dilate(mask, self._settings.dilation_px)
            planes = np.dstack([grey, mask, distance_weights(mask, self._settings.distance_power)]).astype(np.float32)
            planes = augment(planes, generator) if self._settings.augmentation else planes
            bottom, right = height - grey.shape[0], width - grey.shape[1]
            stack.append(cv2.copyMakeBorder(planes, 0, bottom, 0, right, cv2.BORDER_REFLECT))
        batch = torch.from_numpy(np.stack(stack))
        if self._device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self._device, torch.float32, non_blocking=True).permute(0, 3, 1, 2)
        labels = torch.tensor([defective, known], dtype=torch.float32, device=self._device)
        mine = cell_targets((batch[:, 1:2] > 0.5).float(), batch[:, 2:], self._settings)
        targets = CellTargets(team.whole(mine.defect, count), team.whole(mine.weight, count))
        return batch[:, :1], targets, team.whole(labels[0], count), team.whole(labels[1], count)

    def _generators(self, count: int) -> list[np.random.Generator]:
        """Where the chance of each of `count` images comes from: alone, one stream goes from image to image.

        In a team each image has a stream of its own, so that nobody draws for the others, and a batch is the same for
        any number of workers but one.
        """
        if self._team.size == 1:
            return [self._generator] * count
        return [np.random.default_rng(seed) for seed in self._generator.integers(2**63, size=count)]


def dilate(mask: NDArray[np.bool_], size_px: int) -> NDArray[np.bool_]:
    """A mask [H, W] widened by a disc of diameter `size_px`; it stays a mask of True and False."""
    if size_px == 1:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size_px, size_px))
    return cv2.dilate(mask.view(np.uint8), disc).astype(np.bool_)
