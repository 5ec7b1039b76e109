"""Scores that a router may gate by, ours and the field's, all as distances to each seen surface: smaller is nearer.

Each is fitted to the same training features; those that do not use changed copies ignore them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.attributes import standard_attributes
from sbdzsl.sbad.gate import FittedGate, SurfaceGate, deal_folds, fit_gate
from sbdzsl.sbad.reading import fit_reading

Features = NDArray[np.float32]
Distances = NDArray[np.float64]
#: Features [n, D] -> distances [n, K].
Score = Callable[[Features], Distances]

#: So many images that no surface has a covariance of its own: one whitening for all.
ONE_FOR_ALL = 1e9


@dataclass(frozen=True, slots=True)
class Training:
    """What a score is fitted to: `features` [N, D], `labels` [N] into `names` [K], `groups` [N], and of the same
    images under other conditions `copies` [N, C, D] and `even` [N, D], where a method needs them."""

    features: Features
    labels: NDArray[np.int64]
    names: list[str]
    groups: list[str]
    copies: Features | None
    even: Features | None
    seed: int

    def only(self, chosen: NDArray[np.bool_]) -> Training:
        """The same of some of the images, `chosen` [N]."""
        copies, even = (None if of is None else of[chosen] for of in (self.copies, self.even))
        groups = [group for group, kept in zip(self.groups, chosen, strict=True) if kept]
        return replace(
            self, features=self.features[chosen], labels=self.labels[chosen], groups=groups, copies=copies, even=even
        )

    def scaled(self) -> tuple[Features, Callable[[Features], Features]]:
        """z-scored features and the function that z-scores others."""
        centre, spread = self.features.mean(axis=0), self.features.std(axis=0) + 1e-6
        return (self.features - centre) / spread, lambda x: (x - centre) / spread


@dataclass(frozen=True, slots=True)
class Method:
    """How a score is `fit`; whether it promises the `envelope`; whether its threshold is cross-fitted or held out.

    `gate` is the fit of a gate, which cross-fits itself.
    """

    fit: Callable[[Training], Score]
    envelope: bool = False
    crossed: bool = True
    gate: Callable[[Training], FittedGate] | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """A score, and the unseen scores [M] of images that it did not learn, which set its threshold."""

    score: Score
    held_out: Distances


def cross_fitted(method: Method, known: Training) -> Fitted:
    """A score of all images, its threshold from each by a score that did not learn its fold."""
    if method.gate is not None:
        fitted = method.gate(known)
        return Fitted(score_of(fitted.gate), fitted.threshold_scores)
    folds = deal_folds(known.labels, known.groups)
    held_out = [
        method.fit(known.only(folds != fold))(known.features[folds == fold]).min(axis=1)
        for fold in np.unique(folds[folds >= 0])
    ]
    return Fitted(method.fit(known), np.concatenate(held_out))


def gate(settings: RouterSettings, *, envelope: bool = False, crossed: bool = True) -> Method:
    """The router's own score under one of its two promises."""

    def fit(t: Training) -> FittedGate:
        return fit_gate(t.features, t.labels, settings, t.groups, *((t.copies, t.even) if envelope else ()))

    return Method(lambda t: score_of(fit(t).gate), envelope, crossed, fit)


def score_of(gate: SurfaceGate) -> Score:
    return lambda x: np.stack([gate.distances(row) for row in x])


def paper(settings: RouterSettings) -> Callable[[Training], Score]:
    """The paper's rule: error between what Encoder-2 reads and each learned class embedding."""

    def fit(t: Training) -> Score:
        real_ce = standard_attributes().matrix(t.names)
        reader = fit_reading(t.features, t.labels, real_ce, settings, t.seed).reader()
        return lambda x: np.stack([reader.distances(row) for row in x])

    return fit


def cosine_neighbour(t: Training) -> Score:
    """One minus the cosine to the nearest training image."""
    z, scale = t.scaled()
    bank = z / np.linalg.norm(z, axis=1, keepdims=True)

    def score(x: Features) -> Distances:
        query = scale(x)
        apart = 1 - query / np.linalg.norm(query, axis=1, keepdims=True) @ bank.T
        return _nearest(apart, t)

    return score


def mahalanobis(t: Training) -> Score:
    """Distance to the mean of each surface under one covariance, shrunk by 0.1 (Lee et al. 2018)."""
    z, scale = t.scaled()
    means = np.stack([z[t.labels == k].mean(axis=0) for k in range(len(t.names))])
    deviations = (z - means[t.labels]).astype(np.float64)
    covariance = deviations.T @ deviations / len(z)
    dims = len(covariance)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / dims * np.eye(dims)
    root = np.linalg.cholesky(np.linalg.inv(shrunk))

    def score(x: Features) -> Distances:
        return np.linalg.norm((scale(x)[:, None] - means) @ root, axis=2)

    return score


def softmax(t: Training) -> Score:
    """One minus the probability of a linear softmax (maximum softmax probability, Hendrycks and Gimpel 2017)."""
    logits = _linear(t)
    return lambda x: 1 - torch.from_numpy(logits(x)).softmax(dim=1).numpy()


def energy(t: Training) -> Score:
    """Free energy of the same linear layer (Liu et al. 2020); the surface's own logit decides between surfaces."""
    logits = _linear(t)

    def score(x: Features) -> Distances:
        found = logits(x)
        # The smallest over surfaces is minus the log-sum-exp: the name by logit, the strangeness by energy.
        free = -np.logaddexp.reduce(found, axis=1, keepdims=True)
        return free + found.max(axis=1, keepdims=True) - found

    return score


def _linear(t: Training) -> Callable[[Features], Distances]:
    z, scale = t.scaled()
    x, y = torch.from_numpy(z), torch.from_numpy(t.labels)
    layer = torch.nn.Linear(z.shape[1], len(t.names))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        penalty = 1e-3 * layer.weight.square().sum()
        loss = torch.nn.functional.cross_entropy(layer(x), y) + penalty
        loss.backward()
        return loss

    optimiser.step(closure)

    def logits(features: Features) -> Distances:
        with torch.no_grad():
            return layer(torch.from_numpy(scale(features))).double().numpy()

    return logits


def _nearest(apart: NDArray[np.float32], t: Training) -> Distances:
    return np.stack([apart[:, t.labels == k].min(axis=1) for k in range(len(t.names))], axis=1).astype(np.float64)
