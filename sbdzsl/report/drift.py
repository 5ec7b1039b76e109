"""Drift: whether the images of an audit still look like the held-out good images that the bundle was calibrated on.

Four measures a surface: brightness and sharpness of the image, unseen score, defect score. Each is compared with the
bundle's reference in two ways: by the largest distance of the two cumulative distributions (two-sample test of
Kolmogorov and Smirnov), which says whether there is a change, and by the population stability index (PSI, in bins that
hold equal shares of the reference), which says how large it is.

The rules:
- Too few images is an answer of its own, never "no drift": that answer takes a test that would have seen a distance of
  `WANTED_DISTANCE` with a probability of `POWER`. With n images and m references it sees
  (c + z / 2) * sqrt(1/n + 1/m), c = sqrt(-ln(a / 2) / 2), z the normal quantile of `POWER`, a = `FALSE_ALARMS` / number
  of comparisons. z/2 is cautious: the standard deviation of a share is at most 1/2. A drift that is found is said with
  fewer images, too: a change of light may leave nothing in common.
- All comparisons of an audit are corrected together (Holm 1979): the chance of any false warning is at most
  `FALSE_ALARMS`, as far as the images are independent.
- A warning takes both: a corrected p-value below `FALSE_ALARMS`, and a PSI of at least `ACT` (the usual level to act
  at) that is above its noise. Without drift PSI / (1/n + 1/m) is about chi-squared with one degree of freedom fewer
  than there are bins (Yurdakul and Naranjo 2020); the noise is the 95 % point of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

Values = NDArray[np.float64]
Measure = Literal["brightness", "sharpness", "unseen_score", "defect_score"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

#: Reference values of each surface and measure.
References = Mapping[str, Mapping[Measure, Values]]

FALSE_ALARMS = 0.01
POWER, WANTED_DISTANCE = 0.8, 0.5
ACT = 0.25
MAX_BINS, _MIN_IN_BIN = 10, 5


@dataclass(frozen=True, slots=True)
class Drift:
    """One measure of one surface against its reference.

    `smallest_seen` is the distance of distributions (0 to 1) that the test sees with a probability of 0.8; None without
    images. `psi`, `psi_noise`, `ks`, `p_value` (corrected) and `moved` are None where no drift was found and the images
    are too few to say that there is none.
    """

    measure: Measure
    num_reference: int
    num_images: int
    smallest_seen: float | None
    reference_median: float | None
    median: float | None
    psi: float | None = None
    psi_noise: float | None = None
    ks: float | None = None
    p_value: float | None = None
    moved: bool | None = None


@dataclass(frozen=True, slots=True)
class SurfaceDrift:
    """The measures of one surface, in the order of `MEASURES`."""

    surface: str
    measures: tuple[Drift, ...]

    @property
    def moved(self) -> tuple[Drift, ...]:
        """The measures that give a warning."""
        return tuple(one for one in self.measures if one.moved)

    @property
    def warning(self) -> str | None:
        """What moved, by how much, and what to do about it, in plain words; None without a warning."""
        if not self.moved:
            return None
        found = "; ".join(_words(one) for one in self.moved)
        names = {one.measure for one in self.moved}
        return f"{self.surface}: {found}. {next(advice for causes, advice in _ADVICE if names & causes)}"


#: What to do, by what moved: the first that applies, causes before what follows from them.
_ADVICE: tuple[tuple[set[str], str], ...] = (
    (
        {"brightness"},
        "Check lamp, exposure and white balance. An audit with `--promise envelope` keeps the rate of false alarms for "
        "unseen surfaces under changed light.",
    ),
    (
        {"sharpness"},
        "Check focus, lens and vibration; noise of the camera raises sharpness, and so does more contrast. "
        "`--promise envelope` allows for some blur and noise.",
    ),
    (
        {"unseen_score"},
        "No change of light or focus is seen to explain it: look for a new batch or supplier, or for another surface "
        "that comes nearest to this one, among the strangest images; `sbdzsl groups` sorts them, `sbdzsl enrol` "
        "teaches a new surface, `sbdzsl extend` a new batch of a known one.",
    ),
    (
        {"defect_score"},
        "Good images score otherwise than those that set the threshold: the rate of false alarms is no longer the one "
        "promised. Label some of these images, and train or choose the threshold again.",
    ),
)

_NAMES: dict[str, tuple[str, str, str]] = {
    "brightness": ("brightness", "brighter", "darker"),
    "sharpness": ("sharpness", "sharper or noisier", "less sharp"),
    "unseen_score": ("unseen score", "stranger", "less strange"),
    "defect_score": ("defect score of images judged good", "higher", "lower"),
}


def _words(one: Drift) -> str:
    name, more, less = _NAMES[one.measure]
    assert one.median is not None
    assert one.reference_median is not None
    assert one.psi is not None
    direction = more if one.median > one.reference_median else less
    if one.median == one.reference_median:
        direction = "same middle, other spread"
    return f"{name} moved: median {one.reference_median:.3g} → {one.median:.3g} ({direction}; PSI {one.psi:.2f})"


def measure_drift(rows: pl.DataFrame, references: References) -> tuple[SurfaceDrift, ...]:
    """Compare rows with the references of their surfaces, in the order of the surfaces' names.

    `rows` has the columns `surface`, `verdict`, `defect_threshold` and the measures. Images on unseen surfaces count
    for the surface that is nearest to them, so that light that has changed is seen even where it makes all of a surface
    unseen; defect scores are those of images judged good, against references below the same threshold: defects are
    counted elsewhere and are no drift.
    """
    surfaces = sorted(references)
    pairs: list[tuple[Measure, Values, Values]] = []
    for surface in surfaces:
        own = rows.filter(pl.col("surface") == surface)
        good = own.filter(pl.col("verdict") == "good")
        threshold = good["defect_threshold"].max()
        for measure in MEASURES:
            reference = _finite(references[surface].get(measure, np.empty(0)))
            found = _finite((good if measure == "defect_score" else own)[measure].to_numpy())
            if measure == "defect_score" and isinstance(threshold, float):
                reference = reference[reference <= threshold]
            pairs.append((measure, reference, found))
    compared, number = compare(pairs), len(MEASURES)
    return tuple(
        SurfaceDrift(surface, tuple(compared[number * place : number * (place + 1)]))
        for place, surface in enumerate(surfaces)
    )


def compare(pairs: Sequence[tuple[Measure, Values, Values]]) -> list[Drift]:
    """Each pair of reference values and images' values, all finite; all comparisons are corrected together."""
    num_tests = sum(len(reference) > 0 and len(found) > 0 for _, reference, found in pairs)
    results: list[Drift] = []
    for measure, reference, found in pairs:
        seen = smallest_seen(len(reference), len(found), num_tests) if len(reference) and len(found) else None
        one = Drift(
            measure=measure,
            num_reference=len(reference),
            num_images=len(found),
            smallest_seen=seen,
            reference_median=float(np.median(reference)) if len(reference) else None,
            median=float(np.median(found)) if len(found) else None,
        )
        if seen is not None and seen < 1:
            from scipy import stats  # longer to import than all else that a service has of its own

            test = stats.ks_2samp(reference, found, method="asymp")
            index, noise = stability_index(reference, found)
            one = replace(one, psi=index, psi_noise=noise, ks=float(test.statistic), p_value=float(test.pvalue))
        results.append(one)
    corrected = iter(_holm([one.p_value for one in results if one.p_value is not None]))
    return [one if one.p_value is None else _decided(one, next(corrected)) for one in results]


