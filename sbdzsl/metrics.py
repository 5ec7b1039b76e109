"""Figures of merit: numpy in, floats out. Those over pixels are in `pixel_metrics`.

Labels are `bool [N]` (True: defective, or unseen), scores `float64 [N]` raw and larger for True. A figure that is not
defined, such as a recall without positives, is None: never 0 and never NaN.

Every figure is written once, for R data sets side by side: the images as they are, or resamples of them, for which see
`bootstrap`. A resample is a row of weights, so that all of them cost one sort and one cumulated sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]
Floats = NDArray[np.float64]

_CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts at a threshold: an image is called positive where its score exceeds it."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None without positives."""
        if not self.true_positives + self.false_negatives:
            return None
        return 2 * self.true_positives / (2 * self.true_positives + self.false_positives + self.false_negatives)


@dataclass(frozen=True, slots=True)
class BestF1:
    """The best F1 that any threshold gives on the data at hand, the lowest such threshold, and the errors there.

    In-sample by construction: it flatters, and says nothing of a threshold that was chosen beforehand.
    """

    f1: float
    threshold: float
    confusion: Confusion


def average_precision(labels: Labels, scores: Scores) -> float | None:
    """Area under the precision-recall curve by the step rule, ties taken together; None without positives.

    Published Seg-Dec results use `average_precision_trapezoid`, which usually reads lower: they do not compare.
    """
    return _single(step_ap, labels, scores)


def average_precision_trapezoid(labels: Labels, scores: Scores) -> float | None:
    """Area under precision-recall points joined by straight lines from (recall 0, precision 1); None without positives.

    The rule of the published Seg-Dec results.
    """
    return _single(trapezoid_ap, labels, scores)


def auroc(labels: Labels, scores: Scores) -> float | None:
    """Probability that a positive outranks a negative, ties half; None unless both kinds are there."""
    return _single(roc_area, labels, scores)


def false_alarms_at_full_recall(labels: Labels, scores: Scores) -> int | None:
    """Negatives that score at least as much as the lowest positive; None without positives."""
    found = _single(full_recall_alarms, labels, scores)
    return None if found is None else int(found)


def best_f1(labels: Labels, scores: Scores) -> BestF1 | None:
    """Best F1 on these very data, with a threshold in the middle of its gap; None without positives."""
    counts = count(labels, scores)
    if not counts.positives:
        return None
    curve = _f1_curve(counts)[0]
    best = len(curve) - 1 - int(np.argmax(curve[::-1]))
    levels = counts.levels
    below = levels[best + 1] if best + 1 < len(levels) else -np.inf
    threshold = levels[best] + (below - levels[best]) / 2 if np.isfinite(below) else np.nextafter(levels[best], -np.inf)
    return BestF1(float(curve[best]), float(threshold), confusion(labels, scores, float(threshold)))


def confusion(labels: Labels, scores: Scores, threshold: float) -> Confusion:
    """Counts of right and wrong calls at `threshold`."""
    called = scores > threshold
    return Confusion(
        true_positives=int(np.sum(called & labels)),
        false_positives=int(np.sum(called & ~labels)),
        false_negatives=int(np.sum(~called & labels)),
        true_negatives=int(np.sum(~called & ~labels)),
    )


def expected_calibration_error(labels: Labels, probabilities: Floats) -> float | None:
    """Mean distance of probability and observed share over ten equal bins of [0, 1], by images (Naeini et al. 2015).

    0 is calibrated, 1 always surely wrong; None without images.
    """
    if not len(labels):
        return None
    return float(calibration_errors(labels, probabilities, np.ones((1, len(labels))))[0])


@dataclass(frozen=True, slots=True)
class Counts:
    """Images called positive at each distinct score, the strictest first, in R data sets of the same N images.

    `levels` [L] falls; at level l everything that scores at least `levels[l]` is called. `true_positives` and
    `false_positives` are [R, L]. `positives` and `negatives` are totals, the same in each of the R.
    """

    levels: Scores
    true_positives: Floats
    false_positives: Floats
    positives: int
    negatives: int


#: A figure of R data sets: [R], or None where it is not defined.
Figure = Callable[[Counts], "Floats | None"]


def step_ap(counts: Counts) -> Floats | None:
    """Average precision by the step rule, see `average_precision`."""
    if not counts.positives:
        return None
    recall_steps = np.diff(counts.true_positives, prepend=0.0, axis=1) / counts.positives
    return np.sum(_precision(counts) * recall_steps, axis=1)


def trapezoid_ap(counts: Counts) -> Floats | None:
    """Average precision by the trapezoid rule, see `average_precision_trapezoid`."""
    if not counts.positives:
        return None
    recall_steps = np.diff(counts.true_positives, prepend=0.0, axis=1) / counts.positives
    precision = np.pad(_precision(counts), ((0, 0), (1, 0)), constant_values=1.0)
    return np.sum((precision[:, 1:] + precision[:, :-1]) / 2 * recall_steps, axis=1)


