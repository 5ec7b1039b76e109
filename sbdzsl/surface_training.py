"""The steps of training that concern one surface: decode and embed its images, train its detector, keep what came out.

Whoever trains calls these, in one process or spread over a cluster. What a surface brought is kept in one file beside
the bundle to be: without pixels, so that it may be made on one machine and used on another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray

from sbdzsl import lake
from sbdzsl.bundle import SurfaceDetector, detector_card, load_detector
from sbdzsl.calibration import fit_platt
from sbdzsl.config import DetectorSettings, ImageSettings
from sbdzsl.datasets.sample import Sample, load_mask
from sbdzsl.errors import DataError, ImageError, LakeError
from sbdzsl.image import Appearance, decode
from sbdzsl.robustness import robustness
from sbdzsl.sbad.conditions import changed_copies
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import EmbeddedImages
from sbdzsl.sbdd.checkpoint import Checkpoint, CheckpointFile
from sbdzsl.sbdd.fit import Progress, TrainingImage, fit_detector
from sbdzsl.sbdd.team import ALONE, Team

Report = Callable[[str], None]

#: The robustness table of a bundle's card is made from so many validation images at most: sixteen passes each.
MAX_ROBUSTNESS_IMAGES = 100

#: Below this many training images the router cannot tell a surface's own spread from its distance to others.
MIN_TRAIN_IMAGES = 5


@dataclass(frozen=True, slots=True)
class SurfaceData:
    """What one surface brings to training; `train_embedded` and `val_embedded` are the same images for the router.

    `val_appearances` and `val_defective` say of each validation image what its reference needs, also without pixels.
    """

    surface: str
    train: tuple[TrainingImage, ...]
    val: tuple[TrainingImage, ...]
    train_embedded: EmbeddedImages
    val_embedded: EmbeddedImages
    val_appearances: tuple[Appearance, ...]
    val_defective: tuple[bool, ...]
    skipped: tuple[str, ...]
    assumed_good: int


def load_surface(
    surface: str,
    samples: Sequence[Sample],
    embedder: Embedder | None,
    settings: ImageSettings,
    report: Report = print,
    min_train: int = MIN_TRAIN_IMAGES,
    team: Team = ALONE,
) -> SurfaceData:
    """Decode and embed the train and val images of one surface; without an `embedder` the features are empty, [n, 0].

    An image that cannot be read is reported and left out. An image without a label counts as good, and is counted. A
    `team` shares the embedding; each process decodes all images, since any batch may hold any of them.
    Raises `DataError` "too-few-images" where fewer than `min_train` training images are left, or none to validate on;
    `TrainingError` "workers-failed" where not all of a team can read the same images.
    """
    images: dict[str, list[TrainingImage]] = {"train": [], "val": []}
    groups: dict[str, list[str]] = {"train": [], "val": []}
    appearances: list[Appearance] = []
    skipped: list[str] = []
    for sample in samples:
        assert sample.split in images
        try:
            image = decode(lake.read_bytes(sample.uri, settings.max_bytes), settings, sample.bit_depth)
        except (ImageError, LakeError) as error:
            report(f"{surface}: left out of training: {sample.uri}: {error.code}: {error.message}")
            skipped.append(sample.uri)
            continue
        if sample.split == "val":
            appearances.append(image.appearance())
        grey, defective = image.grey(), sample.label == "defect"
        mask = load_mask(sample, (grey.shape[0], grey.shape[1])) if defective else None
        images[sample.split].append(TrainingImage(sample.image_id, grey, defective, mask))
        groups[sample.split].append(sample.group or sample.image_id)
    names = [[image.image_id for image in images[split]] for split in ("train", "val")]
    team.agree((names, skipped), f"the readable images of {surface}")
    if len(images["train"]) < min_train or not images["val"]:
        raise DataError(
            "too-few-images",
            f"surface {surface!r}: {len(images['train'])} readable training and {len(images['val'])} validation "
            f"images; at least {min_train} and 1 are needed",
        )
    learns_val = embedder is not None and embedder.settings.is_cross_fitted
    return SurfaceData(
        surface=surface,
        train=tuple(images["train"]),
        val=tuple(images["val"]),
        train_embedded=embed_images(surface, images["train"], groups["train"], embedder, team=team),
        val_embedded=embed_images(surface, images["val"], groups["val"], embedder, learnt=learns_val, team=team),
        val_appearances=tuple(appearances),
        val_defective=tuple(image.defective for image in images["val"]),
        skipped=tuple(skipped),
        assumed_good=sum(sample.label is None for sample in samples),
    )


def embed_images(
    surface: str,
    images: Sequence[TrainingImage],
    groups: Sequence[str],
    embedder: Embedder | None,
    *,
    learnt: bool = True,
    team: Team = ALONE,
) -> EmbeddedImages:
    """Features of images of one surface, and of changed copies of them if the embedder's settings want any.

    Each has one drawn evenly, by which it is judged; images that a gate learns (`learnt`) have extreme ones besides, as
    many as the settings say. Without an `embedder` features are empty, [n, 0].
    """
    names = [surface] * len(images)
    if embedder is None:
        return EmbeddedImages(np.empty((len(images), 0), np.float32), names, groups)
    settings = embedder.settings
    num_extreme, num_even = settings.copies * learnt, min(settings.copies, 1)

    def embed(numbered: tuple[int, TrainingImage]) -> NDArray[np.float32]:
        place, image = numbered
        extreme = changed_copies(image.grey, settings.envelope, num_extreme, (True, place), extreme=True)
        even = changed_copies(image.grey, settings.envelope, num_even, (False, place), extreme=False)
        return np.stack([embedder.embed(grey) for grey in (image.grey, *extreme, *even)])

    embedded = np.stack(team.spread(embed, list(enumerate(images))))
    # Whole arrays of their own: how a product is summed may hang on strides.
    features, copies, even = map(np.ascontiguousarray, np.split(embedded, [1, 1 + num_extreme], axis=1))
    return EmbeddedImages(
        features[:, 0], names, groups, copies if num_extreme else None, even[:, 0] if num_even else None
    )


def train_detector(
    data: SurfaceData,
    settings: DetectorSettings,
    seed: int,
    device: str = "cpu",
    report: Report = print,
    checkpoint_url: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    team: Team = ALONE,
) -> tuple[SurfaceDetector, tuple[Progress, ...]]:
    """Train one surface's SBDD, calibrated on the surface's validation images, and how its epochs went.

    `progress` is called after each epoch; without it every validation is a line to `report`. Each process of a `team`
    calls this with the same data, and all get the same.
    """

    def show(progress: Progress) -> None:
        if progress.val_ap is not None or progress.epoch == progress.epochs:
            ap = "" if progress.val_ap is None else f", validation AP {progress.val_ap:.3f}"
            losses = f"segmentation {progress.segmentation_loss:.3f}, decision {progress.decision_loss:.3f}"
            report(f"  epoch {progress.epoch}/{progress.epochs}, {progress.seconds:.0f} s: {losses}{ap}")

    fitted = fit_detector(data.train, data.val, settings, seed, progress or show, device, checkpoint_url, report, team)
    labels = np.array([image.defective for image in data.val])
    scores = np.array(team.spread(lambda image: fitted.detector.detect(image.grey).score, data.val), dtype=np.float64)
    entry = SurfaceDetector(
        detector=fitted.detector,
        settings=fitted.detector.settings,
        good_scores=scores[~labels],
        defect_scores=scores[labels],
        platt=fit_platt(scores[~labels], scores[labels]),
    )
    threshold = entry.threshold()
    # Spread over all of them: good images often come before defective ones.
    held_out = ((image.grey, image.defective) for image in data.val[:: -(-len(data.val) // MAX_ROBUSTNESS_IMAGES)])
    # The published network takes a second an image: its table would cost more than many a training.
    if settings.network == "lite":
        entry = replace(
            entry,
            robustness=robustness(lambda grey: fitted.detector.detect(grey).score, held_out, threshold.value, seed),
        )
    if threshold.promised_rate is not None and threshold.promised_rate > settings.false_alarm_rate:
        report(
            f"  {data.surface}: {threshold.num_good} held-out good images support a false-alarm rate of "
            f"{threshold.promised_rate:.1%}, not the {settings.false_alarm_rate:.1%} asked for"
        )
    return entry, fitted.history


@dataclass(frozen=True, slots=True)
class TrainedSurface:
    """What one surface gives to a bundle: its detector, and `data` of its images for the router, without pixels.

    `attributes` is its row of the attribute table where it had to be measured from the images, else None.
    """

    data: SurfaceData
    detector: SurfaceDetector
    attributes: Mapping[str, float] | None


class TrainedFile:
    """One trained surface at a URL. `purpose` says what it was trained from, as JSON values.

    What was trained from other images or settings is not taken, which `report` is told: a changed training begins anew.
    """

    def __init__(self, url: str, purpose: Any, report: Report) -> None:
        self._file = CheckpointFile(url, purpose, report)

    def save(self, trained: TrainedSurface) -> None:
        """Write it, whole or not at all. Raises `LakeError`."""
        data = trained.data
        embedded = {"train": data.train_embedded, "val": data.val_embedded}
        tensors = {name: embedded_tensors(images) for name, images in embedded.items()}
        state = {
            "surface": data.surface,
            "groups": {name: images.groups and list(images.groups) for name, images in embedded.items()},
            "appearances": [asdict(one) for one in data.val_appearances],
            "defective": list(data.val_defective),
            "skipped": list(data.skipped),
            "assumed_good": data.assumed_good,
            "detector": detector_card(trained.detector),
            "attributes": trained.attributes,
        }
        self._file.save(Checkpoint(tensors | {"detector": trained.detector.detector.tensors()}, state))

    def load(self, device: str = "cpu") -> TrainedSurface | None:
        """The trained surface; None where there is none, a damaged one or one of another training."""
        if (found := self._file.load()) is None:
            return None
        state, tensors = found.state, found.tensors
        data = SurfaceData(
            surface=state["surface"],
            train=(),
            val=(),
            train_embedded=embedded_from(state["surface"], tensors["train"], state["groups"]["train"]),
            val_embedded=embedded_from(state["surface"], tensors["val"], state["groups"]["val"]),
            val_appearances=tuple(Appearance(**one) for one in state["appearances"]),
            val_defective=tuple(state["defective"]),
            skipped=tuple(state["skipped"]),
            assumed_good=state["assumed_good"],
        )
        detector = load_detector(state["detector"], tensors["detector"], device)
        return TrainedSurface(data, detector, state["attributes"])


def embedded_tensors(images: EmbeddedImages) -> dict[str, torch.Tensor]:
    """Features by name, those of copies too, for a file of tensors."""
    found = {"features": images.features, "copies": images.copies, "even": images.even}
    # Copied: what came through an object store may not be written to, of which torch warns.
    return {name: torch.from_numpy(value.copy()) for name, value in found.items() if value is not None}


def embedded_from(surface: str, tensors: Mapping[str, torch.Tensor], groups: Sequence[str] | None) -> EmbeddedImages:
    """The inverse of `embedded_tensors`."""
    found = {name: tensor.numpy() for name, tensor in tensors.items()}
    return EmbeddedImages(surfaces=[surface] * len(found["features"]), groups=groups, **found)


def training_file(out: str, surface: str, kind: Literal["checkpoint", "json", "png", "trained"]) -> str:
    """Where the training of a surface keeps its checkpoint, its curves or what came out, below the bundle `out`."""
    return lake.join(out, "training", f"{quote(surface, safe='')}.{kind}")


def write_curves(out: str, surface: str, history: Sequence[Progress]) -> None:
    """Keep how the epochs of a surface went, as a picture and as JSON. Raises `LakeError`."""
    # Here, since it draws: all that reads what a training left would take a second longer to start.
    from sbdzsl.sbdd.curves import curves_png

    records = json.dumps([asdict(progress) for progress in history])
    lake.write_bytes(training_file(out, surface, "json"), records.encode())
    lake.write_bytes(training_file(out, surface, "png"), curves_png(surface, history))


_curves = pydantic.TypeAdapter(tuple[Progress, ...])


def read_curves(out: str, surface: str) -> tuple[Progress, ...]:
    """What `write_curves` kept; empty where nothing was. Raises `LakeError` for a store that does not answer."""
    try:
        return _curves.validate_json(lake.read_bytes(training_file(out, surface, "json")))
    except LakeError as error:
        if error.code == "not-found":
            return ()
        raise


def remove_unfinished(out: str, surfaces: Iterable[str]) -> None:
    """Clear what only an unfinished training needs. Raises `LakeError`."""
    for surface in surfaces:
        lake.remove(training_file(out, surface, "checkpoint"))
        lake.remove(training_file(out, surface, "trained"))


def without_pixels(data: SurfaceData) -> SurfaceData:
    """The same for the router, which needs features only: the pixels of all surfaces may not fit in memory."""
    return replace(data, train=(), val=())


def describe_images(data: SurfaceData) -> str:
    """How many images of each kind there are, as long as the pixels are."""
    parts = []
    for name, images in (("training", data.train), ("validation", data.val)):
        defective = sum(image.defective for image in images)
        masked = sum(image.mask is not None for image in images)
        parts.append(f"{name} {len(images) - defective} good, {defective} defective ({masked} with mask)")
    unlabelled = f"; {data.assumed_good} without label taken as good" if data.assumed_good else ""
    return "; ".join(parts) + unlabelled
