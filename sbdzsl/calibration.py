"""Thresholds and probabilities from held-out data.

A score is called an alarm where it **exceeds** its threshold. A rule (`config.ThresholdRule`) draws the threshold from
the raw scores of held-out images, from their order and gaps alone: data at another resolution, where all scores are
others but rank alike, alarm on the same images. No threshold is ever taken from test data.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import ThresholdRule
from sbdzsl.errors import DataError

Scores = NDArray[np.float64]

#: Resamples behind the interval of a threshold.
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold and how it came about.

    `rule` has all its numbers. `promised_rate` is the false-alarm rate that the held-out good images support: the
    budget asked for, or 1/(n+1) where there are too few for it; `rate_interval` is the central 95 % range of the rate
    that new images will really show. Both are None for the policies that promise no rate. `value_interval` is the 95 %
    bootstrap range of the threshold; None for `false-alarm-rate`, whose range is exact, and for `fixed`.

    `num_false_alarms` and `num_misses` are counted at the threshold on the held-out images themselves, so they flatter
    a rule that looked for few of them; their ranges are exact 95 % ranges of the rates (Clopper and Pearson 1934), None
    without images of that kind. `data_digest` is the sha256 of the held-out scores as little-endian float64, the good
    ones sorted, a "|", the defective ones sorted: it can be checked against the scores that the bundle holds.
    """

    value: float
    rule: ThresholdRule
    promised_rate: float | None
    rate_interval: tuple[float, float] | None
    value_interval: tuple[float, float] | None
    num_good: int
    num_defect: int
    num_false_alarms: int
    num_misses: int
    false_alarm_range: tuple[float, float] | None
    miss_range: tuple[float, float] | None
    data_digest: str

    @property
    def policy(self) -> str:
        """The rule as one word, such as `false-alarm-rate:0.02`."""
        return str(self.rule)


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


def proportion_range(count: int, of: int, level: float = 0.95) -> tuple[float, float] | None:
    """Exact `level` range of a rate of which `count` in `of` were seen (Clopper and Pearson 1934); None of nothing."""
    if not of:
        return None
    tail = (1 - level) / 2
    low = _beta_quantile(count, of, tail) if count else 0.0
    high = _beta_quantile(count + 1, of, 1 - tail) if count < of else 1.0
    return low, high


def choose_threshold(rule: ThresholdRule, good: Scores, defect: Scores) -> Threshold:
    """Threshold from held-out scores of good and defective images, raw, in any order.

    - `false-alarm-rate`: conformal on the good ones. Where they are too few for the rate, the lowest rate that they
      do support is promised instead, and the threshold is raised to the middle of the gap below the next defect, if
      any was held out: that costs no held-out defect and can only lower the rate.
    - `max-f1`: best F1 on the held-out images, in the middle of its gap.
    - `zero-misses`: below every held-out defect, in the middle of the gap to the next good image.
    - `cost`: least expected cost an image, share * price * miss rate + (1 - share) * false-alarm rate, in the middle
      of its gap; at the highest score, where no held-out image alarms, if that is cheapest.
    - `fixed`: as given; the held-out images only say what it does.

    Of thresholds that are equally good the lowest is taken. Raises `DataError` "too-few-images" where the policy lacks
    what it needs.
    """
    promised, rates, interval = None, None, None
    if rule.policy == "fixed":
        assert rule.value is not None
        value = rule.value
    elif rule.policy == "false-alarm-rate":
        assert rule.false_alarm_rate is not None
        value, promised = _by_false_alarm_rate(good, defect, rule.false_alarm_rate)
        rates = realised_rate_interval(len(good), promised)
    else:
        _require_both(rule, good, defect)
        value = float(_batch(rule, good[None], defect[None])[0])
        interval = _bootstrap_range(rule, good, defect)
    alarms, misses = int((good > value).sum()), int((defect <= value).sum())
    return Threshold(
        value=value,
        rule=rule,
        promised_rate=promised,
        rate_interval=rates,
        value_interval=interval,
        num_good=len(good),
        num_defect=len(defect),
        num_false_alarms=alarms,
        num_misses=misses,
        false_alarm_range=proportion_range(alarms, len(good)),
        miss_range=proportion_range(misses, len(defect)),
        data_digest=_digest(good, defect),
    )


