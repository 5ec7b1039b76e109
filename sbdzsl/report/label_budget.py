"""What labels there were for a surface, and what so many of them can and cannot show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sbdzsl.bundle import Bundle
from sbdzsl.calibration import Threshold, proportion_range
from sbdzsl.config import ThresholdRule
from sbdzsl.datasets.sample import Sample, samples_from_table
from sbdzsl.report.formats import share

#: Samples by surface and split.
Places = Mapping[tuple[str | None, str | None], Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Labels:
    """Images of one surface in one split; `masked` of the defective ones have a mask, `unlabelled` count as good."""

    good: int
    defective: int
    masked: int
    unlabelled: int


@dataclass(frozen=True, slots=True)
class LabelBudget:
    """The labels of one surface; `meaning` says in sentences what follows from their numbers."""

    surface: str
    train: Labels
    val: Labels
    test: Labels
    meaning: tuple[str, ...]


def label_budgets(
    training: pa.Table, evaluation: pa.Table, bundle: Bundle, policy: ThresholdRule | None
) -> dict[str, LabelBudget]:
    """Of the surfaces of a bundle: its train and val images in `training`, its test images in `evaluation`."""
    learnt, measured = _by_place(training), _by_place(evaluation)
    return {surface: _budget(surface, learnt, measured, bundle, policy) for surface in bundle.surfaces}


def _by_place(table: pa.Table) -> Places:
    found: dict[tuple[str | None, str | None], list[Sample]] = defaultdict(list)
    for sample in samples_from_table(table):
        found[sample.surface, sample.split].append(sample)
    return found


def _budget(
    surface: str, learnt: Places, measured: Places, bundle: Bundle, policy: ThresholdRule | None
) -> LabelBudget:
    train, val = (_labels(learnt.get((surface, split), ())) for split in ("train", "val"))
    test = _labels(measured.get((surface, "test"), ()))
    entry = bundle.detectors[surface]
    threshold = entry.threshold(policy)
    meaning = (
        _level(train),
        _promise(threshold, entry.settings.false_alarm_rate),
        _misses(threshold.num_defect, test.defective),
    )
    return LabelBudget(surface, train, val, test, meaning)


def _labels(own: Sequence[Sample]) -> Labels:
    defective = [sample for sample in own if sample.label == "defect"]
    return Labels(
        good=sum(sample.label == "benign" for sample in own),
        defective=len(defective),
        masked=sum(sample.mask_uri is not None for sample in defective),
        unlabelled=sum(sample.label is None for sample in own),
    )


def _level(train: Labels) -> str:
    if not train.defective:
        return (
            "No defective image to train on: the detector has learnt from defects drawn into good images. A few real "
            "ones, even without masks, would tell it what yours look like."
        )
    if not train.masked:
        return (
            f"The {train.defective} defective training images have no masks: that they are defective is known, "
            "where is not. Masks of some of them would teach it the places."
        )
    if train.masked < train.defective:
        return (
            f"{train.masked} of {train.defective} defective training images have a mask; both kinds were learnt from."
        )
    return f"All {train.defective} defective training images have a mask."


def _promise(threshold: Threshold, asked: float) -> str:
    """What the held-out good images support: with n of them no rate below 1/(n+1)."""
    lowest = share(1 / (threshold.num_good + 1))
    held_out = f"{threshold.num_good} good images were held out, which support false-alarm rates of {lowest} and more"
    if threshold.promised_rate is None or threshold.rate_interval is None:
        return f"{held_out}; the policy in force promises none."
    low, high = (share(end) for end in threshold.rate_interval)
    drawn = f"drawn anew, such images would give between {low} and {high}"
    if threshold.promised_rate > asked + 1e-9:
        needed = math.ceil(1 / asked - 1e-9) - 1
        return (
            f"{held_out}: not the {share(asked)} asked for, but {share(threshold.promised_rate)} is promised; {drawn}. "
            f"{needed} good ones would be enough."
        )
    return f"{held_out}: {share(threshold.promised_rate)} is promised; {drawn}."


def _misses(held_out: int, tested: int) -> str:
    """What a count of defects could say at best: that none of so many was missed."""
    if not tested:
        return f"Held out: {held_out} defective; tested: none, so that nothing is known of misses."
    found = proportion_range(0, tested)
    assert found is not None
    return (
        f"Held out: {held_out} defective; tested: {tested}. To miss none of those tested would still leave a miss "
        f"rate of up to {share(found[1])} open."
    )
