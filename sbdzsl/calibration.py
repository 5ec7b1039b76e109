"""Thresholds and probabilities from held-out data.

A score is called an alarm where it **exceeds** its threshold. Thresholds are split-conformal: they keep a promised
false-alarm rate on new images that are exchangeable with the good ones held out. Each is stored with the rule and the
counts that made it; none is ever taken from test data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sbdzsl.errors import DataError

Scores = NDArray[np.float64]
Policy = Literal["false-alarm-rate", "max-f1", "zero-misses"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold and how it came about.

    `promised_rate` is the false-alarm rate that the held-out good images support: the budget asked for, or
    1/(n+1) where there are too few for it. `rate_interval` is the central 95 % range of the rate that new images will
    really show. Both are None for the policies that promise no rate.
    """

    value: float
    policy: Policy
    promised_rate: float | None
    rate_interval: tuple[float, float] | None
    num_good: int
    num_defect: int


def conformal_threshold(scores: Scores, false_alarm_rate: float) -> float:
    """Smallest t such that `score > t` happens for at most `false_alarm_rate` of new images like those of `scores`.

    With k = floor(rate (n+1)) it is the k-th largest score; +inf where n is too small for the rate (k = 0).
    """
    k = math.floor(false_alarm_rate * (len(scores) + 1) + 1e-9)
    return float(np.sort(scores)[len(scores) - k]) if k >= 1 else math.inf


def conformal_p_value(sorted_scores: Scores, score: float) -> float:
    """Share of held-out scores at least as large, (1 + #{s >= score}) / (n+1): uniform for exchangeable images."""
    at_least = len(sorted_scores) - int(np.searchsorted(sorted_scores, score, side="left"))
    return (1 + at_least) / (len(sorted_scores) + 1)


def realised_rate_interval(num_scores: int, false_alarm_rate: float, level: float = 0.95) -> tuple[float, float]:
    """Central `level` range of the false-alarm rate that a conformal threshold from `num_scores` scores realises.

    The rate is Beta(k, n+1-k) distributed with k = floor(rate (n+1)) (Vovk 2012); at k = 0 nothing is ever flagged.
    """
    k = math.floor(false_alarm_rate * (num_scores + 1) + 1e-9)
    if k < 1:
        return 0.0, 0.0
    tail = (1 - level) / 2
    return _beta_quantile(k, num_scores, tail), _beta_quantile(k, num_scores, 1 - tail)


def choose_threshold(policy: Policy, good: Scores, defect: Scores, false_alarm_rate: float) -> Threshold:
    """Threshold of a detector from held-out scores of good and defective images.

    - `false-alarm-rate`: conformal on the good ones. Where they are too few for the rate, the lowest rate that they
      do support is promised instead, and the threshold is raised to the middle of the gap below the next defect, if
      any was held out: that costs no held-out defect and can only lower the rate.
    - `max-f1`: best F1 on the held-out images, in the middle of its gap.
    - `zero-misses`: below every held-out defect, in the middle of the gap to the next good image.

    Raises `DataError` "too-few-images" where the policy lacks what it needs.
    """
    if policy == "false-alarm-rate":
        return _by_false_alarm_rate(good, defect, false_alarm_rate)
    if not len(defect):
        raise DataError(
            "too-few-images",
            f"threshold policy {policy!r} needs held-out defective images and found none; "
            "use policy 'false-alarm-rate', which works with good images alone",
        )
    if policy == "zero-misses":
        below = good[good < defect.min()]
        value = _middle(float(below.max()), float(defect.min())) if len(below) else np.nextafter(defect.min(), -np.inf)
    else:
        value = _best_f1_threshold(good, defect)
    return Threshold(float(value), policy, None, None, len(good), len(defect))


def _by_false_alarm_rate(good: Scores, defect: Scores, rate: float) -> Threshold:
    if not len(good):
        raise DataError(
            "too-few-images",
            "a false-alarm rate needs held-out good images and found none; add benign images or a validation share",
        )
    promised = rate
    value = conformal_threshold(good, rate)
    if math.isinf(value):
        # Too few images for the rate asked for: promise what they do support rather than never alarm.
        promised = 1 / (len(good) + 1)
        value = float(good.max())
        above = defect[defect > value]
        value = _middle(value, float(above.min())) if len(above) else value
    return Threshold(
        value, "false-alarm-rate", promised, realised_rate_interval(len(good), promised), len(good), len(defect)
    )


def _best_f1_threshold(good: Scores, defect: Scores) -> float:
    levels = np.unique(np.concatenate([good, defect]))
    candidates = np.concatenate([[np.nextafter(levels[0], -np.inf)], (levels[:-1] + levels[1:]) / 2])
    hits = (defect[None, :] > candidates[:, None]).sum(axis=1)
    alarms = (good[None, :] > candidates[:, None]).sum(axis=1)
    return float(candidates[np.argmax(2 * hits / (hits + alarms + len(defect)))])


def _middle(low: float, high: float) -> float:
    return low + (high - low) / 2


@dataclass(frozen=True, slots=True)
class Platt:
    """Calibrated probability of a raw score: sigmoid(slope * score + offset)."""

    slope: float
    offset: float

    def probability(self, score: float) -> float:
        """Probability in (0, 1) that an image with this raw score is defective."""
        logit = self.slope * score + self.offset
        # Written so that neither branch can overflow.
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def fit_platt(good: Scores, defect: Scores) -> Platt | None:
    """Platt scaling (Platt 1999) by Newton steps on smoothed targets, so that separable scores stay finite.

    None unless both kinds of held-out images are there and defects score higher: a probability would be made up.
    """
    if not len(good) or not len(defect):
        return None
    scores = np.concatenate([good, defect])
    targets = np.concatenate(
        [np.full(len(good), 1 / (len(good) + 2)), np.full(len(defect), (len(defect) + 1) / (len(defect) + 2))]
    )
    spread = float(scores.std()) or 1.0
    features = np.stack([(scores - scores.mean()) / spread, np.ones_like(scores)])
    weights = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(weights @ features, -500, 500)))
        gradient = features @ (p - targets) + 1e-3 * weights
        hessian = (features * (p * (1 - p) + 1e-9)) @ features.T + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        # Newton may overshoot far from the optimum, where the curvature is nearly nothing.
        weights = weights - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    if weights[0] <= 0:
        return None
    return Platt(float(weights[0] / spread), float(weights[1] - weights[0] * scores.mean() / spread))


def _beta_quantile(k: int, n: int, probability: float) -> float:
    """x with P(Beta(k, n+1-k) <= x) = probability, by bisection of the binomial tail it equals."""
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k)])
    counts = np.arange(k)
    low, high = 0.0, 1.0
    for _ in range(60):
        x = (low + high) / 2
        below_k = float(np.exp(log_choose + counts * math.log(x) + (n - counts) * math.log1p(-x)).sum())
        low, high = (x, high) if 1 - below_k < probability else (low, x)
    return (low + high) / 2
