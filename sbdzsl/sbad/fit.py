"""Features of seen surfaces -> a `SurfaceRouter`.

Unseen surfaces have no way in; calibration images set the threshold and nothing else.

Shapes: N training images, M calibration images, D features, P dimensions after projection, K seen surfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import RouterSettings
from sbdzsl.errors import DataError
from sbdzsl.sbad.attributes import AttributeTable
from sbdzsl.sbad.ce_vae import LearnedEmbeddings
from sbdzsl.sbad.decision import SurfaceRouter, WhitenedNeighbours
from sbdzsl.sbad.reading import fit_reading

Features = NDArray[np.float32]
Array = NDArray[np.float64]
Labels = NDArray[np.int64]

# A surface's scale is this quantile of the distances between its own images, and as uncertain as `_SCALE_PRIOR` images.
_SCALE_QUANTILE = 0.8
_SCALE_PRIOR = 10.0
# Spread below this share of the largest counts as none: it is rounding, and dividing by it would blow rounding up.
_RELATIVE_FLOOR = 1e-6


def fit_router(
    features: Features,
    surfaces: Sequence[str],
    calibration_features: Features,
    calibration_surfaces: Sequence[str],
    attributes: AttributeTable,
    settings: RouterSettings,
    seed: int,
    groups: Sequence[str] | None = None,
    observe: Callable[[LearnedEmbeddings], object] | None = None,
) -> SurfaceRouter:
    """Fit both scores and the class-embedding reader on training images, the threshold on calibration images.

    `features` [N, D] and `calibration_features` [M, D] float32, with one surface name each; `groups` (part or lot)
    name training images that are not independent of each other: a surface's scale is then measured between groups.
    `observe` is given what the CE-VAE learnt, if there was one.
    The same arguments give the same bytes on the same machine. Raises `DataError`: `too-few-images` where a
    surface has fewer than two training images or there is no calibration image, `bad-attributes` where the table lacks
    a surface, `bad-manifest` where a calibration image is of no training surface; `TrainingError` (`not-finite`).
    """
    names = sorted({str(surface) for surface in surfaces})
    _check_counts(names, surfaces, calibration_surfaces)
    if len(features) != len(surfaces) or len(calibration_features) != len(calibration_surfaces):
        raise ValueError("features and surfaces must have the same length")
    labels = np.array([names.index(surface) for surface in surfaces], dtype=np.int64)
    real_ce = attributes.matrix(names)
    neighbours = fit_neighbours(features, labels, settings, groups)
    reading = fit_reading(features, labels, real_ce, settings, seed)
    if observe is not None and reading.learnt is not None:
        observe(reading.learnt)
    reader = reading.reader()
    gate = neighbours if settings.score == "whitened-nn" else reader
    scores = np.array([gate.distances(row).min() for row in calibration_features])
    return SurfaceRouter(names, attributes.names, neighbours, reader, scores, settings)


def fit_neighbours(
    features: Features, labels: Labels, settings: RouterSettings, groups: Sequence[str] | None = None
) -> WhitenedNeighbours:
    """z-score, PCA to `pca_dims`, whitening by the shrunk within-class covariance, scale of each surface.

    `features` [N, D], `labels` [N] in 0..K-1, each at least twice.
    """
    x = features.astype(np.float64)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    varies = spread > _RELATIVE_FLOOR * (np.abs(centre) + 1)
    inverse_spread = np.divide(1.0, spread, out=np.zeros_like(spread), where=varies)
    z = (x - centre) * inverse_spread
    axes = _principal_axes(z, settings.pca_dims)
    whitening = _whitening(z @ axes, labels, settings.shrinkage)
    # Rounded to what is stored, so that a loaded router gives the same bits.
    projection = (inverse_spread[:, None] * (axes @ whitening)).astype(np.float32)
    bank = ((x - centre.astype(np.float32)) @ projection.astype(np.float64)).astype(np.float32)
    scales = _surface_scales(bank.astype(np.float64), labels, groups)
    return WhitenedNeighbours(centre.astype(np.float32), projection, bank, labels, scales.astype(np.float32))


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


def _principal_axes(z: Array, dims: int) -> Array:
    """[N, D] centred -> [D, P]: the directions of largest variance, P <= dims as far as the data carry them."""
    _, strengths, axes = np.linalg.svd(z, full_matrices=False)
    carried = int((strengths > _RELATIVE_FLOOR * strengths[0]).sum()) if strengths[0] > 0 else 0
    return axes[: max(1, min(dims, carried))].T


def _whitening(projected: Array, labels: Labels, shrinkage: float) -> Array:
    """[N, P] -> [P, P]: turns the covariance within surfaces, shrunk towards a multiple of the identity, into I."""
    deviations = projected.copy()
    for surface in range(labels.max() + 1):
        deviations[labels == surface] -= projected[labels == surface].mean(axis=0)
    freedom = max(len(projected) - (labels.max() + 1), 1)
    covariance = deviations.T @ deviations / freedom
    dims = len(covariance)
    typical = float(np.trace(covariance)) / dims
    if typical == 0:  # all images of each surface are alike: there is no spread to whiten
        return np.eye(dims)
    covariance = (1 - shrinkage) * covariance + shrinkage * typical * np.eye(dims)
    variances, directions = np.linalg.eigh(covariance)
    floor = max(_RELATIVE_FLOOR * variances[-1], np.finfo(np.float64).tiny)
    return directions / np.sqrt(np.maximum(variances, floor))


def _surface_scales(bank: Array, labels: Labels, groups: Sequence[str] | None) -> Array:
    """[K]: 80 % quantile of the distances of a surface's images to their nearest of another image, or group.

    Shrunk by 10 images' weight towards the scale over all surfaces, which also stands in for a surface with one group.
    If no surface has two groups, groups say nothing and images are taken for independent.
    """
    group_numbers = np.arange(len(labels))
    if groups is not None:
        numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
        if any(len(np.unique(numbers[labels == surface])) > 1 for surface in np.unique(labels)):
            group_numbers = numbers
    per_surface = []
    for surface in range(labels.max() + 1):
        own, group = bank[labels == surface], group_numbers[labels == surface]
        apart = np.linalg.norm(own[:, None] - own[None, :], axis=2)
        apart[group[:, None] == group[None, :]] = np.inf
        nearest = apart.min(axis=1)
        per_surface.append(nearest[np.isfinite(nearest)])
    pooled = float(np.quantile(np.concatenate(per_surface), _SCALE_QUANTILE))
    scales = []
    for nearest in per_surface:
        own_scale = float(np.quantile(nearest, _SCALE_QUANTILE)) if len(nearest) else pooled
        scales.append((len(nearest) * own_scale + _SCALE_PRIOR * pooled) / (len(nearest) + _SCALE_PRIOR))
    # Images that are all alike have no spread; any positive scale then calls every other image far away.
    return np.maximum(scales, np.finfo(np.float32).eps)
