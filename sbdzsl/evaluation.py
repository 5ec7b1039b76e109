"""Bundle and manifest to figures. Every image goes through the same `Inspector` as in an audit.

A surface that the bundle has not learnt counts as unseen. Images that cannot be read are counted, listed and left out
of the figures. Detector figures use each image's own surface, whatever the router said; `end_to_end` is what a
user of the whole system gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sbdzsl.bundle import Bundle
from sbdzsl.calibration import Policy
from sbdzsl.datasets.sample import Sample, samples_from_table
from sbdzsl.errors import DataError, ImageError
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.metrics import auroc, average_precision, confusion, zero_shot_figures
from sbdzsl.runtime import Runtime
from sbdzsl.verdict import Verdict

BUDGETS = (0.02, 0.05)


@dataclass(frozen=True, slots=True)
class Judged:
    """A test image, its verdict, and the raw score by its own surface's detector (None: unseen surface)."""

    sample: Sample
    verdict: Verdict
    own_score: float | None


def evaluate(
    bundle: Bundle,
    manifest: pa.Table,
    policy: Policy | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    max_memory_mb: float | None = None,
    runtime: Runtime = "torch",
) -> tuple[dict[str, Any], list[Verdict]]:
    """Figures of a bundle on the `test` rows of a manifest, as plain JSON values, and the verdicts behind them.

    Raises `DataError` "too-few-images" where the manifest has no test rows.
    """
    samples = [sample for sample in samples_from_table(manifest) if sample.split == "test"]
    if not samples:
        raise DataError("too-few-images", "the manifests hold no row with split 'test'; make them by `sbdzsl ingest`")
    inspector = Inspector(bundle, policy, device, max_memory_mb, runtime)
    judged = []
    for done, sample in enumerate(samples, start=1):
        judged.append(_judge(inspector, sample))
        if progress:
            progress(done, len(samples))
    readable = [one for one in judged if one.verdict.verdict != "error"]
    figures: dict[str, Any] = {
        "bundle": bundle.digest,
        "num_images": len(judged),
        "num_errors": len(judged) - len(readable),
        "errors": [
            {"uri": one.sample.uri, "code": one.verdict.error_code} for one in judged if one.verdict.verdict == "error"
        ],
    }
    figures |= _router_figures(bundle, readable)
    figures["end_to_end"] = _end_to_end(bundle, readable)
    figures["surfaces"] = {
        surface: _surface_figures(
            bundle, inspector, surface, [one for one in readable if one.sample.surface == surface]
        )
        for surface in sorted({one.sample.surface for one in readable if one.sample.surface})
    }
    return figures, [one.verdict for one in judged]


def _judge(inspector: Inspector, sample: Sample) -> Judged:
    loaded = load_image(sample.image_id, sample.uri, inspector.bundle.settings.image, sample.bit_depth)
    verdict = inspector.decide(loaded)
    if loaded.image is None or verdict.verdict == "error":
        return Judged(sample, verdict, None)
    if sample.surface is None or sample.surface not in inspector.bundle.detectors:
        return Judged(sample, verdict, None)
    if verdict.surface == sample.surface and verdict.defect_score is not None:
        return Judged(sample, verdict, verdict.defect_score)
    try:
        detection, _ = inspector.detect(loaded.image.grey(), sample.surface)
    except ImageError as error:
        # Named otherwise, it never came to its own detector, which cannot judge it either: no figure may count it.
        failed = replace(verdict, verdict="error", error_code=error.code, error_detail=error.message)
        return Judged(sample, failed, None)
    return Judged(sample, verdict, detection.defect_score)


def _router_figures(bundle: Bundle, judged: Sequence[Judged]) -> dict[str, Any]:
    surfaces = [one.sample.surface or "" for one in judged]
    named = [one.verdict.surface or "" for one in judged]
    scores = np.array([one.verdict.unseen_score for one in judged], dtype=np.float64)
    strange = np.array([surface not in bundle.detectors for surface in surfaces], dtype=bool)
    flagged = np.array([one.verdict.verdict == "unseen" for one in judged], dtype=bool)
    at_own = zero_shot_figures(surfaces, named, flagged, bundle.surfaces)
    budgets = {}
    for rate in BUDGETS:
        threshold = bundle.router.threshold(rate)
        at_rate = zero_shot_figures(surfaces, named, scores > threshold, bundle.surfaces)
        budgets[str(rate)] = {
            "threshold": threshold,
            "s": at_rate.s,
            "u": at_rate.u,
            "h": at_rate.h,
            "false_alarms": at_rate.false_alarms,
        }
    return {
        "s": at_own.s,
        "u": at_own.u,
        "h": at_own.h,
        "naming": at_own.naming,
        "unseen_false_alarms": at_own.false_alarms,
        "unseen_auroc": auroc(strange, scores),
        "routed_right": dict(at_own.per_surface),
        "budgets": budgets,
    }


def _surface_figures(bundle: Bundle, inspector: Inspector, surface: str, judged: Sequence[Judged]) -> dict[str, Any]:
    if surface not in bundle.detectors:
        return {"seen": False, "num_images": len(judged)}
    labelled = [one for one in judged if one.sample.label is not None]
    labels = np.array([one.sample.label == "defect" for one in labelled], dtype=bool)
    scores = np.array([one.own_score for one in labelled], dtype=np.float64)
    threshold = inspector.threshold(surface)
    counts = confusion(labels, scores, threshold.value)
    return {
        "seen": True,
        "num_images": len(judged),
        "num_good": int((~labels).sum()),
        "num_defect": int(labels.sum()),
        "ap": average_precision(labels, scores),
        "auroc": auroc(labels, scores),
        "f1": counts.f1,
        "fp": counts.false_positives,
        "fn": counts.false_negatives,
        "threshold": threshold.value,
        "threshold_policy": threshold.policy,
        "promised_false_alarm_rate": threshold.promised_rate,
    }


def _end_to_end(bundle: Bundle, judged: Sequence[Judged]) -> dict[str, int]:
    """Images of seen surfaces by what became of them; `alarm` is a verdict "defect" or "unseen"."""
    counts = {"found": 0, "missed": 0, "false_alarms": 0, "passed": 0, "unseen_flagged": 0, "unseen_let_through": 0}
    for one in judged:
        alarm = one.verdict.verdict in ("defect", "unseen")
        if one.sample.surface not in bundle.detectors:
            counts["unseen_flagged" if one.verdict.verdict == "unseen" else "unseen_let_through"] += 1
        elif one.sample.label == "defect":
            counts["found" if alarm else "missed"] += 1
        elif one.sample.label == "benign":
            counts["false_alarms" if alarm else "passed"] += 1
    return counts
