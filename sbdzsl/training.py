"""Manifests to bundle in one process: each surface's images are decoded once, for the router and for its detector.

The steps are functions of their own (`load_surface`, `train_detector`, `train_router`), so that a cluster can spread
them. Nothing of an unseen surface is read: its rows are dropped before the first image is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.bundle import MAX_REFERENCE, Bundle, Reference, SurfaceDetector
from sbdzsl.calibration import fit_platt
from sbdzsl.config import DetectorSettings, ImageSettings, Promise, TrainSettings
from sbdzsl.datasets.sample import Sample, load_mask, samples_from_table
from sbdzsl.errors import BundleError, DataError, ImageError, LakeError
from sbdzsl.image import Appearance, decode
from sbdzsl.robustness import robustness
from sbdzsl.sbad import plots
from sbdzsl.sbad.attributes import AttributeTable, load_attributes, measure_attributes, standard_attributes
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.ce_vae import LearnedEmbeddings
from sbdzsl.sbad.conditions import changed_copies
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import EmbeddedImages, fit_router, joined
from sbdzsl.sbdd.curves import curves_png
from sbdzsl.sbdd.fit import Progress, TrainingImage, fit_detector

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


def train(
    manifest: pa.Table,
    out: str,
    settings: TrainSettings,
    seed: int = 0,
    unseen: Sequence[str] = (),
    device: str = "cpu",
    report: Report = print,
) -> Bundle:
    """Train both stages on the `train` rows of a manifest, calibrate on its `val` rows, write a bundle to `out`.

    Surfaces in `unseen` and `test` rows are not read. `report` takes lines of progress. An interrupted training goes
    on from its checkpoints in `out`/training by the same call; finished detectors are not trained again. The curves of
    each detector and two pictures of the class embeddings stay there as PNG. Raises `DataError`, `BundleError`
    ("bundle-exists") before any work, `TrainingError` at a loss that is not finite.
    """
    if bundles.exists(out):
        raise BundleError("bundle-exists", f"{out} holds a bundle already; choose another --bundle or remove it first")
    by_surface = training_samples(manifest, unseen)
    attributes = _attribute_table(settings.attributes, by_surface)
    trunk = load_backbone(settings.router.backbone, settings.router.stages, settings.router.crop_px)
    embedder = Embedder(trunk, settings.router, device)
    detectors: dict[str, SurfaceDetector] = {}
    collected: list[SurfaceData] = []
    for number, (surface, samples) in enumerate(by_surface.items(), start=1):
        data = load_surface(surface, samples, embedder, settings.image, report)
        report(f"[{number}/{len(by_surface)}] {surface}: {_counts(data)}")
        attributes = _with_row(attributes, data, report)
        checkpoint = training_file(out, surface, "checkpoint")
        detectors[surface], history = train_detector(
            data, settings.detector_for(surface), seed, device, report, checkpoint
        )
        lake.write_bytes(training_file(out, surface, "png"), curves_png(surface, history))
        # The router needs the features only; the pixels of all surfaces at once may not fit in memory.
        collected.append(_without_pixels(data))
    report("router: class embeddings and what reads them")
    learnt: list[LearnedEmbeddings] = []
    router = train_router(collected, attributes, settings, seed, learnt.append)
    for one in learnt:
        pictures = {
            "class_embeddings": plots.embeddings_png(one, router.surfaces, router.attribute_names),
            "latent_space": plots.latent_png(one, router.surfaces),
        }
        for name, picture in pictures.items():
            lake.write_bytes(lake.join(out, "training", "router", f"{name}.png"), picture)
    report(_router_line(router))
    provenance = {
        "data_digest": lake.manifest_digest(manifest, lake.MANIFEST_SCHEMA.names),
        "seed": seed,
        "held_out_as_unseen": sorted(unseen),
        "images": {
            data.surface: {"train": len(data.train_embedded.features), "val": len(data.val_embedded.features)}
            for data in collected
        },
        "skipped": {data.surface: list(data.skipped) for data in collected if data.skipped},
        "assumed_good": {data.surface: data.assumed_good for data in collected if data.assumed_good},
    }
    references = {data.surface: make_reference(data, unseen_scores(router, data)) for data in collected}
    bundle = bundles.save(out, settings, trunk, router, detectors, references, provenance)
    for surface in detectors:
        lake.remove(training_file(out, surface, "checkpoint"))
    return bundle


def load_surface(
    surface: str,
    samples: Sequence[Sample],
    embedder: Embedder | None,
    settings: ImageSettings,
    report: Report = print,
    min_train: int = MIN_TRAIN_IMAGES,
) -> SurfaceData:
    """Decode and embed the train and val images of one surface; without an `embedder` the features are empty, [n, 0].

    An image that cannot be read is reported and left out. An image without a label counts as good, and is counted.
    Raises `DataError` "too-few-images" where fewer than `min_train` training images are left, or none to validate on.
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
    if len(images["train"]) < min_train or not images["val"]:
        raise DataError(
            "too-few-images",
            f"surface {surface!r}: {len(images['train'])} readable training and {len(images['val'])} validation "
            f"images; at least {min_train} and 1 are needed",
        )
    return SurfaceData(
        surface=surface,
        train=tuple(images["train"]),
        val=tuple(images["val"]),
        train_embedded=embed_images(surface, images["train"], groups["train"], embedder, extreme=True),
        val_embedded=embed_images(surface, images["val"], groups["val"], embedder, extreme=False),
        val_appearances=tuple(appearances),
        val_defective=tuple(image.defective for image in images["val"]),
        skipped=tuple(skipped),
        assumed_good=sum(sample.label is None for sample in samples),
    )


