"""The training loop of one detector: steps, averaged weights, validation, early stop, checkpoints.

Same images, settings, seed and number of threads: the same weights, as long as the time limit does not bite; resumed
from a checkpoint or run through. Several processes may go through it together, as a `Team`: each has all images, and
computes on its share of each batch.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.config import DetectorSettings
from sbdzsl.errors import TrainingError
from sbdzsl.metrics import average_precision
from sbdzsl.sbdd.augment import perlin_places
from sbdzsl.sbdd.batch import Assembler, Prepared
from sbdzsl.sbdd.checkpoint import Checkpoint, CheckpointFile
from sbdzsl.sbdd.loss import (
    CellTargets,
    balance,
    decision_loss,
    segmentation_loss,
    weak_map_loss,
)
from sbdzsl.sbdd.network import NETWORKS, build_network
from sbdzsl.sbdd.predict import judge, ready
from sbdzsl.sbdd.sampling import BalancedBatches
from sbdzsl.sbdd.segdec import SegDec, map_size, pad_sides
from sbdzsl.sbdd.start import start_weights
from sbdzsl.sbdd.team import ALONE, Team, share_norms

#: An epoch is every positive once with as many negatives, yet at least so many images.
MIN_EPOCH_IMAGES = 96

#: What the decision's gradient is multiplied by on its way into the trunk, if there is a mask or drawing to learn from.
DECISION_GRADIENT = 0.1

#: The averaged weights of a run are a running mean over about this many steps.
AVERAGED_STEPS = 50

#: Share of the steps in which the learning rate rises, and what it starts from, as a share of its peak.
WARM_UP, START_RATE = 0.25, 0.04

MAX_GRADIENT_NORM = 5.0

#: Validation runs about this often in a training.
NUM_VALIDATIONS = 8

#: A checkpoint is written after an epoch if the last one is older than this.
CHECKPOINT_EVERY_S = 30.0

#: The first steps fill caches and choose kernels: they say little about the time of the others.
WARM_STEPS = 4


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


class _Clock:
    """Plans how many steps fit into `limit_s` seconds, of which `spent_s` went before."""

    def __init__(self, limit_s: float, spent_s: float) -> None:
        self._limit_s = limit_s
        self._started = time.monotonic() - spent_s
        self._warm_s = spent_s

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def affordable_steps(self, step: int, first: int) -> int:
        """Steps that fit in all, those up to `step` done since `first`; the first, slow and few, are not judged by."""
        elapsed = self.elapsed_s()
        if step - first <= WARM_STEPS:
            self._warm_s = elapsed
        if elapsed >= self._limit_s:
            return step
        if step - first < 2 * WARM_STEPS:
            return sys.maxsize
        return step + int((self._limit_s - elapsed) * (step - first - WARM_STEPS) / (elapsed - self._warm_s))


class Trainer:
    """One training: network, running mean of its weights, optimiser, batches, and where it stands."""

    def __init__(
        self, images: Sequence[Prepared], settings: DetectorSettings, seed: int, device: str, team: Team = ALONE
    ) -> None:
        self._images = images
        self._settings = settings
        self._device = torch.device(device)
        self._team = team
        self._in_bfloat16 = team.from_first(
            settings.precision == "bfloat16" or (settings.precision == "auto" and has_fast_bfloat16(self._device))
        )
        self._generator = np.random.default_rng(seed)
        self._assembler = Assembler(images, settings, self._generator, self._device, team)
        positives = [index for index, image in enumerate(images) if image.defective]
        negatives = [index for index, image in enumerate(images) if not image.defective]
        sizes = [image.grey.shape[:2] for image in images]
        by_use = settings.sampling == "frequency-of-use"
        self._batches = BalancedBatches(positives, negatives, sizes, settings.batch_size, self._generator, by_use)
        self._steps_per_epoch = math.ceil(max(2 * len(positives), MIN_EPOCH_IMAGES) / settings.batch_size)
        self.decision_gradient = _decision_gradient(images, settings)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._network = build_network(settings)
        if settings.start == "pretrained" and (weights := start_weights(settings)) is not None:
            self._network.load_state_dict(weights)
        share_norms(self._network, team)
        self._network = self._network.to(self._device).channels_last()
        self._mean = {name: value.clone() for name, value in self._network.state_dict().items()}
        self._best: dict[str, Tensor] = {}
        self._optimiser = _optimiser(self._network, settings)
        self._step_number = 0
        #: The time limit under which this training came to its end; 0 while it has not.
        self._ended_at_minutes = 0.0
        self._history: list[Progress] = []

    def run(
        self, val: Sequence[Prepared], progress: Callable[[Progress], None] | None, checkpoints: CheckpointFile | None
    ) -> tuple[SegDec, tuple[Progress, ...]]:
        """Train to the planned end, to the time limit or until validation stops to gain; the network and each epoch."""
        team = self._team
        found = checkpoints.load() if checkpoints is not None and team.is_first else None
        if team.size > 1:  # all begin with the first one's weights, which other processors may have drawn otherwise
            found = team.from_first(found or self._checkpoint())
        if found is not None:
            self._restore(found)
        clock = _Clock(60 * self._settings.max_minutes, self._history[-1].seconds if self._history else 0.0)
        planned = self._settings.epochs * self._steps_per_epoch
        first, saved_s = self._step_number, clock.elapsed_s()
        # A training that this time limit ended before is finished; a raised limit lets it go on.
        total = first if self._settings.max_minutes <= self._ended_at_minutes else planned
        while self._step_number < total and not self._has_stalled():
            losses: list[tuple[float, float]] = []
            for batch in team.from_first(self._batches.draw(self._steps_per_epoch)):
                losses.append(self._step(batch, total))
                total = team.from_first(min(planned, clock.affordable_steps(self._step_number, first)))
                if self._step_number >= total:
                    break
            record = self._record(total, losses, val, clock.elapsed_s())
            is_last = self._step_number >= total or self._has_stalled()
            if is_last:
                self._ended_at_minutes = self._settings.max_minutes
            is_due = is_last or clock.elapsed_s() - saved_s > CHECKPOINT_EVERY_S
            if checkpoints is not None and team.is_first and is_due:
                checkpoints.save(self._checkpoint())
                saved_s = clock.elapsed_s()
            if progress is not None:
                progress(record)
        return self._inference_network(self._best or self._mean), tuple(self._history)

    def _inference_network(self, weights: dict[str, Tensor]) -> SegDec:
        """A network with these weights, folded, ready for inference."""
        network = NETWORKS[self._settings.network].from_state(self._settings.width, weights, folded=False)
        return ready(network.folded(), str(self._device))

    def _has_stalled(self) -> bool:
        """Whether the last `patience` validations did not beat the best one before them."""
        patience = self._settings.patience
        measured = [record.val_ap for record in self._history if record.val_ap is not None]
        if patience is None or len(measured) <= patience:
            return False
        return max(measured[-patience:]) <= max(measured[:-patience])

    def _record(
        self, total: int, losses: list[tuple[float, float]], val: Sequence[Prepared], seconds: float
    ) -> Progress:
        epoch, epochs = len(self._history) + 1, math.ceil(total / self._steps_per_epoch)
        segmentation, decision = np.mean(losses, axis=0).tolist()
        val_ap = None
        if epoch == epochs or epoch % max(1, epochs // NUM_VALIDATIONS) == 0:
            network = self._inference_network(self._mean)
            scores = np.array(self._team.spread(lambda image: judge(network, image.grey).score, val), np.float64)
            val_ap = average_precision(np.array([image.defective for image in val], np.bool_), scores)
            best = max((record.val_ap or 0.0 for record in self._history), default=0.0)
            # At a tie the later weights: they have seen more.
            if self._settings.keep == "best" and val_ap is not None and val_ap >= best:
                self._best = {name: value.clone() for name, value in self._mean.items()}
        self._history.append(Progress(epoch, epochs, segmentation, decision, val_ap, seconds))
        return self._history[-1]

    def _step(self, batch: NDArray[np.int64], total: int) -> tuple[float, float]:
        """One step of the optimiser; segmentation and decision loss."""
        done = self._step_number / total
        for group in self._optimiser.param_groups:
            constant = self._settings.optimiser == "sgd"
            group["lr"] = self._settings.learning_rate * (1.0 if constant else one_cycle(done))
        team, count = self._team, len(batch)
        grey, targets, defective, known = self._assembler.assemble([self._images[index] for index in batch])
        self._network.train()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._in_bfloat16):
            x = pad_sides(grey, self._network.SIDE_MULTIPLE).contiguous(memory_format=torch.channels_last)
            encoded = self._network.encode(x)
            if self._settings.feature_noise:
                encoded, targets, defective = self._with_noise(encoded, targets, defective)
            size = map_size(grey.shape[-2], grey.shape[-1])
            decision_logits, map_logits = self._network.conclude(encoded, size, self.decision_gradient)
        decision_logits = team.whole(decision_logits.float(), count)
        map_logits = team.whole(map_logits.float(), count)
        segmentation = segmentation_loss(map_logits, targets, known, self._settings.dice_weight)
        segmentation = segmentation + self._settings.weak_weight * weak_map_loss(map_logits, defective, known)
        decision = decision_loss(decision_logits, defective)
        segmentation_weight, decision_weight = balance(done, self._settings.loss_balance)
        loss = segmentation_weight * segmentation + decision_weight * decision
        if not torch.isfinite(loss):
            raise self._not_finite(batch, decision_logits, map_logits, loss)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        team.sum_gradients(self._network.parameters())
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), MAX_GRADIENT_NORM)
        self._optimiser.step()
        self._average()
        self._step_number += 1
        return segmentation.item(), decision.item()

    def _with_noise(
        self, encoded: Tensor, targets: CellTargets, defective: Tensor
    ) -> tuple[Tensor, CellTargets, Tensor]:
        """Noise in places of the encoding of every other good image, then taken for a defect.

        `encoded` [b, C, H / 8, W / 8] is of this worker's rows, `targets` and `defective` are of all of the batch.
        After SuperSimpleNet (Rolih et al. 2024), with the deviation of each channel over the batch as the unit.
        """
        count = len(defective)
        chosen = (defective == 0).cpu().numpy() & (self._generator.random(count) < 0.5)
        rows, columns = encoded.shape[-2:]
        places = np.stack([perlin_places((rows, columns), self._generator) & take for take in chosen])[:, None]
        noise = self._generator.standard_normal((count, *encoded.shape[1:]), np.float32) * places
        spread = self._team.whole(encoded.detach().float(), count).std(dim=(0, 2, 3), keepdim=True)
        mine = torch.from_numpy(noise[self._team.rows(count)]).to(encoded.device)
        added = mine * spread * self._settings.feature_noise
        h, w = targets.defect.shape[-2:]
        noisy = torch.from_numpy(places[..., :h, :w]).to(encoded.device, torch.float32)
        raised = CellTargets(
            torch.maximum(targets.defect, noisy),
            torch.maximum(targets.weight, noisy * self._settings.positive_weight),
        )
        return encoded + added.to(encoded.dtype), raised, torch.maximum(defective, noisy.amax(dim=(1, 2, 3)))

    def _not_finite(
        self, batch: NDArray[np.int64], decision_logits: Tensor, map_logits: Tensor, loss: Tensor
    ) -> TrainingError:
        """Names the images whose own outcome is not finite; all of the batch where each outcome by itself is."""
        finite = torch.isfinite(decision_logits) & torch.isfinite(map_logits).all(dim=(1, 2, 3))
        culprits = [index for index, fine in zip(batch, finite.tolist(), strict=True) if not fine]
        names = ", ".join(self._images[index].image_id for index in culprits or batch)
        return TrainingError(
            "not-finite",
            f"the loss at step {self._step_number} is {loss.item()}; images: {names}. Look at them, or lower "
            f"learning_rate (found {self._settings.learning_rate})",
        )

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running mean towards the weights: a plain mean at first, then over `AVERAGED_STEPS`."""
        share = 1 / min(self._step_number + 1, AVERAGED_STEPS)
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self._mean[name].lerp_(value, share)
            else:
                self._mean[name].copy_(value)

    def _checkpoint(self) -> Checkpoint:
        groups: dict[str, dict[str, Tensor]] = {
            "network": self._network.state_dict(),
            "mean": self._mean,
            "best": self._best,
            "optimiser": {
                f"{index}.{name}": value
                for index, values in self._optimiser.state_dict()["state"].items()
                for name, value in values.items()
                if value is not None
            },
        }
        state: dict[str, Any] = {
            "step": self._step_number,
            "ended_at_minutes": self._ended_at_minutes,
            "history": [asdict(record) for record in self._history],
            "generator": self._generator.bit_generator.state,
            "batches": self._batches.state(),
        }
        return Checkpoint(groups, state)

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors, state = checkpoint.tensors, checkpoint.state
        self._network.load_state_dict(tensors["network"])
        self._mean = {name: value.to(self._device) for name, value in tensors["mean"].items()}
        self._best = {name: value.to(self._device) for name, value in tensors.get("best", {}).items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.get("optimiser", {}).items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        self._optimiser.load_state_dict(self._optimiser.state_dict() | {"state": moments})
        self._step_number = state["step"]
        self._ended_at_minutes = state["ended_at_minutes"]
        self._history = [Progress(**record) for record in state["history"]]
        self._generator.bit_generator.state = state["generator"]
        self._batches.restore(state["batches"])


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 by instructions of its own: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def one_cycle(progress: float) -> float:
    """Learning rate as a share of its peak at `progress` in 0..1: up along a cosine, then down to 0 (Smith 2018)."""
    if progress < WARM_UP:
        return START_RATE + (1 - START_RATE) * 0.5 * (1 - math.cos(math.pi * progress / WARM_UP))
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _decision_gradient(images: Sequence[Prepared], settings: DetectorSettings) -> float:
    """The setting; by default a tenth where masks or drawings guide the trunk, all of it where nothing else does."""
    if settings.decision_gradient is not None:
        return settings.decision_gradient
    guided = settings.drawn_defects > 0 or any(image.mask is not None for image in images)
    return DECISION_GRADIENT if guided else 1.0


def _optimiser(network: SegDec, settings: DetectorSettings) -> torch.optim.Optimizer:
    if settings.optimiser == "sgd":
        return torch.optim.SGD(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
