"""The seen surfaces of a sweep, read once: features for the router, or what a detector can be trained on.

A surface at a time, so that it may be done anywhere; features are kept in one file a surface, and a sweep that is
started again does not read the images again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from sbdzsl import __version__, lake
from sbdzsl.config import TrainSettings
from sbdzsl.datasets.sample import Sample
from sbdzsl.sbad.attributes import measure_attributes
from sbdzsl.sbad.embedding import EMBEDDING_VERSION, Embedder
from sbdzsl.sbad.fit import EmbeddedImages
from sbdzsl.sbdd.checkpoint import Checkpoint, CheckpointFile
from sbdzsl.surface_training import embedded_from, embedded_tensors, load_surface
from sbdzsl.training import TrainingPlan

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EmbeddedSurface:
    """The training and validation images of a seen surface, as the router sees them.

    `attributes` is its row of the attribute table where it had to be measured from the images, else None.
    """

    train: EmbeddedImages
    val: EmbeddedImages
    attributes: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class LabelledSurface:
    """The readable training and validation images of a surface whose detector can be told good from bad."""

    samples: tuple[Sample, ...]


def with_what_is_needed(base: TrainSettings) -> TrainSettings:
    """`base` with changed copies of the images only where the promise in force asks for them: they cost most.

    Validation images are held out, whatever `base` says: a sweep judges by them.
    """
    changes: dict[str, Any] = {"calibration": "held-out"}
    changes |= {} if base.router.promise == "envelope" else {"copies": 0}
    return base.model_copy(update={"router": base.router.model_copy(update=changes)})


def embed_surface(plan: TrainingPlan, surface: str, embedder: Embedder, report: Report) -> EmbeddedSurface:
    """Read and embed one surface of the plan. Raises `DataError` "too-few-images" as training would."""
    data = load_surface(surface, plan.samples[surface], embedder, plan.settings.image, report)
    row = None
    if surface not in plan.attributes.rows:
        row = measure_attributes([image.grey for image in data.train], [image.mask for image in data.train])
    return EmbeddedSurface(data.train_embedded, data.val_embedded, row)


def check_surface(plan: TrainingPlan, surface: str, report: Report) -> LabelledSurface | None:
    """The images of one surface that can be read; None, and a line, where validation cannot tell good from bad.

    Raises `DataError` "too-few-images" as training would.
    """
    data = load_surface(surface, plan.samples[surface], None, plan.settings.image, report)
    num_defective = sum(data.val_defective)
    if num_defective in (0, len(data.val_defective)):
        kind = "defective" if not num_defective else "good"
        report(f"{surface}: no {kind} validation image, so no AP: the sweep goes without this surface")
        return None
    return LabelledSurface(tuple(one for one in plan.samples[surface] if one.uri not in set(data.skipped)))


class FeatureFile:
    """Where the features of one surface of a plan are kept; what is of other images or settings is not taken."""

    def __init__(self, plan: TrainingPlan, surface: str, report: Report) -> None:
        router = plan.settings.router
        purpose: dict[str, Any] = {
            "images": [asdict(sample) for sample in plan.samples[surface]],
            "image": plan.settings.image.model_dump(),
            "crops": (router.crop_px, router.max_crops),
            "copies": (router.copies, router.envelope.model_dump()),
            "form": 2,  # even copies stand apart from extreme ones
            "backbone": plan.backbone_digest,
            "measured": surface not in plan.attributes.rows,
            "version": (EMBEDDING_VERSION, __version__),
        }
        self._surface = surface
        url = lake.join(plan.out, f"{quote(surface, safe='')}.features")
        self._file = CheckpointFile(url, json.dumps(purpose, sort_keys=True, default=str), report)

    def save(self, embedded: EmbeddedSurface) -> None:
        """Write it, whole or not at all. Raises `LakeError`."""
        parts = {"train": embedded.train, "val": embedded.val}
        state = {
            "groups": {name: images.groups and list(images.groups) for name, images in parts.items()},
            "attributes": embedded.attributes and dict(embedded.attributes),
        }
        self._file.save(Checkpoint({name: embedded_tensors(images) for name, images in parts.items()}, state))

    def load(self) -> EmbeddedSurface | None:
        """The features; None where there are none, damaged ones or those of other images."""
        if (found := self._file.load()) is None:
            return None
        groups: Mapping[str, Sequence[str] | None] = found.state["groups"]
        train, val = (embedded_from(self._surface, found.tensors[name], groups[name]) for name in ("train", "val"))
        return EmbeddedSurface(train, val, found.state["attributes"])
