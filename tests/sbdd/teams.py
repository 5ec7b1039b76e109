"""A team of two real processes, and what they do in the tests of `test_team.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.config import DetectorSettings, RouterSettings
from sbdzsl.errors import TrainingError
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbdd import trainer as trainer_module
from sbdzsl.sbdd.batch import Prepared
from sbdzsl.sbdd.fit import Progress, TrainingImage, fit_detector
from sbdzsl.sbdd.loss import CellTargets
from sbdzsl.sbdd.team import Team
from sbdzsl.sbdd.trainer import Trainer
from sbdzsl.surface_training import embed_images

SIZE = 2


class Pair:
    """Runs one function in two processes that have joined one group: `together(work, ...)` gives what each returned."""

    def __init__(self, pools: Sequence[ProcessPoolExecutor]) -> None:
        self._pools = pools

    def together(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        calls = [pool.submit(work, Team(rank, SIZE), *arguments) for rank, pool in enumerate(self._pools)]
        return [call.result(timeout=120) for call in calls]


@contextmanager
def pair_of_processes(folder: Path) -> Iterator[Pair]:
    """Two processes of one group of gloo, which end with the block."""
    pools = [ProcessPoolExecutor(1, get_context("spawn")) for _ in range(SIZE)]
    try:
        pair = Pair(pools)
        pair.together(_join, str(folder / "group"))
        yield pair
    finally:
        for pool in pools:
            pool.shutdown()


def _join(team: Team, file: str) -> None:
    torch.set_num_threads(1)
    trainer_module.CHECKPOINT_EVERY_S = 0.0
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=team.rank, world_size=team.size)


@dataclass(frozen=True)
class Step:
    """What one step of the optimiser gave: losses, gradients, and what batch norm remembers."""

    losses: tuple[float, float]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def one_step(team: Team, images: Sequence[TrainingImage], settings: DetectorSettings) -> Step:
    """The first step of a training, in float64: rounding must not decide on which side of 0 a ReLU is.

    A team of one draws as a larger one does: a stream an image.
    """
    prepared = [Prepared(image.image_id, image.grey, image.defective, image.mask) for image in images]
    trainer = Trainer(prepared, settings, 3, "cpu", team)
    if team.size == 1:
        streams = trainer._generator
        trainer._assembler._generators = lambda count: [
            np.random.default_rng(s) for s in streams.integers(2**63, size=count)
        ]
    assemble = trainer._assembler.assemble
    trainer._assembler.assemble = lambda images: tuple(_in_float64(part) for part in assemble(images))
    trainer._network.double()
    trainer._mean = {name: value.clone() for name, value in trainer._network.state_dict().items()}
    losses = trainer._step(trainer._batches.draw(1)[0], 40)
    gradients = {name: value.grad for name, value in trainer._network.named_parameters() if value.grad is not None}
    return Step(losses, gradients, {name: value.clone() for name, value in trainer._network.named_buffers()})


def _in_float64(part: Tensor | CellTargets) -> Tensor | CellTargets:
    return part.double() if isinstance(part, Tensor) else CellTargets(part.defect.double(), part.weight.double())


def one_step_with_own_statistics(team: Team, images: Sequence[TrainingImage], settings: DetectorSettings) -> Step:
    """As `one_step`, each process with the batch statistics of its own rows, as they would be without `TeamNorm`."""
    shared = trainer_module.share_norms
    trainer_module.share_norms = lambda network, team: None
    try:
        return one_step(team, images, settings)
    finally:
        trainer_module.share_norms = shared


def fit(
    team: Team,
    train: Sequence[TrainingImage],
    val: Sequence[TrainingImage],
    settings: DetectorSettings,
    url: str | None = None,
    stop_after: int | None = None,
) -> tuple[dict[str, Tensor], list[int], NDArray[np.float64]] | None:
    """Tensors, the epochs gone through and validation scores; None where it was stopped after an epoch."""
    epochs: list[int] = []

    def progress(one: Progress) -> None:
        epochs.append(one.epoch)
        if one.epoch == stop_after:
            raise InterruptedError

    try:
        fitted = fit_detector(train, val, settings, 1, progress, checkpoint_url=url, team=team)
    except InterruptedError:
        return None
    return fitted.detector.tensors(), epochs, fitted.val_scores


def fit_with_an_image_less(
    team: Team, train: Sequence[TrainingImage], val: Sequence[TrainingImage], settings: DetectorSettings
) -> str:
    """The error's message where the second process cannot read the last image."""
    try:
        fit_detector(train[: len(train) - team.rank], val, settings, 1, team=team)
    except TrainingError as error:
        return f"{error.code}: {error.message}"
    return "no error"


def embed(team: Team, images: Sequence[TrainingImage]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features and those of changed copies."""
    settings = RouterSettings(copies=2, crop_px=64)
    embedder = Embedder(load_backbone(None, (), settings.crop_px), settings)
    found = embed_images("a", images, ["g"] * len(images), embedder, team=team)
    assert found.copies is not None
    return found.features, found.copies


def exchange(team: Team) -> tuple[list[int], int, list[float]]:
    """Squares of 0..4 shared out, what the first one said, and the rows of all."""
    rows = torch.arange(5.0)[team.rows(5)]
    return team.spread(lambda number: number**2, range(5)), team.from_first(team.rank + 7), team.whole(rows, 5).tolist()
