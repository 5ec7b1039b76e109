"""How far an image is from each surface, in the spread of that surface: the score that tells seen from unseen.

Shapes: N training images, C changed copies of each, D features, P dimensions after projection, K seen surfaces.

1. z-score, PCA, and whitening by the covariance within surfaces: on the mean over surfaces, spread is 1 everywhere.
2. There, surface k has a covariance of its own, shrunk towards the mean one: (R'R + prior I) / (n + prior), with R its
   n images about their mean. A cast surface may vary in light and a woven one in scale; neither lends it to the other.
3. d_k: distance to the nearest image of the surface under its own covariance. One neighbour and not the third, since a
   surface's images come in small groups (one light, one lot).
4. z_k = (log d_k - m_k) / s_k, where m_k and s_k are mean and deviation of log d_k over the surface's own images, each
   left out in turn with its group. Surfaces that vary much and little then share one threshold.

With changed copies (`conditions.py`) the same is done under the promise that conditions change: their scatter widens
both covariances, they join the bank, and they are left out like images. Arithmetic is float64 without BLAS where an
image is judged, so that a score does not depend on batch or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import RouterSettings

Array = NDArray[np.float64]
Stored = NDArray[np.float32]
Labels = NDArray[np.int64]

# Weight of the copies' scatter in the mean covariance and in a surface's own.
_COPIES_POOLED, _COPIES_OWN = 0.3, 1.0
# Log distances: a surface's mean is as uncertain as so many images', its deviation as so many.
_MEAN_PRIOR, _DEVIATION_PRIOR = 5.0, 150.0
# Left-out distances of a surface whose images are all alike have no spread; 5 % is what any camera's noise gives.
_MIN_DEVIATION = 0.05
_MIN_DISTANCE = 1e-9
_FOLDS = 5
# Spread below this share of the largest counts as none: it is rounding, and dividing by it would blow rounding up.
RELATIVE_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class SurfaceGate:
    """The bank of training images with the metric of each surface.

    `centre` [D] and `projection` [D, P] are z-score, PCA and pooled whitening in one; `own` [K, P, P] whitens by a
    surface's own covariance; `bank` [M, P] holds the projected images and copies, whitened by their own surface;
    `labels` [M] int64 are their surfaces; `log_means` and `log_deviations` [K] are m and s.
    """

    centre: Stored
    projection: Stored
    own: Stored
    bank: Stored
    labels: Labels
    log_means: Stored
    log_deviations: Stored

    def project(self, features: Stored) -> Array:
        """[D] -> [P], before any surface's own whitening."""
        return np.einsum("d,dp->p", features.astype(np.float64) - self.centre, self.projection.astype(np.float64))

    def distances(self, features: Stored) -> Array:
        """[D] -> z [K], in deviations: about 0 for an image of the surface, large for a stranger; may be negative."""
        whitened = np.einsum("p,kpq->kq", self.project(features), self.own.astype(np.float64))
        squared = np.square(self.bank - whitened[self.labels]).sum(axis=1)
        nearest = np.full(len(self.log_means), np.inf)
        np.minimum.at(nearest, self.labels, squared)
        return (_log(np.sqrt(nearest)) - self.log_means) / self.log_deviations

    def with_surface(
        self,
        features: Stored,
        settings: RouterSettings,
        groups: Sequence[str] | None = None,
        copies: Stored | None = None,
    ) -> SurfaceGate:
        """The gate with one more surface, numbered last, by its images' `features` [n, D], n at least 2.

        `copies` [n, C, D] as the gate was fitted with. All that it knew stays as it is, to the bit.
        """
        images = _Images(
            np.stack([self.project(row) for row in features]),
            None if copies is None else np.stack([[self.project(row) for row in rows] for rows in copies]),
        )
        numbers = group_numbers(np.zeros(len(features), dtype=np.int64), groups)
        left_out = _left_out(images, numbers, settings.own_prior)
        mean, deviation = _shrunk(
            left_out, float(self.log_means.mean()), float(np.square(self.log_deviations).mean()) ** 0.5
        )
        own = _own_whitening(images, settings.own_prior)
        bank = images.all() @ own.astype(np.float64)
        return replace(
            self,
            own=np.concatenate([self.own, own[None]]),
            bank=np.concatenate([self.bank, bank.astype(np.float32)]),
            labels=np.concatenate([self.labels, np.full(len(bank), len(self.own))]),
            log_means=np.append(self.log_means, np.float32(mean)),
            log_deviations=np.append(self.log_deviations, np.float32(deviation)),
        )

    def without_surface(self, number: int) -> SurfaceGate:
        """The gate without surface `number`; those after it move up by one, and no distance of another changes."""
        kept = self.labels != number
        labels = self.labels[kept]
        return replace(
            self,
            own=np.delete(self.own, number, axis=0),
            bank=self.bank[kept],
            labels=labels - (labels > number),
            log_means=np.delete(self.log_means, number),
            log_deviations=np.delete(self.log_deviations, number),
        )


