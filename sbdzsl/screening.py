"""Which "good" images look least like the others of their surface: a ranking to look through before training.

A defect that lies unlabelled among the good images teaches the detector to pass it. The idea is PatchCore's (Roth et
al. 2022): an image is as strange as its strangest cell, a cell as strange as its distance to the cells of others. A
cell is described in four ways, by the frozen backbone of SBAD: contrast at fine scale, the log standard deviation of
each channel of the stem, s0 and s1 in a window of `WINDOW_PX`; and content, the mean of s2 over 3x3 places, as
PatchCore has it. Neither finds what the other does (`benchmarks/suspects.py`). The median of an image's own cells is
taken off, so that a darker or blurrier photograph is not suspect as a whole. Cells of the same group are never
compared, for its images are alike.

Nothing is learnt from labels, and nothing is left out: the ranking is for a person.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl import lake
from sbdzsl.config import ImageSettings
from sbdzsl.datasets.sample import Sample, group_of
from sbdzsl.datasets.validation import Finding
from sbdzsl.errors import ImageError, LakeError
from sbdzsl.image import decode
from sbdzsl.sbad.backbone import Backbone

WINDOW_PX = 32
#: Of the backbone: contrast of the fine ones, means of the last. Deeper ones are not needed.
STAGES = ("stem", "s0", "s1", "s2")
#: Larger images are shrunk to this area, in pixels, so that each takes tens of milliseconds.
MAX_AREA_PX = 512 * 512
#: Cells that all images are compared with, and images that they are drawn from: what bounds time and memory.
BANK_CELLS, BANK_IMAGES = 1000, 512
#: A cell is as strange as its distance to this neighbour: by the nearest one, defects of a kind vouch for each other.
NEIGHBOUR = 5
#: Fewer images of a surface cannot show what is usual for it.
MIN_IMAGES = 10

_STD_FLOOR = 0.01
_SHRINKAGE = 0.1

#: Cells of one image, an entry a description: float32 [cells, C].
Cells = tuple[NDArray[np.float32], ...]


def rank_suspects(
    samples: Sequence[Sample],
    num: int,
    backbone: Backbone,
    settings: ImageSettings,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """The `num` most suspect good images of each surface, the most suspect first, as findings of code `suspect`.

    Good are the images labelled benign and those without label; test images are left alone. The score is in robust
    standard deviations over the good images of the surface, larger is stranger. The same samples and seed give the
    same ranking, in any order. `report` is told of surfaces and images that cannot be screened.
    """
    of_surface: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.label != "defect" and sample.split != "test":
            of_surface[sample.surface or ""].append(sample)
    findings: list[Finding] = []
    for surface, own in sorted(of_surface.items()):
        if len(own) < MIN_IMAGES or len({group_of(sample) for sample in own}) < 2:
            report(f"{surface}: not screened for suspects: {len(own)} good images; {MIN_IMAGES} of 2 groups are needed")
            continue
        scores = _scores(own, backbone, settings, seed, report)
        order = sorted(scores, key=lambda sample: (-scores[sample], sample.image_id))
        for rank, sample in enumerate(order[:num], 1):
            reason = f"rank {rank} of {len(order)} good images of {surface}; look at it before training"
            findings.append(Finding(sample.surface, sample, "suspect", reason, scores[sample]))
    return findings


def _scores(
    samples: Sequence[Sample], backbone: Backbone, settings: ImageSettings, seed: int, report: Callable[[str], None]
) -> dict[Sample, float]:
    """The score of each image of one surface that can be read and is large enough."""

    def shuffled(sample: Sample) -> bytes:
        return hashlib.sha256(f"{seed}\0{sample.image_id}".encode()).digest()

    order = sorted(samples, key=shuffled)
    kept: dict[Sample, Cells] = {}
    for sample in order[:BANK_IMAGES]:
        cells = _read_cells(sample, backbone, settings, report)
        if cells is not None:
            kept[sample] = cells
    if len({group_of(sample) for sample in kept}) < 2:
        report(f"{samples[0].surface}: not screened for suspects: its readable good images are of fewer than 2 groups")
        return {}
    banks = draw_banks(kept, seed)
    distances = {sample: strangest_cells(cells, sample, banks) for sample, cells in kept.items()}
    for sample in order[BANK_IMAGES:]:
        cells = _read_cells(sample, backbone, settings, report)
        if cells is not None:
            distances[sample] = strangest_cells(cells, sample, banks)
    # What is usual differs between descriptions: each is measured by its own spread, and only strangeness counts.
    strange = np.maximum([robust_z(column) for column in np.array(list(distances.values())).T], 0)
    return dict(zip(distances, np.sqrt((strange**2).sum(axis=0)).tolist(), strict=True))


def _read_cells(
    sample: Sample, backbone: Backbone, settings: ImageSettings, report: Callable[[str], None]
) -> Cells | None:
    try:
        grey = decode(lake.read_bytes(sample.uri, settings.max_bytes), settings, sample.bit_depth).grey()
    except (ImageError, LakeError) as error:
        report(f"{sample.surface}: not screened: {sample.uri}: {error.code}: {error.message}")
        return None
    if min(grey.shape) < WINDOW_PX:
        report(f"{sample.surface}: not screened: {sample.uri}: a side below {WINDOW_PX} px")
        return None
    return describe_cells(grey, backbone)


def shrunk(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image, [H, W], at no more than `MAX_AREA_PX`, but no side below `WINDOW_PX`."""
    scale = max((MAX_AREA_PX / grey.size) ** 0.5, WINDOW_PX / min(grey.shape))
    if scale >= 1:
        return np.ascontiguousarray(grey)
    size = round(scale * grey.shape[1]), round(scale * grey.shape[0])
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.float32)


