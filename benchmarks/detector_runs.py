"""One detector trained and tested: the unit that the studies of `sbdd.py` are made of, and a pool that runs many.

A run is a data set, a split, a seed, how many labels training may see, and settings that differ from the defaults. It
decodes, trains, sets its threshold on validation images and looks at the test images last. Runs take one thread each;
two of them go side by side.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import shared_data

from sbdzsl import datasets, lake
from sbdzsl.calibration import choose_threshold
from sbdzsl.config import DetectorSettings, ImageSettings, ThresholdRule
from sbdzsl.datasets import synthetic
from sbdzsl.datasets.sample import Sample, load_mask
from sbdzsl.image import decode
from sbdzsl.metrics import BestF1, auroc, average_precision, average_precision_trapezoid, best_f1, confusion
from sbdzsl.pixel_metrics import PixelTally
from sbdzsl.robustness import Robustness, robustness
from sbdzsl.sbdd.fit import TrainingImage, fit_detector

#: Adapter, folder below the shared data and name of the surface.
SOURCES = {
    "kolektorsdd": ("kolektorsdd", "KolektorSDD", None),
    "dagm_class1": ("dagm", "DAGM2007", "dagm_class1"),
    "magnetic_tile": ("magnetic_tile", "MagneticTile", None),
}

#: The drawn lake: images in all, side in pixels, seed. Its ten surfaces are named `drawn/<surface>`.
DRAWN = (2000, 256, 11)

WORKERS = 2


@dataclass(frozen=True, slots=True)
class Run:
    """`fold` is (k, of), None for the split by `seed`; `masks` and `positives` limit what training sees (None: all).

    `positives` 0 trains on good images alone; `masks` 0 on defective images without a mask. With `changes`, the test
    images are also judged under other light, blur, noise and shift.
    """

    source: str
    seed: int
    fold: tuple[int, int] | None = None
    masks: int | None = None
    positives: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    changes: bool = False


@dataclass(frozen=True, slots=True)
class Tested:
    """What came of a run: test labels, scores and kinds in one order, threshold, pixel figures, minutes."""

    run: Run
    labels: NDArray[np.bool_]
    scores: NDArray[np.float64]
    names: tuple[str, ...]
    threshold: float
    val_ap: float | None
    pixel_ap: float | None
    aupro: float | None
    train_minutes: float
    robustness: tuple[Robustness, ...]

    def figures(self) -> dict[str, Any]:
        """Plain values for a result file; `best_f1_on_test` takes its threshold from the test data, as published."""
        counts = confusion(self.labels, self.scores, self.threshold)
        best = best_f1(self.labels, self.scores)
        return {
            "source": self.run.source,
            "seed": self.run.seed,
            "fold": self.run.fold[0] if self.run.fold else None,
            "good": int((~self.labels).sum()),
            "defective": int(self.labels.sum()),
            "ap": average_precision(self.labels, self.scores),
            "ap_trapezoid": average_precision_trapezoid(self.labels, self.scores),
            "auroc": auroc(self.labels, self.scores),
            "fp": counts.false_positives,
            "fn": counts.false_negatives,
            "best_f1_on_test": errors_of(best),
            "pixel_ap": self.pixel_ap,
            "aupro": self.aupro,
            "val_ap": self.val_ap,
            "train_minutes": round(self.train_minutes, 2),
        }


def errors_of(best: BestF1 | None) -> dict[str, int] | None:
    """False alarms and misses at a best F1; None where there is none."""
    return None if best is None else {"fp": best.confusion.false_positives, "fn": best.confusion.false_negatives}


def run_all(runs: Sequence[Run]) -> Iterator[Tested]:
    """All runs, two at a time, in their order, each as it is there; a line for each as it ends."""
    # One thread each: two trainings side by side take half the time of two threads on one after the other.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_one, runs)


def run_one(run: Run) -> Tested:
    """Train on the run's training images, calibrate on its validation images, then look at its test images."""
    settings = DetectorSettings(**run.settings)
    images: dict[str, list[TrainingImage]] = {"train": [], "val": [], "test": []}
    for sample in samples_of(run.source, run.seed, run.fold):
        assert sample.split is not None
        images[sample.split].append(decoded(sample))
    train = limited(images["train"], run)
    started = time.monotonic()
    fitted = fit_detector(train, images["val"], settings, run.seed)
    minutes = (time.monotonic() - started) / 60
    rule = ThresholdRule("false-alarm-rate", settings.false_alarm_rate)
    good, defect = (fitted.val_scores[fitted.val_labels == kind] for kind in (False, True))
    threshold = choose_threshold(rule, good, defect).value
    pixels, scores = PixelTally(), []
    for image in images["test"]:
        found = fitted.detector.detect(image.grey)
        scores.append(found.score)
        if not image.defective or image.mask is not None:
            pixels.add(found.heat(), np.zeros(image.grey.shape, np.bool_) if image.mask is None else image.mask)
    tested = Tested(
        run=run,
        labels=np.array([image.defective for image in images["test"]]),
        scores=np.array(scores, np.float64),
        names=tuple(image.image_id for image in images["test"]),
        threshold=threshold,
        val_ap=fitted.history[-1].val_ap,
        pixel_ap=pixels.ap(),
        aupro=pixels.aupro(),
        train_minutes=minutes,
        robustness=robustness(
            lambda grey: fitted.detector.detect(grey).score,
            ((image.grey, image.defective) for image in images["test"]),
            threshold,
        )
        if run.changes
        else (),
    )
    shown = {name: tested.figures()[name] for name in ("ap", "fp", "fn", "pixel_ap", "val_ap", "train_minutes")}
    print(run.source, run.fold, run.seed, run.masks, run.positives, run.settings, shown, flush=True)
    return tested


