"""Training of one surface's detector, in plain PyTorch: images in, `Detector` out.

Whatever labels there are is used: masks, defective images without a mask, or good images alone, into which defects are
drawn. Same images, settings, seed and number of threads: the same weights, as long as the time limit does not bite.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.config import DetectorSettings
from sbdzsl.errors import DataError, TrainingError
from sbdzsl.metrics import average_precision
from sbdzsl.sbdd.augment import DefectDrawer, augment
from sbdzsl.sbdd.loss import balance, cell_targets, decision_loss, distance_weights, segmentation_loss
from sbdzsl.sbdd.network import NETWORKS, build_network
from sbdzsl.sbdd.predict import DefectMap, Detector, judge, network_size, ready, shrink
from sbdzsl.sbdd.sampling import BalancedBatches
from sbdzsl.sbdd.segdec import SegDec

#: An epoch is every positive once with as many negatives, yet at least so many images.
MIN_EPOCH_IMAGES = 96

#: Images are halved, twice at most, until the middle one has no more network pixels than this.
MAX_NETWORK_PIXELS = 180_000

#: What the decision's gradient is multiplied by on its way into the trunk, if there is a mask or drawing to learn from.
DECISION_GRADIENT = 0.1

#: The published weights of a run are a running mean over about this many steps.
AVERAGED_STEPS = 50

#: Share of the steps in which the learning rate rises, and what it starts from, as a share of its peak.
WARM_UP, START_RATE = 0.25, 0.04

MAX_GRADIENT_NORM = 5.0

#: Validation runs about this often in a training.
NUM_VALIDATIONS = 8

#: Share of held-out good images whose map may exceed the map threshold somewhere.
MAP_ALARM_RATE = 0.05

#: How far the map threshold moves from the loud good maps towards the defective ones.
MAP_MARGIN = 0.25

#: The first steps fill caches and choose kernels: they say little about the time of the others.
WARM_STEPS = 4


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """One labelled image: `grey` float32 [H, W] in [0, 1]; `mask` bool [H, W], True at the defect.

    All in source pixels. A defective image whose mask is None or empty is one whose defect nobody drew.
    """

    image_id: str
    grey: NDArray[np.float32]
    defective: bool
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands after an epoch; mean losses of it, `val_ap` None where it was not or cannot be measured.

    `epochs` is how many are planned by now: fewer than the settings say where the time limit bites.
    """

    epoch: int
    epochs: int
    segmentation_loss: float
    decision_loss: float
    val_ap: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class FittedDetector:
    """A detector, how its training went, and its scores (logits) on the validation images, in their order."""

    detector: Detector
    history: tuple[Progress, ...]
    val_scores: NDArray[np.float64]
    val_labels: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A training image in network pixels; `mask` as it was labelled, None where nobody drew it."""

    image_id: str
    grey: NDArray[np.float32]
    defective: bool
    mask: NDArray[np.bool_] | None


def fit_detector(
    train: Sequence[TrainingImage],
    val: Sequence[TrainingImage],
    settings: DetectorSettings,
    seed: int,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
) -> FittedDetector:
    """Train a detector on `train`; thresholds and scores come from `val`, which it never learns from.

    `train` needs at least two good images, `val` one; defective images are optional in both. Images are kept at
    network scale, so a sequence that reads them when asked holds little. `progress` is called after each epoch. Raises
    `DataError` where the images cannot be trained on, `TrainingError` "not-finite" that names the images of the batch.
    """
    if settings.scale is None:
        settings = settings.model_copy(update={"scale": choose_scale([image.grey.shape for image in train])})
    assert settings.scale is not None
    prepared = [_prepare(image, settings.scale) for image in train]
    held_out = [_prepare(image, settings.scale) for image in val]
    _check_labels(prepared, held_out, settings)
    training = _Training(prepared, settings, seed, device)
    history = training.run(held_out, progress)
    network = training.averaged()
    maps = [judge(network, image.grey, 1.0) for image in held_out]
    labels = np.array([image.defective for image in held_out], np.bool_)
    good, defective = ([found for found, is_bad in zip(maps, labels, strict=True) if is_bad == kind] for kind in (0, 1))
    threshold = choose_map_threshold(good, defective)
    scores = np.array([found.score for found in maps], np.float64)
    return FittedDetector(Detector(settings, network, threshold), tuple(history), scores, labels)


def choose_scale(shapes: Sequence[tuple[int, ...]]) -> float:
    """1, 1/2 or 1/4: the largest at which the median image has at most `MAX_NETWORK_PIXELS`; 1/4 if none does.

    `shapes` are heights and widths in source pixels. Half size costs a quarter and lost nothing where it was measured.
    """
    pixels = float(np.median([height * width for height, width in shapes])) if shapes else 0.0
    return next((scale for scale in (1.0, 0.5) if pixels * scale**2 <= MAX_NETWORK_PIXELS), 0.25)


def choose_map_threshold(good: Sequence[DefectMap], defective: Sequence[DefectMap]) -> float:
    """The map logit above which a place is shown, from held-out images, so that the overlay of a good one is empty.

    It begins at the quantile of the good maps' maxima that `MAP_ALARM_RATE` of them exceed; not at the highest, which
    would follow a single mislabelled image. From there it goes `MAP_MARGIN` of the way to the median of the defective
    maps' maxima; without a held-out defect it goes to 0, a logit's even odds, if it is not above.
    """
    loud_good = float(np.quantile([float(found.logits.max()) for found in good], 1 - MAP_ALARM_RATE, method="higher"))
    if not defective:
        return max(loud_good, 0.0)
    loud_defective = float(np.median([float(found.logits.max()) for found in defective]))
    return loud_good + MAP_MARGIN * max(0.0, loud_defective - loud_good)


class _Clock:
    """Plans how many steps fit into `limit_s` seconds from now."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._started = time.monotonic()
        self._warm_s = 0.0

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def affordable_steps(self, step: int) -> int:
        """Steps that fit in all, `step` of them done; the first steps, slow and few, are not judged by."""
        elapsed = self.elapsed_s()
        if step <= WARM_STEPS:
            self._warm_s = elapsed
        if elapsed >= self._limit_s:
            return step
        if step < 2 * WARM_STEPS:
            return sys.maxsize
        return step + int((self._limit_s - elapsed) * (step - WARM_STEPS) / (elapsed - self._warm_s))