def embed_images(
    surface: str, images: Sequence[TrainingImage], groups: Sequence[str], embedder: Embedder | None, *, extreme: bool
) -> EmbeddedImages:
    """Features of images of one surface, and of changed copies of them if the embedder's settings want any.

    `extreme` copies, as many as the settings say, are for fitting; otherwise there is one, drawn evenly, for
    calibration. Without an `embedder` features are empty, [n, 0].
    """
    names = [surface] * len(images)
    if embedder is None:
        return EmbeddedImages(np.empty((len(images), 0), np.float32), names, groups)
    settings = embedder.settings
    number = settings.copies if extreme else min(settings.copies, 1)
    copies = [
        [
            embedder.embed(copy)
            for copy in changed_copies(image.grey, settings.envelope, number, (extreme, place), extreme=extreme)
        ]
        for place, image in enumerate(images)
    ]
    features = np.stack([embedder.embed(image.grey) for image in images])
    return EmbeddedImages(features, names, groups, np.array(copies, dtype=np.float32) if number else None)


def train_detector(
    data: SurfaceData,
    settings: DetectorSettings,
    seed: int,
    device: str = "cpu",
    report: Report = print,
    checkpoint_url: str | None = None,
) -> tuple[SurfaceDetector, tuple[Progress, ...]]:
    """Train one surface's SBDD, calibrated on the surface's validation images, and how its epochs went."""

    def show(progress: Progress) -> None:
        if progress.val_ap is not None or progress.epoch == progress.epochs:
            ap = "" if progress.val_ap is None else f", validation AP {progress.val_ap:.3f}"
            losses = f"segmentation {progress.segmentation_loss:.3f}, decision {progress.decision_loss:.3f}"
            report(f"  epoch {progress.epoch}/{progress.epochs}, {progress.seconds:.0f} s: {losses}{ap}")

    fitted = fit_detector(data.train, data.val, settings, seed, show, device, checkpoint_url, report)
    labels = np.array([image.defective for image in data.val])
    scores = np.array([fitted.detector.detect(image.grey).score for image in data.val], dtype=np.float64)
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


def train_router(
    surfaces: Sequence[SurfaceData],
    attributes: AttributeTable,
    settings: TrainSettings,
    seed: int,
    observe: Callable[[LearnedEmbeddings], object] | None = None,
) -> SurfaceRouter:
    """Fit SBAD on the training features of all seen surfaces, calibrate it on their validation features.

    `observe` is given what the CE-VAE learnt, if there was one.
    """
    return fit_router(
        joined([data.train_embedded for data in surfaces]),
        joined([data.val_embedded for data in surfaces]),
        attributes,
        settings.router,
        seed,
        observe,
    )