def smallest_seen(num_reference: int, num_images: int, num_tests: int) -> float:
    """Distance of two distributions that the test sees with a probability of `POWER`, both sizes above 0; at most 1."""
    critical = math.sqrt(-math.log(FALSE_ALARMS / num_tests / 2) / 2)
    spread = math.sqrt(1 / num_reference + 1 / num_images)
    return min((critical + float(special.ndtri(POWER)) / 2) * spread, 1.0)


def stability_index(reference: Values, found: Values) -> tuple[float, float]:
    """PSI of `found` against `reference` and the level that it stays below 95 % of the time without drift.

    Bins hold equal shares of the reference, at least five of its values; half an image is added to each, so that an
    empty one does not make it infinite.
    """
    wanted = max(2, min(MAX_BINS, len(reference) // _MIN_IN_BIN))
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, wanted + 1)[1:-1], method="lower"))
    shares = []
    for values in (reference, found):
        # A bin ends with its edge: values that are all alike fall on one side.
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + 0.5
        shares.append(counts / counts.sum())
    expected, actual = shares
    index = float(((actual - expected) * np.log(actual / expected)).sum())
    # What chi-squared with a degree for each edge exceeds in 5 % of cases.
    noise = float(special.chdtri(len(edges), 0.05)) * (1 / len(reference) + 1 / len(found))
    return index, noise


def _decided(one: Drift, p_value: float) -> Drift:
    assert one.psi is not None
    assert one.psi_noise is not None
    assert one.smallest_seen is not None
    if p_value < FALSE_ALARMS and one.psi >= ACT and one.psi > one.psi_noise:
        return replace(one, p_value=p_value, moved=True)
    if one.smallest_seen <= WANTED_DISTANCE:
        return replace(one, p_value=p_value, moved=False)
    return replace(one, psi=None, psi_noise=None, ks=None, p_value=None)


def _holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1) if len(p_values) else scaled
    return [float(value) for value in corrected]


def _finite(values: Values) -> Values:
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]