def roc_area(counts: Counts) -> Floats | None:
    """Area under the ROC curve, see `auroc`."""
    if not counts.positives or not counts.negatives:
        return None
    recall = np.pad(counts.true_positives / counts.positives, ((0, 0), (1, 0)))
    steps = np.diff(counts.false_positives, prepend=0.0, axis=1) / counts.negatives
    return np.sum((recall[:, 1:] + recall[:, :-1]) / 2 * steps, axis=1)


def full_recall_alarms(counts: Counts) -> Floats | None:
    """False alarms where the last positive is called, see `false_alarms_at_full_recall`."""
    if not counts.positives:
        return None
    first = np.argmax(counts.true_positives >= counts.positives, axis=1)
    return np.take_along_axis(counts.false_positives, first[:, None], axis=1)[:, 0]


def highest_f1(counts: Counts) -> Floats | None:
    """The best F1 of each data set at a threshold of its own, see `best_f1`."""
    return _f1_curve(counts).max(axis=1) if counts.positives else None


#: Figures of labels and scores alone, by the names they have in JSON.
RANKING: Mapping[str, Figure] = {
    "ap": step_ap,
    "ap_trapezoid": trapezoid_ap,
    "auroc": roc_area,
    "false_alarms_at_full_recall": full_recall_alarms,
    "best_f1": highest_f1,
}


def count(labels: Labels, scores: Scores, weights: Floats | None = None) -> Counts:
    """Counts of the data as they are, or of one data set a row of `weights` [R, N]."""
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels for {len(scores)} scores")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    weights = np.ones((1, len(labels))) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)[: len(scores)]
    drawn, positive = weights[:, order], labels[order]
    positives = int(labels.sum())
    return Counts(
        levels=scores[order][last_of_tie],
        true_positives=np.cumsum(drawn * positive, axis=1)[:, last_of_tie],
        false_positives=np.cumsum(drawn * ~positive, axis=1)[:, last_of_tie],
        positives=positives,
        negatives=len(labels) - positives,
    )


def calibration_errors(labels: Labels, probabilities: Floats, weights: Floats) -> Floats:
    """[R], one a row of `weights` [R, N]; see `expected_calibration_error`."""
    place = np.minimum((probabilities * _CALIBRATION_BINS).astype(np.intp), _CALIBRATION_BINS - 1)
    in_bin = place[:, None] == np.arange(_CALIBRATION_BINS)
    return np.abs(weights @ (in_bin * (labels - probabilities)[:, None])).sum(axis=1) / len(labels)


def harmonic_mean(seen: float | None, unseen: float | None) -> float | None:
    """H = 2SU/(S+U) (Xian et al. 2018); None where S or U is."""
    if seen is None or unseen is None:
        return None
    return 2 * seen * unseen / (seen + unseen) if seen + unseen > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ZeroShotFigures:
    """Generalised zero-shot figures of a router, each a mean over surfaces (macro), in [0, 1].

    `s`: seen images accepted and rightly named. `u`: images of unseen surfaces flagged. `h`: their harmonic mean.
    `false_alarms`: seen images flagged. `naming`: seen images whose nearest surface is theirs, flagged or not.
    """

    s: float | None
    u: float | None
    h: float | None
    false_alarms: float | None
    naming: float | None
    per_surface: Mapping[str, float]


def zero_shot_figures(
    surfaces: Sequence[str], named: Sequence[str], flagged: Labels, seen: Sequence[str]
) -> ZeroShotFigures:
    """S, U and H of routed images.

    `surfaces [N]` are true, `named [N]` the nearest seen ones, `flagged [N]` whether called unseen; `seen` are the
    surfaces that were learnt, every other true surface counts as unseen. `per_surface` holds the share that is right.
    """
    truth, names, known = np.asarray(surfaces), np.asarray(named), set(seen)
    per_surface: dict[str, float] = {}
    false_alarms, naming = [], []
    for surface in sorted(set(surfaces)):
        rows = truth == surface
        if surface in known:
            right_name = names[rows] == surface
            per_surface[surface] = float(np.mean(right_name & ~flagged[rows]))
            false_alarms.append(float(np.mean(flagged[rows])))
            naming.append(float(np.mean(right_name)))
        else:
            per_surface[surface] = float(np.mean(flagged[rows]))
    s = _mean([value for surface, value in per_surface.items() if surface in known])
    u = _mean([value for surface, value in per_surface.items() if surface not in known])
    return ZeroShotFigures(s, u, harmonic_mean(s, u), _mean(false_alarms), _mean(naming), per_surface)


def _single(figure: Figure, labels: Labels, scores: Scores) -> float | None:
    found = figure(count(labels, scores))
    return None if found is None else float(found[0])


def _precision(counts: Counts) -> Floats:
    """[R, L]; 1 where a resample calls nothing yet, as the curve begins."""
    called = counts.true_positives + counts.false_positives
    return np.divide(counts.true_positives, called, out=np.ones_like(called), where=called > 0)


def _f1_curve(counts: Counts) -> Floats:
    return 2 * counts.true_positives / (counts.true_positives + counts.false_positives + counts.positives)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
