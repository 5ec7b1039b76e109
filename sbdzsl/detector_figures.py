"""Figures of detectors on labelled images: of one surface, pooled over surfaces, and their mean.

Scores by the detector of an image's own surface come in, plain JSON values go out, each figure with the 95 % bootstrap
interval under its name in `intervals`. What was chosen on the very images it is measured on has `on_test` in its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sbdzsl.bootstrap import Estimate, bootstrap
from sbdzsl.bundle import SurfaceDetector
from sbdzsl.calibration import Platt, Threshold, proportion_range
from sbdzsl.config import ImageSettings
from sbdzsl.datasets.sample import Sample, load_mask
from sbdzsl.errors import DataError, LakeError
from sbdzsl.inspector import load_image
from sbdzsl.metrics import Floats, Labels, Scores, best_f1
from sbdzsl.pixel_metrics import PixelTally
from sbdzsl.sbdd.predict import DefectMap

#: Figures that a mean over surfaces is taken of; counts are summed in the pooled ones instead.
AVERAGED = ("ap", "ap_trapezoid", "auroc", "f1", "best_f1_on_test", "calibration_error", "pixel_ap", "aupro")
_COUNTS = ("fp", "fn", "false_alarms_at_full_recall")


@dataclass(slots=True)
class SurfaceScores:
    """What one detector says about the labelled images of its surface; filled by `add`.

    `samples` and `scores` (raw) are in one order. `pixels` counts the images whose mask is known: good ones, and
    defective ones with a mask that can be read; `mask_errors` lists the others that name one.
    """

    surface: str
    threshold: Threshold
    platt: Platt | None
    samples: list[Sample] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    pixels: PixelTally = field(default_factory=PixelTally)
    mask_kinds: set[str] = field(default_factory=set)
    mask_errors: list[dict[str, str]] = field(default_factory=list)

    def add(self, sample: Sample, found: DefectMap) -> None:
        """Take one image; without a label it is left out."""
        if sample.label is None:
            return
        self.samples.append(sample)
        self.raw.append(found.score)
        try:
            mask = load_mask(sample, (found.source_height, found.source_width))
        except (DataError, LakeError) as error:
            self.mask_errors.append({"uri": sample.mask_uri or sample.uri, "code": error.code})
            return
        if mask is None:
            return
        # In source pixels, where the mask was drawn: the map is interpolated, never the mask shrunk.
        self.pixels.add(found.heat(), mask)
        if mask.any() and sample.mask_kind is not None:
            self.mask_kinds.add(sample.mask_kind)

    @property
    def labels(self) -> Labels:
        """True where the image is defective, [N]."""
        return np.array([sample.label == "defect" for sample in self.samples], dtype=bool)

    @property
    def scores(self) -> Scores:
        """Raw scores, [N]."""
        return np.array(self.raw, dtype=np.float64)

    @property
    def called(self) -> Labels:
        """True where the image alarms at the threshold in force, [N]."""
        return np.asarray(self.scores > self.threshold.value)

    @property
    def probabilities(self) -> Floats | None:
        """Calibrated probabilities, [N]; None where the detector has none."""
        platt = self.platt
        return None if platt is None else np.array([platt.probability(score) for score in self.raw], dtype=np.float64)


def score_samples(
    surface: str, entry: SurfaceDetector, samples: Iterable[Sample], settings: ImageSettings, threshold: Threshold
) -> tuple[SurfaceScores, list[dict[str, str]]]:
    """Scores of a detector alone on images of its surface, and the images that could not be read, with their codes."""
    scores, errors = SurfaceScores(surface, threshold, entry.platt), list[dict[str, str]]()
    for sample in samples:
        loaded = load_image(sample.image_id, sample.uri, settings, sample.bit_depth)
        if loaded.image is None:
            assert loaded.error is not None
            errors.append({"uri": sample.uri, "code": loaded.error.code})
        else:
            scores.add(sample, entry.detector.detect(loaded.image.grey()))
    return scores, errors


def surface_figures(
    scores: SurfaceScores, generator: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """All figures of one detector as plain JSON values, and the estimates behind them."""
    labels, called = scores.labels, scores.called
    estimates = _renamed(bootstrap(labels, scores.scores, called, generator, scores.probabilities))
    estimates |= scores.pixels.estimates(generator)
    threshold, best = scores.threshold, best_f1(labels, scores.scores)
    num_good, num_defect = int((~labels).sum()), int(labels.sum())
    false_alarms, misses = int((called & ~labels).sum()), int((~called & labels).sum())
    figures = {
        "num_good": num_good,
        "num_defect": num_defect,
        **_values(estimates),
        "threshold": threshold.value,
        "threshold_policy": threshold.policy,
        "promised_false_alarm_rate": threshold.promised_rate,
        # Exact ranges: the bootstrap's has no width where nothing went wrong, however few the images are.
        "false_alarm_rate": false_alarms / num_good if num_good else None,
        "false_alarm_range": proportion_range(false_alarms, num_good),
        "miss_rate": misses / num_defect if num_defect else None,
        "miss_range": proportion_range(misses, num_defect),
        "threshold_of_best_f1_on_test": best.threshold if best else None,
        "fp_at_best_f1_on_test": best.confusion.false_positives if best else None,
        "fn_at_best_f1_on_test": best.confusion.false_negatives if best else None,
        "pixels": {
            "num_images": scores.pixels.num_images,
            "num_regions": scores.pixels.num_regions,
            "mask_kinds": sorted(scores.mask_kinds),
            "mask_errors": scores.mask_errors,
        },
    }
    return figures, estimates


def pooled_figures(surfaces: Sequence[SurfaceScores], generator: np.random.Generator) -> dict[str, Any]:
    """Figures of all images of several detectors together.

    Raw scores of two detectors do not compare. Images are ranked by the logit of their calibrated probability, which
    means the same on every surface. (A conformal p-value would, too, but cannot tell apart what lies above all
    held-out good images, as nearly all defects do: with n of them it has n + 1 values.) A surface without a calibrated
    probability, since no defect of it was held out, is in `left_out`. Each image alarms at its own surface's
    threshold. Map logits have no common scale: pixels are not pooled.
    """
    pooled = [one for one in surfaces if one.platt is not None and one.samples]
    figures: dict[str, Any] = {
        "surfaces": [one.surface for one in pooled],
        "left_out": [one.surface for one in surfaces if one.platt is None or not one.samples],
    }
    if not pooled:
        return figures
    labels = np.concatenate([one.labels for one in pooled])
    logits = np.concatenate([one.platt.logit(one.scores) for one in pooled if one.platt is not None])
    probabilities = np.concatenate([found for one in pooled if (found := one.probabilities) is not None])
    called = np.concatenate([one.called for one in pooled])
    strata = np.repeat(np.arange(len(pooled)), [len(one.samples) for one in pooled])
    estimates = _renamed(bootstrap(labels, logits, called, generator, probabilities, strata))
    best = best_f1(labels, logits)
    return (
        figures
        | {"num_good": int((~labels).sum()), "num_defect": int(labels.sum())}
        | _values(estimates)
        | {
            "fp_at_best_f1_on_test": best.confusion.false_positives if best else None,
            "fn_at_best_f1_on_test": best.confusion.false_negatives if best else None,
        }
    )


def mean_figures(estimates: Sequence[Mapping[str, Estimate]]) -> dict[str, Any]:
    """Macro means over surfaces, each surface counting alike; where a figure is not defined its surface is left out."""
    return _values({name: Estimate.mean(one[name] for one in estimates) for name in AVERAGED})


def _renamed(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {"best_f1_on_test" if name == "best_f1" else name: one for name, one in estimates.items()}


def _values(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Values by name and the intervals of those that are defined; of counts whole numbers."""
    values: dict[str, Any] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name, one in estimates.items():
        values[name], interval = one.value, one.interval()
        if one.value is None or interval is None:
            continue
        if name in _COUNTS:
            values[name], interval = int(one.value), (math.floor(interval[0]), math.ceil(interval[1]))
        intervals[name] = interval
    return values | {"intervals": intervals}
