"""Manifests to bundle: each surface's images are decoded once, for the router and for its detector.

    plan_training -> train_surface for each surface -> conclude

`train` goes through them in one process; `cluster.train` spreads the middle step over a cluster. Nothing of an unseen
surface is read: its rows are dropped before the first image is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from sbdzsl import __version__, lake
from sbdzsl import bundle as bundles
from sbdzsl.bundle import Bundle, Reference, some_for_reference
from sbdzsl.config import Promise, TrainSettings
from sbdzsl.datasets.sample import Sample, samples_from_table
from sbdzsl.errors import BundleError, DataError
from sbdzsl.sbad.attributes import AttributeTable, load_attributes, measure_attributes, standard_attributes
from sbdzsl.sbad.backbone import load_backbone, restore_backbone
from sbdzsl.sbad.ce_vae import LearnedEmbeddings
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import FittedRouter, fit_router, joined
from sbdzsl.sbdd.fit import Progress
from sbdzsl.sbdd.team import ALONE, Team
from sbdzsl.surface_training import (
    Report,
    SurfaceData,
    TrainedFile,
    TrainedSurface,
    describe_images,
    load_surface,
    remove_unfinished,
    train_detector,
    training_file,
    without_pixels,
    write_curves,
)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What is to be trained, as plain data: all that can be checked before the first image is read has been.

    `samples` are the train and val images of each surface. The backbone is its card and tensors, so that whoever
    trains a surface needs no look at disk or network for it. `provenance` is what the bundle will say of the data.
    """

    out: str
    settings: TrainSettings
    seed: int
    samples: Mapping[str, Sequence[Sample]]
    attributes: AttributeTable
    backbone_card: Mapping[str, Any]
    backbone_tensors: Mapping[str, Tensor]
    backbone_digest: str
    provenance: Mapping[str, Any]

    @property
    def surfaces(self) -> tuple[str, ...]:
        """Names of the surfaces to train, sorted."""
        return tuple(self.samples)

    def place(self, surface: str) -> str:
        """How lines of progress begin that tell of this surface."""
        return f"[{self.surfaces.index(surface) + 1}/{len(self.samples)}] {surface}"

    def embedder(self, device: str = "cpu") -> Embedder:
        """The frozen feature extractor on a device."""
        backbone = restore_backbone(self.backbone_card, self.backbone_tensors)
        return Embedder(backbone, self.settings.router, device)

    def key(self, surface: str) -> str:
        """Digest of all that a surface's training follows from: images, labels, settings, seed, version."""
        settings = self.settings
        purpose = {
            "images": [asdict(sample) for sample in self.samples[surface]],
            "image": settings.image.model_dump(),
            "router": settings.router.model_dump(),
            "detector": settings.detector_for(surface).model_dump(),
            "backbone": self.backbone_digest,
            "measured": surface not in self.attributes.rows,
            "seed": self.seed,
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(purpose, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Short digest of the keys of all surfaces: another one for other data or settings."""
        keys = json.dumps({surface: self.key(surface) for surface in self.surfaces})
        return hashlib.sha256(keys.encode()).hexdigest()[:16]

    def trained_file(self, surface: str, report: Report) -> TrainedFile:
        """Where a surface is kept once it is trained."""
        return TrainedFile(training_file(self.out, surface, "trained"), self.key(surface), report)


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
    on from what it left in `out`/training by the same call; finished surfaces are not trained again. The curves of
    each detector and two pictures of the class embeddings stay there as PNG. Raises `DataError`, `BundleError`
    ("bundle-exists") before any work, `TrainingError` at a loss that is not finite.
    """
    plan = plan_training(manifest, out, settings, seed, unseen)
    embedder = plan.embedder(device)
    return conclude(plan, [train_surface(plan, surface, embedder, report) for surface in plan.surfaces], report)


def plan_training(
    manifest: pa.Table, out: str, settings: TrainSettings, seed: int = 0, unseen: Sequence[str] = ()
) -> TrainingPlan:
    """Check what is asked for and list it. Raises `DataError`, `BundleError` ("bundle-exists"), `ConfigError`."""
    if bundles.exists(out):
        raise BundleError("bundle-exists", f"{out} holds a bundle already; choose another --bundle or remove it first")
    samples = training_samples(manifest, unseen)
    for surface in samples:
        settings.detector_for(surface)
    backbone = load_backbone(settings.router.backbone, settings.router.stages, settings.router.crop_px)
    provenance = {
        "data_digest": lake.manifest_digest(manifest, lake.MANIFEST_SCHEMA.names),
        "seed": seed,
        "held_out_as_unseen": sorted(unseen),
    }
    attributes = _attribute_table(settings.attributes, samples)
    return TrainingPlan(
        out=out,
        settings=settings,
        seed=seed,
        samples=samples,
        attributes=attributes,
        backbone_card=backbone.card(),
        backbone_tensors=backbone.tensors(),
        backbone_digest=backbone.digest,
        provenance=provenance,
    )


def train_surface(
    plan: TrainingPlan,
    surface: str,
    embedder: Embedder,
    report: Report = print,
    progress: Callable[[Progress], None] | None = None,
    team: Team = ALONE,
) -> TrainedSurface:
    """Load, embed and train one surface and keep the outcome in `plan.out`/training; one that is kept is taken.

    An interrupted training of its detector goes on from its checkpoint. `progress` as in `train_detector`. Each process
    of a `team` calls this, and all get the same; the first one keeps it.
    """
    device = str(embedder.device)
    file = plan.trained_file(surface, report)
    if (kept := team.from_first(file.load(device) if team.is_first else None)) is not None:
        report(f"{plan.place(surface)}: trained already")
        return kept
    data = load_surface(surface, plan.samples[surface], embedder, plan.settings.image, report, team=team)
    report(f"{plan.place(surface)}: {describe_images(data)}")
    row = None
    if surface not in plan.attributes.rows:
        row = measure_attributes([image.grey for image in data.train], [image.mask for image in data.train])
        report(f"  {surface}: not in the attribute table; its class embedding is measured from the training images")
    checkpoint = training_file(plan.out, surface, "checkpoint")
    settings = plan.settings.detector_for(surface)
    detector, history = train_detector(data, settings, plan.seed, device, report, checkpoint, progress, team)
    trained = TrainedSurface(without_pixels(data), detector, row)
    if team.is_first:
        write_curves(plan.out, surface, history)
        file.save(trained)
    return trained


def conclude(
    plan: TrainingPlan,
    trained: Sequence[TrainedSurface],
    report: Report = print,
    missing: Mapping[str, str] | None = None,
) -> Bundle:
    """Train the router on what the surfaces brought, write the bundle, clear what only an unfinished training needs.

    `trained` in the order of the plan. `missing` are surfaces that the bundle does without, and why, which it says.
    """
    report("router: class embeddings and what reads them")
    attributes = plan.attributes
    for one in trained:
        if one.attributes is not None:
            attributes = attributes.with_row(one.data.surface, one.attributes)
    learnt: list[LearnedEmbeddings] = []
    collected = [one.data for one in trained]
    fitted = train_router(collected, attributes, plan.settings, plan.seed, learnt.append)
    router = fitted.router
    for embeddings in learnt:
        from sbdzsl.sbad import plots  # here, since it draws: a service, which loads this module, never does

        pictures = {
            "class_embeddings": plots.embeddings_png(embeddings, router.surfaces, router.attribute_names),
            "latent_space": plots.latent_png(embeddings, router.surfaces),
        }
        for name, picture in pictures.items():
            lake.write_bytes(lake.join(plan.out, "training", "router", f"{name}.png"), picture)
    report(_router_line(router))
    provenance = {
        **plan.provenance,
        "images": {
            data.surface: {"train": len(data.train_embedded.features), "val": len(data.val_embedded.features)}
            for data in collected
        },
        "skipped": {data.surface: list(data.skipped) for data in collected if data.skipped},
        "assumed_good": {data.surface: data.assumed_good for data in collected if data.assumed_good},
    }
    if missing:
        provenance["missing"] = dict(missing)
    detectors = {one.data.surface: one.detector for one in trained}
    references = make_references(collected, fitted)
    backbone = restore_backbone(plan.backbone_card, plan.backbone_tensors)
    bundle = bundles.save(plan.out, plan.settings, backbone, router, detectors, references, provenance)
    remove_unfinished(plan.out, plan.surfaces)
    return bundle


def train_router(
    surfaces: Sequence[SurfaceData],
    attributes: AttributeTable,
    settings: TrainSettings,
    seed: int,
    observe: Callable[[LearnedEmbeddings], object] | None = None,
) -> FittedRouter:
    """Fit SBAD on the features of all seen surfaces, calibrated as `settings.router.calibration` says.

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


def make_references(surfaces: Sequence[SurfaceData], fitted: FittedRouter) -> dict[str, Reference]:
    """The reference of each surface; `fitted` was calibrated on the validation images of `surfaces`, in their order."""
    references, first = {}, 0
    for data in surfaces:
        places = [first + number for number in _kept_good(data)]
        scores = {
            promise: [float(score) for score in of[places] if np.isfinite(score)]
            for promise, of in fitted.unseen_scores.items()
        }
        references[data.surface] = make_reference(data, scores)
        first += len(data.val_embedded.features)
    return references


def _kept_good(data: SurfaceData) -> Sequence[int]:
    """Numbers of the good validation images, of at most `MAX_REFERENCE`, spread over all."""
    good = [number for number, defective in enumerate(data.val_defective) if not defective]
    return some_for_reference(good)


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


def _router_line(router: SurfaceRouter) -> str:
    found = router.calibrated
    assert found.promised_rate is not None
    assert found.rate_interval is not None
    low, high = found.rate_interval
    return (
        f"  threshold {found.value:.3f} from {found.num_good} images: at most {found.promised_rate:.1%} of "
        f"images of seen surfaces are called unseen; drawn anew, the rate would lie between {low:.1%} and {high:.1%}"
    )
