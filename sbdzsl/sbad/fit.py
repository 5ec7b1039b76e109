"""Features of seen surfaces -> a `SurfaceRouter`.

Unseen surfaces have no way in; calibration images set the threshold and nothing else.

Shapes: N training images, M calibration images, C changed copies of each, D features, K seen surfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import Promise, RouterSettings
from sbdzsl.errors import DataError
from sbdzsl.sbad.attributes import AttributeTable
from sbdzsl.sbad.ce_vae import LearnedEmbeddings
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbad.gate import SurfaceGate, fit_gate
from sbdzsl.sbad.reading import fit_reading

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddedImages:
    """Images as the backbone sees them: `features` [N, D] float32, with the name of each one's surface.

    `groups` (part or lot) name images that are not independent of each other. `copies` [N, C, D] are features of the
    same images under changed conditions (`conditions.py`); None where the envelope promise is not wanted.
    """

    features: Features
    surfaces: Sequence[str]
    groups: Sequence[str] | None = None
    copies: Features | None = None

    def __post_init__(self) -> None:
        parts = (self.surfaces, self.groups, self.copies)
        if any(part is not None and len(part) != len(self.features) for part in parts):
            raise ValueError(f"{len(self.features)} features need as many surfaces, groups and copies")


def joined(parts: Sequence[EmbeddedImages]) -> EmbeddedImages:
    """Images of several surfaces as one; without groups or copies where a part has none."""
    groups = [part.groups for part in parts if part.groups is not None]
    copies = [part.copies for part in parts if part.copies is not None]
    return EmbeddedImages(
        np.concatenate([part.features for part in parts]),
        [surface for part in parts for surface in part.surfaces],
        [group for part in groups for group in part] if len(groups) == len(parts) else None,
        np.concatenate(copies) if len(copies) == len(parts) else None,
    )


def fit_router(
    train: EmbeddedImages,
    calibration: EmbeddedImages,
    attributes: AttributeTable,
    settings: RouterSettings,
    seed: int,
    observe: Callable[[LearnedEmbeddings], object] | None = None,
) -> SurfaceRouter:
    """Fit gates and class-embedding reader on training images, thresholds on calibration images.

    The envelope promise needs copies of both: extreme ones of the training images, and of each calibration image one
    under conditions drawn evenly, which is what the promise is about; more than one would count an image twice.
    `observe` is given what the CE-VAE learnt, if there was one.
    The same arguments give the same bytes on the same machine. Raises `DataError`: `too-few-images` where a
    surface has fewer than two training images or there is no calibration image, `bad-attributes` where the table lacks
    a surface, `bad-manifest` where a calibration image is of no training surface; `TrainingError` (`not-finite`).
    """
    names = sorted({str(surface) for surface in train.surfaces})
    _check_counts(names, train.surfaces, calibration.surfaces)
    labels = np.array([names.index(surface) for surface in train.surfaces], dtype=np.int64)
    real_ce = attributes.matrix(names)
    held_out: dict[Promise, Features] = {"plain": calibration.features}
    gates: dict[Promise, SurfaceGate] = {"plain": fit_gate(train.features, labels, settings, train.groups)}
    if train.copies is not None and calibration.copies is not None:
        held_out["envelope"] = calibration.copies[:, 0]
        gates["envelope"] = fit_gate(train.features, labels, settings, train.groups, train.copies)
    reading = fit_reading(train.features, labels, real_ce, settings, seed)
    if observe is not None and reading.learnt is not None:
        observe(reading.learnt)
    reader = reading.reader()
    scores: dict[Promise, NDArray[np.float64]] = {}
    for promise, features in held_out.items():
        scored = gates[promise] if settings.score == "whitened-nn" else reader
        scores[promise] = np.array([scored.distances(row).min() for row in features])
    return SurfaceRouter(names, attributes.names, gates, reader, scores, settings)


def _check_counts(names: Sequence[str], surfaces: Sequence[str], calibration_surfaces: Sequence[str]) -> None:
    for name in names:
        found = sum(surface == name for surface in surfaces)
        if found < 2:
            raise DataError(
                "too-few-images",
                f"surface {name!r}: found {found} training image, expected at least 2 (20 or more to be reliable)",
            )
    strangers = sorted(set(calibration_surfaces) - set(names))
    if strangers or not names:
        raise DataError(
            "bad-manifest",
            f"calibration images of {strangers}: expected only surfaces with training images ({', '.join(names)}); "
            "a surface that is not trained must not set the threshold",
        )
    if not len(calibration_surfaces):
        raise DataError(
            "too-few-images",
            "found no calibration image of any surface, expected held-out images that set the threshold; "
            "add images or a validation share",
        )
