"""How far an image is from each surface, in the spread of that surface: the score that tells seen from unseen.

Shapes: N images to learn, C changed copies of each, D features, P dimensions after projection, K seen surfaces.

1. z-score, PCA, and whitening by the covariance within surfaces: on the mean over surfaces, spread is 1 everywhere.
2. There, surface k has a covariance of its own, shrunk towards the mean one: (R'R + prior I) / (n + prior), with R its
   n images about their mean. A cast surface may vary in light and a woven one in scale; neither lends it to the other.
3. d_k: distance to the nearest image of the surface under its own covariance. One neighbour and not the third, since a
   surface's images come in small groups (one light, one lot).
4. (d_k / m_k) ^ (s / s_k), where log m_k and s_k are mean and deviation of log d_k over the surface's own images, and s
   is the usual s_k. An image of the surface has about 1, and surfaces that vary much and little share one threshold.

For 4, and for a threshold (`fit.py`), all images are dealt into `FOLDS` folds, whole groups, and each is judged by a
gate that learnt the other folds alone: projection, covariances and bank. What a gate has learnt lies nearer to it than
any new image will, by a share that hangs on how many images there are.

With changed copies (`conditions.py`) the same is done under the promise that conditions change: the scatter of the
extreme ones widens both covariances, and they join the bank; those drawn evenly are judged beside the images.
Arithmetic is float64 without BLAS where an image is judged, so that a score does not depend on batch or threads.
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

FOLDS = 5

# Weight of the copies' scatter in the mean covariance and in a surface's own.
_COPIES_POOLED, _COPIES_OWN = 0.3, 1.0
# So many images' weight draws the mean of a surface's log distances, and their variance, towards the usual ones.
_MEAN_PRIOR, _DEVIATION_PRIOR = 5.0, 150.0
# Left-out distances of a surface whose images are all alike have no spread; 5 % is what any camera's noise gives.
_MIN_DEVIATION = 0.05
_MIN_DISTANCE = 1e-9
# Spread below this share of the largest counts as none: it is rounding, and dividing by it would blow rounding up.
_RELATIVE_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class SurfaceGate:
    """The bank of training images with the metric of each surface.

    `centre` [D] and `projection` [D, P] are z-score, PCA and pooled whitening in one; `own` [K, P, P] whitens by a
    surface's own covariance; `bank` [M, P] holds the projected images and copies, whitened by their own surface;
    `labels` [M] int64 are their surfaces. `scales` [K] are m, `exponents` [K] are s / s_k, and `spread` is s, a scalar.
    """

    centre: Stored
    projection: Stored
    own: Stored
    bank: Stored
    labels: Labels
    scales: Stored
    exponents: Stored
    spread: Stored

    def project(self, features: Stored) -> Array:
        """[D] -> [P], before any surface's own whitening."""
        return np.einsum("d,dp->p", features.astype(np.float64) - self.centre, self.projection.astype(np.float64))

    def distances(self, features: Stored) -> Array:
        """[D] -> [K]: how far the image is from each surface; about 1 for one of its own, more for a stranger."""
        whitened = np.einsum("p,kpq->kq", self.project(features), self.own.astype(np.float64))
        squared = np.square(self.bank - whitened[self.labels]).sum(axis=1)
        nearest = np.full(len(self.scales), np.inf)
        np.minimum.at(nearest, self.labels, squared)
        return self.in_units(np.sqrt(nearest))

    def in_units(self, apart: Array) -> Array:
        """[..., K]: distances in the unit of each surface (step 4)."""
        return np.asarray((apart / self.scales) ** self.exponents.astype(np.float64))

    def images_of(self, number: int) -> Array:
        """Images and copies of surface `number` as `project` gives them, [n (1 + C), P], up to rounding."""
        bank = self.bank[self.labels == number].astype(np.float64)
        return np.asarray(np.linalg.solve(self.own[number].T.astype(np.float64), bank.T).T)

    def with_surface(
        self,
        features: Stored,
        settings: RouterSettings,
        groups: Sequence[str] | None = None,
        copies: Stored | None = None,
        even: Stored | None = None,
        typical: float = 1.0,
    ) -> SurfaceGate:
        """The gate with one more surface, numbered last, by its images' `features` [n, D], n at least 2.

        `copies` [n, C, D] and `even` [n, D] as the gate was fitted with. `typical` is the distance that images of the
        known surfaces have where no gate learnt them, about 1: those of the new surface get the same, so that the
        threshold means the same for it. All that the gate knew stays as it is, to the bit.
        """
        images = self._projected(features, copies)
        asked = images.plain if even is None else np.concatenate([images.plain, [self.project(row) for row in even]])
        folds = deal_folds(np.zeros(len(features), dtype=np.int64), groups)
        left_out = _left_out(images, asked, folds, settings.own_prior)
        usual = float(np.log(self.scales.astype(np.float64)).mean()), float(self.spread)
        scale, exponent = _scale_and_exponent(left_out, *usual)
        scale /= typical ** (1 / exponent)
        own = _own_whitening(images, settings.own_prior)
        bank = images.all() @ own.astype(np.float64)
        return replace(
            self,
            own=np.concatenate([self.own, own[None]]),
            bank=np.concatenate([self.bank, bank.astype(np.float32)]),
            labels=np.concatenate([self.labels, np.full(len(bank), len(self.own))]),
            scales=np.append(self.scales, np.float32(scale)),
            exponents=np.append(self.exponents, np.float32(exponent)),
        )

    def with_images(
        self, number: int, features: Stored, settings: RouterSettings, copies: Stored | None = None
    ) -> SurfaceGate:
        """The gate that has learnt more images of surface `number`, as of a lot that looks otherwise.

        `features` [n, D], n at least 1, and `copies` [n, C, D] as the gate was fitted with. They join the surface's
        bank and its own covariance. The unit m_k follows: its old images lie as far apart in it as they did before, on
        the mean of logs. Distances to all other surfaces keep their bits.
        """
        old = self._learnt(number, 0 if copies is None else copies.shape[1])
        images = old.joined(self._projected(features, copies))
        own = _own_whitening(images, settings.own_prior)
        before, after = (_log_apart(old.plain @ of.astype(np.float64)).mean() for of in (self.own[number], own))
        bank = (images.all() @ own.astype(np.float64)).astype(np.float32)
        others = self.labels != number
        scales, metrics = self.scales.copy(), self.own.copy()
        scales[number] *= np.float32(np.exp(after - before))
        metrics[number] = own
        return replace(
            self,
            own=metrics,
            bank=np.concatenate([self.bank[others], bank]),
            labels=np.concatenate([self.labels[others], np.full(len(bank), number)]),
            scales=scales,
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
            scales=np.delete(self.scales, number),
            exponents=np.delete(self.exponents, number),
        )

    def _projected(self, features: Stored, copies: Stored | None) -> _Images:
        return _Images(
            np.stack([self.project(row) for row in features]),
            None if copies is None else np.stack([[self.project(row) for row in rows] for rows in copies]),
        )

    def _learnt(self, number: int, num_copies: int) -> _Images:
        """The images of a surface with their copies, in the order of `_Images.all`."""
        rows = self.images_of(number)
        plain, copies = np.split(rows, [len(rows) // (1 + num_copies)])
        return _Images(plain, copies.reshape(len(plain), num_copies, -1) if num_copies else None)


@dataclass(frozen=True, slots=True)
class _Images:
    """Images of one surface, projected: `plain` [n, P] and their `copies` [n, C, P], if there are any."""

    plain: Array
    copies: Array | None = None

    def only(self, chosen: NDArray[np.bool_]) -> _Images:
        return _Images(self.plain[chosen], None if self.copies is None else self.copies[chosen])

    def joined(self, more: _Images) -> _Images:
        copies = None
        if self.copies is not None and more.copies is not None:
            copies = np.concatenate([self.copies, more.copies])
        return _Images(np.concatenate([self.plain, more.plain]), copies)

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


@dataclass(frozen=True, slots=True)
class FittedGate:
    """A gate, and the unseen scores of the N images that it learnt, by gates that did not learn their fold.

    `plain` [N] of the images as they are, `promised` [N] of the copies drawn evenly, where there are any, else the
    same. NaN for an image that every gate had to learn.
    """

    gate: SurfaceGate
    plain: Array
    promised: Array

    @property
    def threshold_scores(self) -> Array:
        """What a threshold is set by: `promised` of all images that were judged, in their order."""
        return self.promised[np.isfinite(self.promised)]


def fit_gate(
    features: Stored,
    labels: Labels,
    settings: RouterSettings,
    groups: Sequence[str] | None = None,
    copies: Stored | None = None,
    even: Stored | None = None,
) -> FittedGate:
    """Fit to images: `features` [N, D], `labels` [N] in 0..K-1, each at least twice.

    `groups` (part or lot) name images that are not independent of each other: they are left out together. With
    `copies` [N, C, D], features of changed copies, the gate holds for changing conditions; `even` [N, D] are of one
    copy each under conditions drawn evenly.
    """
    folds = deal_folds(labels, groups)
    judged = folds >= 0
    # Distances grow with the dimensions, so all gates have as many as the smallest one carries.
    smallest = min(int((folds != fold).sum()) for fold in np.unique(folds[judged]))
    dims = min(settings.pca_dims, smallest - 1)
    gate = _with_unit_scales(features, labels, settings, dims, copies)
    views = [features] if even is None else [features, even]
    apart = np.full((len(views), len(labels), len(gate.scales)), np.nan)
    for fold in np.unique(folds[judged]):
        rest = folds != fold
        others = _with_unit_scales(
            features[rest], labels[rest], settings, dims, None if copies is None else copies[rest]
        )
        for view, rows in zip(apart, views, strict=True):
            view[~rest] = [others.distances(row) for row in rows[~rest]]
    own = np.log(np.maximum(apart[:, np.arange(len(labels)), labels], _MIN_DISTANCE))
    left_out = [own[:, judged & (labels == surface)].ravel() for surface in range(len(gate.scales))]
    known = [logs for logs in left_out if len(logs)]
    mean = float(np.mean([logs.mean() for logs in known]))
    deviation = max(float(np.mean([logs.var() for logs in known])) ** 0.5, _MIN_DEVIATION)
    scales, exponents = np.array([_scale_and_exponent(logs, mean, deviation) for logs in left_out], np.float32).T
    gate = replace(gate, scales=scales, exponents=exponents, spread=np.array(deviation, dtype=np.float32))
    scores = gate.in_units(apart).min(axis=2)
    return FittedGate(gate, scores[0], scores[-1])


def deal_folds(labels: Labels, groups: Sequence[str] | None) -> Labels:
    """[N]: the fold of each image, 0 to `FOLDS` - 1, whole groups, each surface's dealt by chance, always the same.

    -1 where a surface has one group: every gate needs its images. Where no surface has two, groups say nothing, and
    images are taken for independent.
    """
    numbers = np.arange(len(labels))
    if groups is not None:
        named = np.unique(np.asarray(groups), return_inverse=True)[1]
        if any(len(np.unique(named[labels == surface])) > 1 for surface in np.unique(labels)):
            numbers = named
    folds = np.full(len(labels), -1, dtype=np.int64)
    for surface in np.unique(labels):
        own = labels == surface
        dealt = np.random.default_rng(0).permutation(np.unique(numbers[own]))
        for fold in range(FOLDS if len(dealt) > 1 else 0):
            folds[own & np.isin(numbers, dealt[fold::FOLDS])] = fold
    return folds


def _with_unit_scales(
    features: Stored, labels: Labels, settings: RouterSettings, dims: int, copies: Stored | None
) -> SurfaceGate:
    """Steps 1 to 3 in `dims` dimensions, or fewer if images carry no more; distances are d_k as they are."""
    x = features.astype(np.float64)
    centre, spread = x.mean(axis=0).astype(np.float32), x.std(axis=0)
    varies = spread > _RELATIVE_FLOOR * (np.abs(centre) + 1)
    inverse_spread = np.divide(1.0, spread, out=np.zeros_like(spread), where=varies)
    axes = inverse_spread[:, None] * _principal_axes((x - centre) * inverse_spread, dims)

    def projected(projection: Array) -> _Images:
        return _Images((x - centre) @ projection, None if copies is None else (copies - centre) @ projection)

    images = projected(axes)
    covariance = _within(images.plain, labels) + _COPIES_POOLED * images.changes()
    # Rounded to what is stored, so that a loaded gate gives the same bits.
    projection = (axes @ _inverse_root(covariance, settings.shrinkage)).astype(np.float32)
    images = projected(projection.astype(np.float64))
    surfaces = [images.only(labels == surface) for surface in range(labels.max() + 1)]
    own = [_own_whitening(one, settings.own_prior) for one in surfaces]
    banks = [one.all() @ metric.astype(np.float64) for one, metric in zip(surfaces, own, strict=True)]
    return SurfaceGate(
        centre=centre,
        projection=projection,
        own=np.stack(own),
        bank=np.concatenate(banks).astype(np.float32),
        labels=np.repeat(np.arange(len(banks)), [len(bank) for bank in banks]),
        scales=np.ones(len(banks), dtype=np.float32),
        exponents=np.ones(len(banks), dtype=np.float32),
        spread=np.array(1, dtype=np.float32),
    )


def _left_out(images: _Images, asked: Array, folds: Labels, prior: float) -> Array:
    """Log distances of a surface's images to what is left when their fold is out; none for one group.

    `asked` [n or 2 n, P] are the images as they are, then as they look under other conditions.
    """
    logs = []
    for fold in np.unique(folds[folds >= 0]):
        rest = images.only(folds != fold)
        metric = _own_whitening(rest, prior).astype(np.float64)
        out = np.tile(folds == fold, len(asked) // len(folds))
        bank, queries = rest.all() @ metric, asked[out] @ metric
        apart = np.stack([np.linalg.norm(bank - query, axis=1).min() for query in queries])
        logs.append(np.log(np.maximum(apart, _MIN_DISTANCE)))
    return np.concatenate(logs) if logs else np.empty(0)


def _log_apart(points: Array) -> Array:
    """[n, P] -> [n]: log distance of each to the nearest other, n at least 2."""
    # The smallest of a row is the point itself.
    nearest = [np.partition(np.linalg.norm(points - point, axis=1), 1)[1] for point in points]
    return np.asarray(np.log(np.maximum(nearest, _MIN_DISTANCE)))


def _own_whitening(images: _Images, prior: float) -> Stored:
    """[P, P]: inverse root of the surface's covariance, shrunk by `prior` images towards the mean one, which is I."""
    deviations = images.plain - images.plain.mean(axis=0)
    dims = deviations.shape[1]
    covariance = (deviations.T @ deviations + prior * np.eye(dims)) / (len(deviations) + prior)
    variances, directions = np.linalg.eigh(covariance + _COPIES_OWN * images.changes())
    return np.asarray(directions / np.sqrt(variances), dtype=np.float32)


def _scale_and_exponent(logs: Array, mean: float, deviation: float) -> tuple[float, float]:
    """m_k and s / s_k from a surface's log distances, their mean and variance shrunk towards those of all surfaces."""
    number = len(logs)
    own_mean, own_variance = (float(logs.mean()), float(logs.var())) if number else (mean, deviation**2)
    shrunk_mean = (number * own_mean + _MEAN_PRIOR * mean) / (number + _MEAN_PRIOR)
    variance = (number * own_variance + _DEVIATION_PRIOR * deviation**2) / (number + _DEVIATION_PRIOR)
    return float(np.exp(shrunk_mean)), deviation / max(variance**0.5, _MIN_DEVIATION)


def _principal_axes(z: Array, dims: int) -> Array:
    """[N, D] centred -> [D, P]: the directions of largest variance, P <= dims as far as the data carry them."""
    _, strengths, axes = np.linalg.svd(z, full_matrices=False)
    carried = int((strengths > _RELATIVE_FLOOR * strengths[0]).sum()) if strengths[0] > 0 else 0
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
    floor = max(_RELATIVE_FLOOR * variances[-1], np.finfo(np.float64).tiny)
    return np.asarray(directions / np.sqrt(np.maximum(variances, floor)))