def make_reference(data: SurfaceData, scores: Mapping[Promise, Sequence[float]]) -> Reference:
    """What drift is measured against: the surface's good validation images, and the `scores` that the router gave."""
    kept = [data.val_appearances[i] for i in _kept_good(data)]
    return Reference(
        brightness=tuple(one.brightness for one in kept),
        sharpness=tuple(one.sharpness for one in kept),
        unseen_scores={promise: tuple(values) for promise, values in scores.items()},
    )


def unseen_scores(router: SurfaceRouter, data: SurfaceData) -> dict[Promise, list[float]]:
    """Under each promise the unseen scores of good validation images, which the router must not have learnt from."""
    features = [data.val_embedded.features[i] for i in _kept_good(data)]
    return {
        promise: [router.promising(promise).route(row).unseen_score for row in features] for promise in router.gates
    }


def _kept_good(data: SurfaceData) -> list[int]:
    """Numbers of the good validation images, of at most `MAX_REFERENCE`, spread over all."""
    good = [number for number, defective in enumerate(data.val_defective) if not defective]
    return good[:: -(-len(good) // MAX_REFERENCE)] if good else []


def training_samples(manifest: pa.Table, unseen: Sequence[str]) -> dict[str, list[Sample]]:
    """Train and val rows of the seen surfaces, by surface.

    Raises `DataError`: "bad-manifest" for an unseen surface that is not there or rows without surface or split,
    "too-few-images" if no surface is left.
    """
    samples = samples_from_table(manifest)
    known = sorted({sample.surface for sample in samples if sample.surface})
    strangers = sorted(set(unseen) - set(known))
    if strangers:
        raise DataError("bad-manifest", f"--unseen names {strangers}; the manifests hold {known}")
    nameless = [sample.uri for sample in samples if sample.surface is None or sample.split is None]
    if nameless:
        raise DataError(
            "bad-manifest",
            f"{len(nameless)} rows have no surface or no split, such as {nameless[0]}; "
            "make the manifest by `sbdzsl ingest`",
        )
    by_surface: dict[str, list[Sample]] = {name: [] for name in known if name not in set(unseen)}
    for sample in samples:
        if sample.surface in by_surface and sample.split in ("train", "val"):
            by_surface[sample.surface].append(sample)
    if not by_surface:
        raise DataError("too-few-images", "no surface is left to learn: all of them are named by --unseen")
    return by_surface


def _attribute_table(uri: str | None, surfaces: Iterable[str]) -> AttributeTable:
    """The table of the settings. One with attributes of its own must have all rows: ours alone can be measured."""
    table = load_attributes(uri)
    if table.names != standard_attributes().names:
        table.matrix(sorted(surfaces))
    return table


def _with_row(attributes: AttributeTable, data: SurfaceData, report: Report) -> AttributeTable:
    """The table with a row for this surface: a surface that nobody has annotated is measured, and that is said."""
    if data.surface in attributes.rows:
        return attributes
    row = measure_attributes([image.grey for image in data.train], [image.mask for image in data.train])
    report(f"  {data.surface}: not in the attribute table; its class embedding is measured from the training images")
    return attributes.with_row(data.surface, row)


def _router_line(router: SurfaceRouter) -> str:
    found = router.calibrated
    assert found.promised_rate is not None
    assert found.rate_interval is not None
    low, high = found.rate_interval
    return (
        f"  threshold {found.value:.3f} from {found.num_good} held-out images: at most {found.promised_rate:.1%} of "
        f"images of seen surfaces are called unseen; drawn anew, the rate would lie between {low:.1%} and {high:.1%}"
    )


def training_file(out: str, surface: str, kind: Literal["checkpoint", "png"]) -> str:
    """Where the training of a surface's detector keeps its checkpoint or its curves, below the bundle `out`."""
    return lake.join(out, "training", f"{quote(surface, safe='')}.{kind}")


def _without_pixels(data: SurfaceData) -> SurfaceData:
    return replace(data, train=(), val=())


def _counts(data: SurfaceData) -> str:
    parts = []
    for name, images in (("training", data.train), ("validation", data.val)):
        defective = sum(image.defective for image in images)
        masked = sum(image.mask is not None for image in images)
        parts.append(f"{name} {len(images) - defective} good, {defective} defective ({masked} with mask)")
    unlabelled = f"; {data.assumed_good} without label taken as good" if data.assumed_good else ""
    return "; ".join(parts) + unlabelled