@dataclass(frozen=True, slots=True)
class _Images:
    """Images of one surface, projected: `plain` [n, P] and their `copies` [n, C, P], if there are any."""

    plain: Array
    copies: Array | None = None

    def only(self, chosen: NDArray[np.bool_]) -> _Images:
        return _Images(self.plain[chosen], None if self.copies is None else self.copies[chosen])

    def all(self) -> Array:
        """[n (1 + C), P]."""
        if self.copies is None:
            return self.plain
        return np.concatenate([self.plain, self.copies.reshape(-1, self.plain.shape[1])])

    def changes(self) -> Array:
        """[P, P]: mean scatter of the copies about their images; 0 without copies."""
        dims = self.plain.shape[1]
        if self.copies is None:
            return np.zeros((dims, dims))
        moved = (self.copies - self.plain[:, None]).reshape(-1, dims)
        return np.asarray(moved.T @ moved / len(moved))


def fit_gate(
    features: Stored,
    labels: Labels,
    settings: RouterSettings,
    groups: Sequence[str] | None = None,
    copies: Stored | None = None,
) -> SurfaceGate:
    """Fit to training images: `features` [N, D], `labels` [N] in 0..K-1, each at least twice.

    `groups` (part or lot) name images that are not independent of each other: they are left out together. With
    `copies` [N, C, D], features of changed copies, the gate holds for changing conditions.
    """
    x = features.astype(np.float64)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    varies = spread > RELATIVE_FLOOR * (np.abs(centre) + 1)
    inverse_spread = np.divide(1.0, spread, out=np.zeros_like(spread), where=varies)
    axes = _principal_axes((x - centre) * inverse_spread, settings.pca_dims)
    scaled_axes = inverse_spread[:, None] * axes

    def projected(scale: Array) -> _Images:
        moved = None if copies is None else (copies - centre) @ scale
        return _Images((x - centre) @ scale, moved)

    images = projected(scaled_axes)
    covariance = _within(images.plain, labels) + _COPIES_POOLED * images.changes()
    projection = (scaled_axes @ _inverse_root(covariance, settings.shrinkage)).astype(np.float32)
    # From what is stored, so that a loaded gate gives the same bits.
    images = projected(projection.astype(np.float64))
    numbers = group_numbers(labels, groups)
    of_surface = [labels == surface for surface in range(labels.max() + 1)]
    per_surface = [images.only(chosen) for chosen in of_surface]
    left_out = [
        _left_out(own, numbers[chosen], settings.own_prior)
        for own, chosen in zip(per_surface, of_surface, strict=True)
    ]
    known = [logs for logs in left_out if len(logs)]
    typical = float(np.mean([logs.mean() for logs in known])), float(np.mean([logs.var() for logs in known])) ** 0.5
    statistics = np.array([_shrunk(logs, *typical) for logs in left_out], dtype=np.float32)
    own = [_own_whitening(one, settings.own_prior) for one in per_surface]
    banks = [one.all() @ metric.astype(np.float64) for one, metric in zip(per_surface, own, strict=True)]
    return SurfaceGate(
        centre=centre.astype(np.float32),
        projection=projection,
        own=np.stack(own),
        bank=np.concatenate(banks).astype(np.float32),
        labels=np.repeat(np.arange(len(banks)), [len(bank) for bank in banks]),
        log_means=statistics[:, 0],
        log_deviations=statistics[:, 1],
    )