class _Training:
    """State of one training: network, running mean of its weights, optimiser, batches."""

    def __init__(self, images: Sequence[_Prepared], settings: DetectorSettings, seed: int, device: str) -> None:
        self._images = images
        self._settings = settings
        self._device = device
        self._generator = np.random.default_rng(seed)
        self._drawer = DefectDrawer([(i.grey, i.mask) for i in images if i.mask is not None])
        positives = [index for index, image in enumerate(images) if image.defective]
        negatives = [index for index, image in enumerate(images) if not image.defective]
        sizes = [image.grey.shape[:2] for image in images]
        self._batches = BalancedBatches(positives, negatives, sizes, settings.batch_size, self._generator)
        self._steps_per_epoch = math.ceil(max(2 * len(positives), MIN_EPOCH_IMAGES) / settings.batch_size)
        guided = not positives or any(image.mask is not None for image in images)
        self._decision_gradient = DECISION_GRADIENT if guided else 1.0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._network = build_network(settings).to(device).channels_last()
        self._mean = {name: value.clone() for name, value in self._network.state_dict().items()}
        self._optimiser = torch.optim.AdamW(
            self._network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )

    def run(self, val: Sequence[_Prepared], progress: Callable[[Progress], None] | None) -> list[Progress]:
        """Train to the planned end or to the time limit; one record an epoch."""
        clock = _Clock(60 * self._settings.max_minutes)
        total = planned = self._settings.epochs * self._steps_per_epoch
        step, history = 0, list[Progress]()
        while step < total:
            losses: list[tuple[float, float]] = []
            for batch in self._batches.draw(self._steps_per_epoch):
                losses.append(self._step(batch, step, total))
                step += 1
                total = min(planned, clock.affordable_steps(step))
                if step >= total:
                    break
            record = self._record(len(history) + 1, total, losses, val, clock.elapsed_s())
            history.append(record)
            if progress is not None:
                progress(record)
        return history

    def averaged(self) -> SegDec:
        """The network with averaged weights, folded, ready for inference."""
        network = NETWORKS[self._settings.network].from_state(self._settings.width, self._mean, folded=False)
        return ready(network.folded(), self._device)

    def _record(
        self, epoch: int, total: int, losses: list[tuple[float, float]], val: Sequence[_Prepared], seconds: float
    ) -> Progress:
        epochs = math.ceil(total / self._steps_per_epoch)
        segmentation, decision = np.mean(losses, axis=0).tolist()
        val_ap = None
        if epoch == epochs or epoch % max(1, epochs // NUM_VALIDATIONS) == 0:
            network = self.averaged()
            scores = np.array([judge(network, image.grey, 1.0).score for image in val], np.float64)
            val_ap = average_precision(np.array([image.defective for image in val], np.bool_), scores)
        return Progress(epoch, epochs, segmentation, decision, val_ap, seconds)

    def _step(self, batch: NDArray[np.int64], step: int, total: int) -> tuple[float, float]:
        """One step of the optimiser; segmentation and decision loss."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.learning_rate * one_cycle(step / total)
        grey, planes, defective, known = self._assemble([self._images[index] for index in batch])
        grey, planes = augment(grey, planes, self._generator)
        targets = cell_targets((planes[:, :1] > 0.5).float(), planes[:, 1:], self._settings.positive_weight)
        self._network.train()
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.startswith("cuda")):
            x = grey.contiguous(memory_format=torch.channels_last)
            decision_logits, map_logits = self._network(x, self._decision_gradient)
        segmentation = segmentation_loss(map_logits.float(), targets, known)
        decision = decision_loss(decision_logits.float(), defective)
        segmentation_weight, decision_weight = balance(step / total)
        loss = segmentation_weight * segmentation + decision_weight * decision
        if not torch.isfinite(loss):
            names = ", ".join(self._images[index].image_id for index in batch)
            raise TrainingError("not-finite", f"the loss at step {step} is {loss.item()}; images of the batch: {names}")
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), MAX_GRADIENT_NORM)
        self._optimiser.step()
        self._average(step)
        return segmentation.item(), decision.item()

    def _assemble(self, images: Sequence[_Prepared]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images as grey [B, 1, H, W], mask and sureness [B, 2, H, W], labels [B], and who knows its cells [B].

        Smaller images are mirrored up to the largest, mask and all, so that no pixel is other than surface.
        """
        height = max(image.grey.shape[0] for image in images)
        width = max(image.grey.shape[1] for image in images)
        stack, defective, known = [], [], []
        for image in images:
            grey, mask = image.grey, image.mask
            if not image.defective and self._generator.random() < self._settings.drawn_defects:
                grey, mask = self._drawer.draw(grey, self._generator)
            defective.append(image.defective or mask is not None)
            known.append(not image.defective or mask is not None)
            mask = np.zeros(grey.shape, np.bool_) if mask is None else dilate(mask, self._settings.dilation_px)
            planes = np.dstack([grey, mask, distance_weights(mask, self._settings.distance_power)])
            bottom, right = height - grey.shape[0], width - grey.shape[1]
            stack.append(cv2.copyMakeBorder(planes, 0, bottom, 0, right, cv2.BORDER_REFLECT))
        batch = torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2).to(self._device, torch.float32)
        labels = torch.tensor([defective, known], dtype=torch.float32, device=self._device)
        return batch[:, :1], batch[:, 1:], labels[0], labels[1]

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the running mean towards the weights: a plain mean at first, then over `AVERAGED_STEPS`."""
        share = 1 / min(step + 1, AVERAGED_STEPS)
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self._mean[name].lerp_(value, share)
            else:
                self._mean[name].copy_(value)


def one_cycle(progress: float) -> float:
    """Learning rate as a share of its peak at `progress` in 0..1: up along a cosine, then down to 0 (Smith 2018)."""
    if progress < WARM_UP:
        return START_RATE + (1 - START_RATE) * 0.5 * (1 - math.cos(math.pi * progress / WARM_UP))
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def dilate(mask: NDArray[np.bool_], size_px: int) -> NDArray[np.bool_]:
    """A mask [H, W] widened by a disc of diameter `size_px`; it stays a mask of True and False."""
    if size_px == 1:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size_px, size_px))
    return cv2.dilate(mask.view(np.uint8), disc).astype(np.bool_)


def _prepare(image: TrainingImage, scale: float) -> _Prepared:
    """Bring an image to network pixels; any touch of the defect keeps its pixel, so that thin ones survive."""
    grey = shrink(image.grey, scale)
    if not np.isfinite(grey).all():
        raise TrainingError("not-finite", f"{image.image_id}: pixels that are not finite; look at the file")
    if image.mask is None:
        return _Prepared(image.image_id, grey, image.defective, None)
    if image.mask.shape != image.grey.shape:
        found, expected = list(image.mask.shape), list(image.grey.shape)
        raise DataError("bad-mask", f"{image.image_id}: mask of {found}, expected the image's size {expected}")
    if not image.defective and image.mask.any():
        raise DataError("bad-mask", f"{image.image_id}: labelled good but its mask is not empty; correct one of them")
    if not image.mask.any():
        return _Prepared(image.image_id, grey, image.defective, None)
    height, width = network_size(image.mask.shape[0], image.mask.shape[1], scale)
    covered = cv2.resize(image.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return _Prepared(image.image_id, grey, image.defective, covered > 0)


def _check_labels(train: Sequence[_Prepared], val: Sequence[_Prepared], settings: DetectorSettings) -> None:
    good = sum(not image.defective for image in train)
    if good < 2:
        raise DataError("too-few-images", f"found {good} good training images, expected at least 2; add good images")
    if all(image.defective for image in val):
        raise DataError(
            "too-few-images",
            f"found no good image among {len(val)} validation images, expected at least 1: thresholds come from them",
        )
    if good == len(train) and settings.drawn_defects == 0:
        raise DataError(
            "too-few-images",
            "found no defective training image and drawn_defects 0, so there is nothing to learn; "
            "add defective images or let defects be drawn",
        )