def _by_false_alarm_rate(good: Scores, defect: Scores, rate: float) -> tuple[float, float]:
    """Threshold and the rate that it promises."""
    if not len(good):
        raise DataError(
            "too-few-images",
            "a false-alarm rate needs held-out good images and found none; add benign images or a validation share",
        )
    value = conformal_threshold(good, rate)
    if math.isfinite(value):
        return value, rate
    # Too few images for the rate asked for: promise what they do support rather than never alarm.
    value = float(good.max())
    above = defect[defect > value]
    return (value + (float(above.min()) - value) / 2 if len(above) else value), 1 / (len(good) + 1)


def _require_both(rule: ThresholdRule, good: Scores, defect: Scores) -> None:
    for kind, scores, needed in (
        ("defective", defect, True),
        ("good", good, rule.policy != "zero-misses"),
    ):
        if needed and not len(scores):
            raise DataError(
                "too-few-images",
                f"threshold policy {str(rule)!r} needs held-out {kind} images and found none; "
                "use policy 'false-alarm-rate', which works with good images alone, or add such images",
            )


def _batch(rule: ThresholdRule, good: Scores, defect: Scores) -> Scores:
    """Thresholds [R] of R data sets side by side, `good` [R, n] and `defect` [R, m]."""
    if rule.policy == "zero-misses":
        lowest = defect.min(axis=1)
        below = np.where(good < lowest[:, None], good, -np.inf).max(axis=1, initial=-np.inf)
        return _between(below, lowest)
    num_good, num_defect = good.shape[1], defect.shape[1]
    if rule.policy == "max-f1":
        return _best_cut(good, defect, lambda hits, alarms: -2 * hits / (hits + alarms + num_defect))
    assert rule.miss_cost is not None
    assert rule.defect_share is not None
    miss, alarm = rule.defect_share * rule.miss_cost / num_defect, (1 - rule.defect_share) / num_good
    return _best_cut(good, defect, lambda hits, alarms: miss * (num_defect - hits) + alarm * alarms)


def _best_cut(good: Scores, defect: Scores, loss: Callable[[Scores, Scores], Scores]) -> Scores:
    """Threshold [R] of least `loss` of hits and false alarms, in the middle of its gap; of equal ones the lowest."""
    scores = np.concatenate([good, defect], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    # Cut c calls the first c images; a cut within a tie is none.
    hits = np.pad(np.cumsum(order >= good.shape[1], axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    alarms = np.arange(scores.shape[1] + 1) - hits
    losses = loss(hits, alarms)
    losses[:, 1:-1][ranked[:, 1:] == ranked[:, :-1]] = np.inf
    cut = losses.shape[1] - 1 - np.argmin(losses[:, ::-1], axis=1)
    rows = np.arange(len(ranked))
    below = np.pad(ranked, ((0, 0), (0, 1)), constant_values=-np.inf)[rows, cut]
    # Cut 0 calls nothing: its threshold is the highest score itself.
    return np.where(cut == 0, ranked[:, 0], _between(below, ranked[rows, np.maximum(cut, 1) - 1]))


def _between(below: Scores, above: Scores) -> Scores:
    """The middle of a gap; just under `above` where nothing is below."""
    bounded = np.where(np.isfinite(below), below, above)
    return np.where(np.isfinite(below), bounded + (above - bounded) / 2, np.nextafter(above, -np.inf))


def _bootstrap_range(rule: ThresholdRule, good: Scores, defect: Scores) -> tuple[float, float]:
    """Central 95 % of the thresholds of resampled held-out images; good and defective ones are drawn apart."""
    generator = np.random.default_rng(0)
    drawn = [kind[generator.integers(0, max(len(kind), 1), (RESAMPLES, len(kind)))] for kind in (good, defect)]
    low, high = np.quantile(_batch(rule, *drawn), [0.025, 0.975])
    return float(low), float(high)


def _digest(good: Scores, defect: Scores) -> str:
    return hashlib.sha256(b"|".join(np.sort(kind).astype("<f8").tobytes() for kind in (good, defect))).hexdigest()


@dataclass(frozen=True, slots=True)
class Platt:
    """Calibrated probability of a raw score: sigmoid(slope * score + offset)."""

    slope: float
    offset: float

    def logit(self, scores: Scores) -> Scores:
        """Logit of the probability for each raw score: the same order, without an end at 0 and 1."""
        return self.slope * scores + self.offset

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