def limited(train: Iterable[TrainingImage], run: Run) -> list[TrainingImage]:
    """Training images with no more masks and positives than the run allows; which ones, its seed decides."""
    images = list(train)
    order = np.random.default_rng(run.seed).permutation([i for i, image in enumerate(images) if image.defective])
    if run.positives is not None:
        dropped = set(order[run.positives :].tolist())
        images = [image for index, image in enumerate(images) if index not in dropped]
    elif run.masks is not None:
        blank = set(order[run.masks :].tolist())
        images = [replace(image, mask=None) if index in blank else image for index, image in enumerate(images)]
    return images


def samples_of(source: str, seed: int, fold: tuple[int, int] | None) -> list[Sample]:
    """Labelled samples of one surface with splits: by fold, or by the seed."""
    k, folds = fold or (None, None)
    if source.startswith("drawn/"):
        adapter, folder, surface = "dagm", drawn_lake(), source.removeprefix("drawn/")
    else:
        adapter, below, surface = SOURCES[source]
        folder = str(shared_data() / below)
    return datasets.ingest(adapter, folder, surface=surface, fold=k, folds=folds, seed=0 if fold else seed).samples


@lru_cache(maxsize=4000)
def decoded(sample: Sample) -> TrainingImage:
    """The image and its mask; kept, since the runs of one process use them again."""
    grey = decode(lake.read_bytes(sample.uri), ImageSettings(), sample.bit_depth).grey()
    mask = load_mask(sample, (grey.shape[0], grey.shape[1])) if sample.label == "defect" else None
    return TrainingImage("/".join(sample.uri.split("/")[-3:]), grey, sample.label == "defect", mask)


@lru_cache(maxsize=1)
def drawn_lake() -> str:
    """Folder of the drawn lake, drawn once a machine."""
    images, size, seed = DRAWN
    folder = os.path.join(tempfile.gettempdir(), f"sbdzsl-drawn-{images}-{size}-{seed}")  # noqa: PTH118  a lake URL
    if not os.path.exists(f"{folder}/done"):  # noqa: PTH110
        synthetic.write_lake(folder, images, seed, size=size)
        lake.write_bytes(f"{folder}/done", b"")
    return folder