def describe_cells(grey: NDArray[np.float32], backbone: Backbone) -> Cells:
    """Cells of one image, relative to their median; `grey` is [H, W] float32 in [0, 1], no side below `WINDOW_PX`."""
    with torch.inference_mode():
        *early, middle = backbone(torch.from_numpy(shrunk(grey))[None, None])[: len(STAGES)]
        maps = [_contrast(stage, stride) for stage, stride in zip(early, (2, 2, 4), strict=True)]
        # No padding: cells of fewer places at the border would be the strangest of every image.
        maps.append(F.avg_pool2d(middle, 3, 2))
    cells = [found[0].flatten(1).T.numpy() for found in maps]
    return tuple(found - np.median(found, axis=0) for found in cells)


def _contrast(stage: Tensor, stride: int) -> Tensor:
    """Log standard deviation of each channel in windows of `WINDOW_PX`, every half of it; `stride` is the map's."""

    def windowed(values: Tensor) -> Tensor:
        # By halves of a window first: a quarter of the work.
        return F.avg_pool2d(F.avg_pool2d(values, WINDOW_PX // 2 // stride), 2, 1)

    mean = windowed(stage)
    return torch.log((windowed(stage * stage) - mean * mean).clamp_min(0).sqrt() + _STD_FLOOR)


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Cells [M, C] of one description to compare with, whitened by `whitening` [C, C], and the group of each."""

    cells: NDArray[np.float32]
    whitening: NDArray[np.float32]
    groups: NDArray[np.int64]
    numbers: dict[tuple[str, str], int]

    def distances(self, cells: NDArray[np.float32], group: tuple[str, str]) -> NDArray[np.float32]:
        """Distance of each cell to the `NEIGHBOUR`-th nearest one of other groups: [n, C] -> [n]."""
        bank = self.cells[self.groups != self.numbers.get(group, -1)]
        whitened = cells @ self.whitening
        squares = (whitened**2).sum(axis=1)[:, None] + (bank**2).sum(axis=1) - 2 * whitened @ bank.T
        number = min(NEIGHBOUR, len(bank))
        nearest = torch.topk(torch.from_numpy(squares), number, dim=1, largest=False).values[:, -1].numpy()
        return np.sqrt(np.maximum(nearest, 0))


def draw_banks(images: Mapping[Sample, Cells], seed: int) -> list[Bank]:
    """One bank a description, of as many cells of each image, drawn at random: `BANK_CELLS` in all."""
    rng = np.random.default_rng(seed)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(group_of(sample) for sample in images))}
    share = -(-BANK_CELLS // len(images))
    banks = []
    for described in zip(*images.values(), strict=True):
        drawn = [rng.permutation(cells)[:share] for cells in described]
        groups = [numbers[group_of(sample)] for sample, cells in zip(images, drawn, strict=True) for _ in cells]
        bank = np.concatenate(drawn)
        whitening = _whitening(bank)
        banks.append(Bank(bank @ whitening, whitening, np.array(groups), numbers))
    return banks


def strangest_cells(cells: Cells, sample: Sample, banks: Sequence[Bank]) -> list[float]:
    """A number a description: the distance of the image's strangest cell."""
    group = group_of(sample)
    return [float(bank.distances(found, group).max()) for bank, found in zip(banks, cells, strict=True)]


def _whitening(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """[C, C]: turns the covariance of `cells`, shrunk towards its mean variance, into the identity."""
    covariance = np.cov(cells.T)
    spread = np.trace(covariance) / len(covariance)
    covariance = (1 - _SHRINKAGE) * covariance + (_SHRINKAGE * spread + 1e-9) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(values)).astype(np.float32)


def robust_z(values: Iterable[float]) -> NDArray[np.float64]:
    """Distances to the median in robust standard deviations, by the median absolute deviation; 0 if all are alike."""
    found = np.asarray(list(values), np.float64)
    away = found - np.median(found)
    spread = 1.4826 * np.median(np.abs(away)) or away.std()
    return away / spread if spread > 0 else np.zeros_like(away)
