"""Bundle and manifest to figures. Every image goes through the same `Inspector` as in an audit.

A surface that the bundle has not learnt counts as unseen. Images that cannot be read are counted, listed and left out
of the figures. Detector figures use each image's own surface, whatever the router said; `end_to_end` is what a
user of the whole system gets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbdzsl import lake
from sbdzsl.bundle import Bundle
from sbdzsl.config import ThresholdRule
from sbdzsl.datasets.sample import Sample, samples_from_table
from sbdzsl.detector_figures import SurfaceScores, mean_figures, pooled_figures, surface_figures
from sbdzsl.errors import DataError, ImageError
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.metrics import auroc, zero_shot_figures
from sbdzsl.robustness import robustness
from sbdzsl.runtime import Runtime
from sbdzsl.verdict import Verdict, to_parquet

BUDGETS = (0.02, 0.05)

#: What `write` leaves.
FILES = (FIGURES, VERDICTS, SCORES) = ("figures.json", "verdicts.parquet", "scores.json")


@dataclass(frozen=True, slots=True)
class Judged:
    """A test image and its verdict."""

    sample: Sample
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found: `figures` as plain JSON values, and the verdicts and scores that they follow from.

    `scores` holds the seen surfaces, by name: what each detector says about the test images of its own surface.
    """

    figures: dict[str, Any]
    verdicts: tuple[Verdict, ...]
    scores: dict[str, SurfaceScores]


def evaluate(
    bundle: Bundle,
    manifest: pa.Table,
    policy: ThresholdRule | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    with_robustness: bool = False,
    seed: int = 0,
    max_memory_mb: float | None = None,
    runtime: Runtime = "torch",
) -> Evaluation:
    """Figures of a bundle on the `test` rows of a manifest.

    `with_robustness` judges every image of a seen surface sixteen times more, see `robustness`; `seed` is the one of
    the bootstrap. Raises `DataError` "too-few-images" where the manifest has no test rows.
    """
    samples = [sample for sample in samples_from_table(manifest) if sample.split == "test"]
    if not samples:
        raise DataError("too-few-images", "the manifests hold no row with split 'test'; make them by `sbdzsl ingest`")
    inspector = Inspector(bundle, policy, device, max_memory_mb, runtime)
    scores: dict[str, SurfaceScores] = {}
    judged = []
    for done, sample in enumerate(samples, start=1):
        judged.append(_judge(inspector, sample, scores))
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
    figures |= _detector_figures(readable, scores, np.random.default_rng(seed))
    if with_robustness:
        for surface, found in scores.items():
            figures["surfaces"][surface]["robustness"] = _robustness(inspector, surface, found, seed)
    return Evaluation(figures, tuple(one.verdict for one in judged), dict(sorted(scores.items())))


def write(found: Evaluation, url: str) -> None:
    """Keep an evaluation as `FILES` in the folder or URL `url`. Raises `LakeError`."""
    scores = {
        surface: {sample.image_id: raw for sample, raw in zip(one.samples, one.raw, strict=True)}
        for surface, one in found.scores.items()
    }
    lake.write_bytes(lake.join(url, VERDICTS), to_parquet(found.verdicts))
    for name, values in ((SCORES, scores), (FIGURES, found.figures)):
        lake.write_bytes(lake.join(url, name), json.dumps(values, indent=2, allow_nan=False).encode())


def read(
    url: str, bundle: Bundle, manifest: pa.Table, policy: ThresholdRule | None = None
) -> tuple[dict[str, Any], dict[str, SurfaceScores]]:
    """The figures that `write` kept, and the scores of the same bundle, manifest and policy, without their pixels.

    Raises `LakeError`.
    """
    figures, stored = (json.loads(lake.read_bytes(lake.join(url, name))) for name in (FIGURES, SCORES))
    samples = {sample.image_id: sample for sample in samples_from_table(manifest)}
    scores = {}
    for surface, raw in stored.items():
        entry = bundle.detectors[surface]
        own = [samples[image_id] for image_id in raw]
        scores[surface] = SurfaceScores(surface, entry.threshold(policy), entry.platt, own, list(raw.values()))
    return figures, scores


def _judge(inspector: Inspector, sample: Sample, scores: dict[str, SurfaceScores]) -> Judged:
    """The verdict; the map by the image's own surface's detector, whatever the router says, goes to `scores`."""
    loaded = load_image(sample.image_id, sample.uri, inspector.bundle.settings.image, sample.bit_depth)
    verdict = inspector.decide(loaded)
    surface = sample.surface
    if loaded.image is None or verdict.verdict == "error" or surface not in inspector.bundle.detectors:
        return Judged(sample, verdict)
    assert surface is not None
    platt = inspector.bundle.detectors[surface].platt
    try:
        _, found = inspector.detect(loaded.image.grey(), surface)
    except ImageError as error:
        # Named otherwise, it never came to its own detector, which cannot judge it either: no figure may count it.
        return Judged(sample, replace(verdict, verdict="error", error_code=error.code, error_detail=error.message))
    scores.setdefault(surface, SurfaceScores(surface, inspector.threshold(surface), platt)).add(sample, found)
    return Judged(sample, verdict)


def _detector_figures(
    judged: Sequence[Judged], scores: Mapping[str, SurfaceScores], generator: np.random.Generator
) -> dict[str, Any]:
    surfaces: dict[str, dict[str, Any]] = {}
    estimates = []
    for surface in sorted({one.sample.surface for one in judged if one.sample.surface}):
        num_images = sum(one.sample.surface == surface for one in judged)
        surfaces[surface] = {"seen": surface in scores, "num_images": num_images}
        if surface in scores:
            figures, found = surface_figures(scores[surface], generator)
            surfaces[surface] |= figures
            estimates.append(found)
    pooled = pooled_figures([scores[surface] for surface in sorted(scores)], generator)
    return {"surfaces": surfaces, "pooled": pooled, "mean": mean_figures(estimates)}


def _robustness(inspector: Inspector, surface: str, found: SurfaceScores, seed: int) -> list[dict[str, Any]]:
    def images() -> Iterator[tuple[NDArray[np.float32], bool]]:
        for sample in found.samples:
            image = load_image(sample.image_id, sample.uri, inspector.bundle.settings.image, sample.bit_depth).image
            if image is not None:
                yield image.grey(), sample.label == "defect"

    def score(grey: NDArray[np.float32]) -> float:
        return inspector.detect(grey, surface)[1].score

    return [asdict(row) for row in robustness(score, images(), found.threshold.value, seed)]


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