def group_numbers(labels: Labels, groups: Sequence[str] | None) -> Labels:
    """[N]: a number for each group; for each image where there are no groups, or no surface has two."""
    if groups is not None:
        numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
        if any(len(np.unique(numbers[labels == surface])) > 1 for surface in np.unique(labels)):
            return numbers
    return np.arange(len(labels))


def _left_out(images: _Images, numbers: Labels, prior: float) -> Array:
    """Log distances of one surface's images and copies to what is left when their fold is taken out; none for one group."""
    drawn = np.random.default_rng(0).permutation(np.unique(numbers))
    folds = min(_FOLDS, len(drawn))
    logs = []
    for fold in range(folds if folds > 1 else 0):
        out = np.isin(numbers, drawn[fold::folds])
        rest = images.only(~out)
        metric = _own_whitening(rest, prior).astype(np.float64)
        bank, queries = rest.all() @ metric, images.only(out).all() @ metric
        apart = np.stack([np.linalg.norm(bank - query, axis=1).min() for query in queries])
        logs.append(_log(apart))
    return np.concatenate(logs) if logs else np.empty(0)


def _own_whitening(images: _Images, prior: float) -> Stored:
    """[P, P]: inverse root of the surface's covariance, shrunk by `prior` images towards the mean one, which is I."""
    deviations = images.plain - images.plain.mean(axis=0)
    dims = deviations.shape[1]
    covariance = (deviations.T @ deviations + prior * np.eye(dims)) / (len(deviations) + prior)
    variances, directions = np.linalg.eigh(covariance + _COPIES_OWN * images.changes())
    return np.asarray(directions / np.sqrt(variances), dtype=np.float32)


def _shrunk(logs: Array, mean: float, deviation: float) -> tuple[float, float]:
    """Mean and deviation of a surface's log distances, shrunk towards those over all surfaces."""
    number = len(logs)
    own_mean, own_variance = (float(logs.mean()), float(logs.var())) if number else (mean, deviation**2)
    shrunk_mean = (number * own_mean + _MEAN_PRIOR * mean) / (number + _MEAN_PRIOR)
    variance = (number * own_variance + _DEVIATION_PRIOR * deviation**2) / (number + _DEVIATION_PRIOR)
    return shrunk_mean, max(variance**0.5, _MIN_DEVIATION)


def _log(distances: Array) -> Array:
    return np.asarray(np.log(np.maximum(distances, _MIN_DISTANCE)))


def _principal_axes(z: Array, dims: int) -> Array:
    """[N, D] centred -> [D, P]: the directions of largest variance, P <= dims as far as the data carry them."""
    _, strengths, axes = np.linalg.svd(z, full_matrices=False)
    carried = int((strengths > RELATIVE_FLOOR * strengths[0]).sum()) if strengths[0] > 0 else 0
    return axes[: max(1, min(dims, carried))].T


def _within(projected: Array, labels: Labels) -> Array:
    """[N, P] -> [P, P]: the covariance within surfaces."""
    deviations = projected.copy()
    for surface in range(labels.max() + 1):
        deviations[labels == surface] -= projected[labels == surface].mean(axis=0)
    return np.asarray(deviations.T @ deviations / max(len(projected) - (labels.max() + 1), 1))


def _inverse_root(covariance: Array, shrinkage: float) -> Array:
    """[P, P]: turns the covariance, shrunk towards a multiple of the identity, into I."""
    dims = len(covariance)
    typical = float(np.trace(covariance)) / dims
    if typical == 0:  # all images of each surface are alike: there is no spread to whiten
        return np.eye(dims)
    shrunk = (1 - shrinkage) * covariance + shrinkage * typical * np.eye(dims)
    variances, directions = np.linalg.eigh(shrunk)
    floor = max(RELATIVE_FLOOR * variances[-1], np.finfo(np.float64).tiny)
    return np.asarray(directions / np.sqrt(np.maximum(variances, floor)))
