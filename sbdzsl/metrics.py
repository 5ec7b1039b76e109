"""Figures of merit: numpy in, floats out.

Labels are `bool [N]` (True: defective, or unseen), scores `float64 [N]` raw and larger for True. A figure that is not
defined, such as a recall without positives, is None: never 0 and never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts at a threshold: an image is called positive where its score exceeds it."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None without positives of either kind."""
        positives = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / positives if positives else None


def average_precision(labels: Labels, scores: Scores) -> float | None:
    """Area under the precision-recall curve by the step rule, ties taken together; None without positives.

    Published Seg-Dec results use the trapezoid rule, which reads lower: figures by the two rules do not compare.
    """
    true_positives, called = _cumulated(labels, scores)
    if not len(called) or true_positives[-1] == 0:
        return None
    precision = true_positives / called
    recall_steps = np.diff(true_positives, prepend=0) / true_positives[-1]
    return float(np.sum(precision * recall_steps))


def auroc(labels: Labels, scores: Scores) -> float | None:
    """Probability that a positive outranks a negative, ties half; None unless both kinds are there."""
    true_positives, called = _cumulated(labels, scores)
    if not len(called):
        return None
    positives, negatives = true_positives[-1], called[-1] - true_positives[-1]
    if positives == 0 or negatives == 0:
        return None
    recall = np.concatenate([[0.0], true_positives / positives])
    fall_out = np.concatenate([[0.0], (called - true_positives) / negatives])
    return float(np.trapezoid(recall, fall_out))


def confusion(labels: Labels, scores: Scores, threshold: float) -> Confusion:
    """Counts of right and wrong calls at `threshold`."""
    called = scores > threshold
    return Confusion(
        true_positives=int(np.sum(called & labels)),
        false_positives=int(np.sum(called & ~labels)),
        false_negatives=int(np.sum(~called & labels)),
        true_negatives=int(np.sum(~called & ~labels)),
    )


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


def _cumulated(labels: Labels, scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True positives and calls at each distinct threshold, from the strictest to the loosest."""
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels for {len(scores)} scores")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)[: len(scores)]
    true_positives = np.cumsum(labels[order], dtype=np.float64)[last_of_tie]
    called = np.arange(1, len(scores) + 1, dtype=np.float64)[last_of_tie]
    return true_positives, called


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
