"""Features of seen surfaces -> a `SurfaceRouter`.

Unseen surfaces have no way in. Calibration images set the threshold, in one of two ways (`settings.calibration`):

- held-out: they do nothing else, and nothing else does.
- cross-fitted: the router's gate learns all images, and each counts with the score of a gate that did not learn its
  fold (`gate.py`). More images for the gate and for the threshold alike; the gates that set it know a fifth less than
  the one it is for, which errs towards fewer false alarms (cross-conformal prediction, Vovk 2015).

Shapes: N training images, M calibration images, C changed copies of each, D features, K seen surfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import Promise, RouterSettings
from sbdzsl.errors import DataError
from sbdzsl.sbad.attributes import AttributeTable
from sbdzsl.sbad.ce_vae import LearnedEmbeddings
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbad.gate import FittedGate, Labels, SurfaceGate, fit_gate
from sbdzsl.sbad.reading import fit_reading

Features = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EmbeddedImages:
    """Images as the backbone sees them: `features` [N, D] float32, with the name of each one's surface.

    `groups` (part or lot) name images that are not independent of each other. For the envelope promise, where it is
    wanted: `copies` [N, C, D], features of the same images under changed conditions (`conditions.py`), extreme ones,
    which a gate learns; `even` [N, D], of one copy each under conditions drawn evenly, by which it is judged. That is
    what the promise is about, and more than one would count an image twice.
    """

    features: Features
    surfaces: Sequence[str]
    groups: Sequence[str] | None = None
    copies: Features | None = None
    even: Features | None = None

    def __post_init__(self) -> None:
        parts = (self.surfaces, self.groups, self.copies, self.even)
        if any(part is not None and len(part) != len(self.features) for part in parts):
            raise ValueError(f"{len(self.features)} features need as many surfaces, groups and copies")


@dataclass(frozen=True, slots=True)
class FittedRouter:
    """A router, and the `unseen_scores` [M] of the calibration images as they are, under each of its promises.

    They are those of a gate that did not learn the image: what new images of the surfaces will show. NaN where every
    gate had to learn it.
    """

    router: SurfaceRouter
    unseen_scores: Mapping[Promise, Scores]


def joined(parts: Sequence[EmbeddedImages]) -> EmbeddedImages:
    """Images of several surfaces as one; without groups or copies where a part has none."""
    groups = [part.groups for part in parts if part.groups is not None]
    copies = [part.copies for part in parts if part.copies is not None]
    even = [part.even for part in parts if part.even is not None]
    return EmbeddedImages(
        np.concatenate([part.features for part in parts]),
        [surface for part in parts for surface in part.surfaces],
        [group for part in groups for group in part] if len(groups) == len(parts) else None,
        np.concatenate(copies) if len(copies) == len(parts) else None,
        np.concatenate(even) if len(even) == len(parts) else None,
    )


def fit_router(
    train: EmbeddedImages,
    calibration: EmbeddedImages,
    attributes: AttributeTable,
    settings: RouterSettings,
    seed: int,
    observe: Callable[[LearnedEmbeddings], object] | None = None,
) -> FittedRouter:
    """Fit gates, thresholds and class-embedding reader. The reader learns training images alone.

    The router has the envelope promise where training images have `copies`, all have `even` ones, and calibration
    images have `copies` too if they are cross-fitted. The rule of the paper is always held out: it takes too long to
    fit. `observe` is given what the CE-VAE learnt, if there was one.
    The same arguments give the same bytes on the same machine. Raises `DataError`: `too-few-images` where a
    surface has fewer than two training images or there is no calibration image, `bad-attributes` where the table lacks
    a surface, `bad-manifest` where a calibration image is of no training surface; `TrainingError` (`not-finite`).
    """
    names = sorted({str(surface) for surface in train.surfaces})
    _check_counts(names, train.surfaces, calibration.surfaces)
    real_ce = attributes.matrix(names)
    fit = _cross_fitted if settings.is_cross_fitted else _held_out
    found: dict[Promise, _Calibrated] = {
        "plain": fit(_without_copies(train), _without_copies(calibration), names, settings)
    }
    needed = [train.copies, train.even, calibration.even, *([calibration.copies] if settings.is_cross_fitted else [])]
    if all(one is not None for one in needed):
        found["envelope"] = fit(train, calibration, names, settings)
    reading = fit_reading(train.features, _labels(train, names), real_ce, settings, seed)
    if observe is not None and reading.learnt is not None:
        observe(reading.learnt)
    reader = reading.reader()
    if settings.score == "paper":
        found = {
            promise: _Calibrated(one.gate, *_judged(reader.distances, calibration, promise == "envelope"))
            for promise, one in found.items()
        }
    gates = {promise: one.gate for promise, one in found.items()}
    thresholds = {promise: one.threshold_scores for promise, one in found.items()}
    router = SurfaceRouter(names, attributes.names, gates, reader, thresholds, settings)
    return FittedRouter(router, {promise: one.unseen_scores for promise, one in found.items()})


@dataclass(frozen=True, slots=True)
class _Calibrated:
    """A gate with the scores that set its threshold, and those of the calibration images as they are [M]."""

    gate: SurfaceGate
    threshold_scores: Scores
    unseen_scores: Scores


def _without_copies(images: EmbeddedImages) -> EmbeddedImages:
    return EmbeddedImages(images.features, images.surfaces, images.groups)


def _labels(images: EmbeddedImages, names: Sequence[str]) -> Labels:
    return np.array([names.index(surface) for surface in images.surfaces], dtype=np.int64)


def _judged(
    distances: Callable[[Features], Scores], images: EmbeddedImages, under_change: bool
) -> tuple[Scores, Scores]:
    """Unseen scores of images as the promise is about them, and as they are."""
    plain = np.array([distances(row).min() for row in images.features])
    if not under_change or images.even is None:
        return plain, plain
    return np.array([distances(row).min() for row in images.even]), plain


def _fitted(images: EmbeddedImages, names: Sequence[str], settings: RouterSettings) -> FittedGate:
    return fit_gate(images.features, _labels(images, names), settings, images.groups, images.copies, images.even)


def _held_out(
    train: EmbeddedImages, calibration: EmbeddedImages, names: Sequence[str], settings: RouterSettings
) -> _Calibrated:
    gate = _fitted(train, names, settings).gate
    return _Calibrated(gate, *_judged(gate.distances, calibration, train.copies is not None))


def _cross_fitted(
    train: EmbeddedImages, calibration: EmbeddedImages, names: Sequence[str], settings: RouterSettings
) -> _Calibrated:
    fitted = _fitted(joined([train, calibration]), names, settings)
    return _Calibrated(fitted.gate, fitted.threshold_scores, fitted.plain[len(train.features) :])


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
