"""A recalibration, proposed from reviews: the thresholds, and what they would have done. A person decides.

Reviewed images are no random sample: most were looked at because they alarmed. Put among the held-out good images as
they are, a few dozen reviewed false alarms would stand for a few per cent of all images and drive the threshold up
until it misses defects. So the good ones are weighed: reviewed good images that did not alarm are taken all, and of the
false alarms as many, spread over their scores, as make their share among the good images what it is in the log:

    a = good images among the logged alarms / good images among all logged        (estimated from the reviews)
    taken = a / (1 - a) * quiet good images - held-out good images that alarm     (at most those reviewed)

An image alarmed if its verdict was "defect" when it was judged, whatever the threshold is by now.

Defects are taken all: a miss that somebody found is not thinned away. They are those that somebody looked at, so misses
among images that nobody reviewed stay unknown; that is what the random sample of good images is kept for.

Each recalibration begins with what the training held out, not with what the last one added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from sbdzsl import bundle as bundles
from sbdzsl.bundle import Bundle, SurfaceDetector
from sbdzsl.calibration import Threshold, fit_platt
from sbdzsl.config import ThresholdRule
from sbdzsl.errors import BundleError, ConfigError, DataError
from sbdzsl.serving.journal import Event
from sbdzsl.serving.log import read_log
from sbdzsl.serving.reviews import latest_reviews

STEP = "recalibrate"

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a threshold does: to the reviewed images, which helped to choose it, and to all logged ones."""

    false_alarms: int
    misses: int
    rejects: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """One surface's thresholds `before` and `after`, what each does, and the images that they come from.

    `reviewed_good` and `reviewed_defect` count the reviewed images with a score, `logged` all images of the surface in
    the log. `false_alarm_share`: of the good images, how many alarm, by log and reviews. `taken_false_alarms` of
    `wanted_false_alarms` stand for them among the held-out scores; where fewer were reviewed than wanted, the threshold
    is lower than it would be. `good_scores` and `defect_scores` are what joins the held-out ones.
    """

    surface: str
    before: Threshold
    after: Threshold
    effect_before: Effect
    effect_after: Effect
    held_out_good: int
    held_out_defect: int
    reviewed_good: int
    reviewed_defect: int
    logged: int
    false_alarm_share: float
    taken_false_alarms: int
    wanted_false_alarms: int
    good_scores: tuple[float, ...]
    defect_scores: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        found = asdict(self)
        for name, threshold in (("before", self.before), ("after", self.after)):
            found[name]["rule"] = str(threshold.rule)
        return found


@dataclass(frozen=True, slots=True)
class Proposals:
    """Proposals by surface, and how many reviewed images none of them uses, by reason."""

    of_surfaces: tuple[Proposal, ...]
    left_out: Counter[str]


def propose(
    bundle: Bundle, folder: str, log: str, surfaces: Sequence[str] = (), rule: ThresholdRule | None = None
) -> Proposals:
    """What the reviews in a service's data `folder` and its verdict log make of a bundle's thresholds.

    For the given surfaces, else for all that have reviews; by `rule`, else by each surface's own. Nothing is changed.
    Raises `ConfigError` for a surface that the bundle does not know, `DataError` "too-few-images" where no review of a
    surface can be used or the rule lacks its images, `LakeError` where there is no journal or no log.
    """
    for surface in surfaces:
        if surface not in bundle.detectors:
            known = ", ".join(bundle.surfaces)
            raise ConfigError("bad-config", f"surface {surface!r} is not in the bundle, which knows {known}")
    usable: dict[str, list[Event]] = {}
    left_out: Counter[str] = Counter()
    for review in latest_reviews(folder):
        why_not = _why_not(review, bundle, surfaces)
        if why_not is None:
            usable.setdefault(review.document["surface"], []).append(review)
        else:
            left_out[why_not] += 1
    without = sorted(set(surfaces) - usable.keys())
    if without or not usable:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "there are none"
        raise DataError("too-few-images", f"no review of {', '.join(without) or 'any surface'} can be used: {reasons}")
    rows = read_log(log)
    found = [_propose(bundle, surface, reviews, rows, rule) for surface, reviews in sorted(usable.items())]
    return Proposals(tuple(found), left_out)


def approve(bundle: Bundle, proposals: Proposals, to: str, by: str, reason: str) -> Bundle:
    """Write to `to` the bundle with the proposed thresholds; who approved them and why stands in its card.

    Nets, router and the other surfaces stay as they are. Raises `BundleError` "bundle-exists", `ConfigError` without
    name or reason.
    """
    if not by.strip() or not reason.strip():
        raise ConfigError("bad-config", "an approval needs the name of who gives it, and the reason")
    if bundles.exists(to):
        raise BundleError("bundle-exists", f"{to} holds a bundle already; choose another place")
    detectors = dict(bundle.detectors)
    steps = list(bundle.card["provenance"].get("steps", ()))
    for one in proposals.of_surfaces:
        entry = _joined(_held_out(bundle, one.surface), one.good_scores, one.defect_scores)
        settings = entry.settings.model_copy(update={"threshold_policy": one.after.rule})
        platt = fit_platt(entry.good_scores, entry.defect_scores)
        detectors[one.surface] = replace(entry, settings=settings, platt=platt)
        step = {"step": STEP, "parent": bundle.digest, "by": by.strip(), "reason": reason.strip()}
        steps.append(step | one.to_json())
    provenance = {**bundle.card["provenance"], "steps": steps}
    return bundles.save(to, bundle.settings, bundle.backbone, bundle.router, detectors, bundle.references, provenance)


def _why_not(review: Event, bundle: Bundle, surfaces: Sequence[str]) -> str | None:
    """Why a review says nothing about a threshold; None where it does."""
    document = review.document
    surface = document["surface"]
    if document["decision"] == "unsure":
        return "unsure: the latest review does not decide"
    if document["defect_score"] is None:
        return "without a defect score: unseen, or an error"
    if document["reason"] == "wrong surface":
        return "judged as another surface than it shows"
    if surface not in bundle.detectors or (surfaces and surface not in surfaces):
        return "of another surface"
    if document["bundle"] not in same_scores(bundle, surface):
        return "judged by a bundle with another detector"
    return None


def same_scores(bundle: Bundle, surface: str) -> set[str]:
    """Digests of the bundle and those of its parents whose detector of a surface is the same net."""
    found = {bundle.digest}
    for step in reversed(bundle.card["provenance"].get("steps", ())):
        if step["step"] == "enrol" and step["surface"] == surface:
            break
        found.add(step["parent"])
    return found


@dataclass(frozen=True, slots=True)
class _Sides:
    """Sorted scores of images that alarmed when they were judged, and of those that did not."""

    alarmed: Scores
    quiet: Scores

    @property
    def all(self) -> Scores:
        return np.concatenate([self.alarmed, self.quiet])


def _propose(
    bundle: Bundle, surface: str, reviews: Sequence[Event], rows: pl.LazyFrame, rule: ThresholdRule | None
) -> Proposal:
    before, base = bundle.detectors[surface].threshold(), _held_out(bundle, surface)
    logged = _logged(rows, surface, same_scores(bundle, surface))
    good, defect = (_reviewed(reviews, decision) for decision in ("good", "defect"))
    share = _false_alarm_share(good, defect, logged)
    held_out_alarms = int((base.good_scores > base.threshold(before.rule).value).sum())
    num_quiet = len(base.good_scores) - held_out_alarms + len(good.quiet)
    wanted = max(0, round(share / (1 - share) * num_quiet) - held_out_alarms) if share < 1 else len(good.alarmed)
    taken = _spread(good.alarmed, min(wanted, len(good.alarmed)))
    joining = np.concatenate([good.quiet, taken])
    after = _joined(base, joining, defect.all).threshold(rule or before.rule)
    return Proposal(
        surface=surface,
        before=before,
        after=after,
        effect_before=_effect(before.value, good, defect, logged),
        effect_after=_effect(after.value, good, defect, logged),
        held_out_good=len(base.good_scores),
        held_out_defect=len(base.defect_scores),
        reviewed_good=len(good.all),
        reviewed_defect=len(defect.all),
        logged=len(logged.all),
        false_alarm_share=share,
        taken_false_alarms=len(taken),
        wanted_false_alarms=wanted,
        good_scores=tuple(joining.tolist()),
        defect_scores=tuple(defect.all.tolist()),
    )


def _false_alarm_share(good: _Sides, defect: _Sides, logged: _Sides) -> float:
    """The share of good images that alarm: on either side as many of the logged are good as of the reviewed.

    Where none on a side was reviewed, what did not alarm counts as good and what did as defective.
    """

    def num_good(num_logged: int, num_good: int, num_defect: int, unreviewed: float) -> float:
        reviewed = num_good + num_defect
        # A log that has lost its oldest days can hold fewer images than were reviewed.
        return max(num_logged, reviewed) * (num_good / reviewed if reviewed else unreviewed)

    alarmed = num_good(len(logged.alarmed), len(good.alarmed), len(defect.alarmed), 0.0)
    quiet = num_good(len(logged.quiet), len(good.quiet), len(defect.quiet), 1.0)
    return alarmed / (alarmed + quiet) if alarmed else 0.0


def _effect(threshold: float, good: _Sides, defect: _Sides, logged: _Sides) -> Effect:
    above = [int((sides.all > threshold).sum()) for sides in (good, defect, logged)]
    return Effect(false_alarms=above[0], misses=len(defect.all) - above[1], rejects=above[2])


def _logged(rows: pl.LazyFrame, surface: str, bundle_digests: set[str]) -> _Sides:
    own = (pl.col("surface") == surface) & pl.col("bundle").is_in(sorted(bundle_digests))
    columns = rows.filter(own).select("verdict", "defect_score").drop_nulls().collect(engine="streaming")
    return _sides(zip(columns["verdict"].to_list(), columns["defect_score"].to_list(), strict=True))


def _reviewed(reviews: Sequence[Event], decision: str) -> _Sides:
    chosen = [review.document for review in reviews if review.document["decision"] == decision]
    return _sides((document["verdict"], document["defect_score"]) for document in chosen)


def _sides(judged: Iterable[tuple[str, float]]) -> _Sides:
    scores: dict[bool, list[float]] = {True: [], False: []}
    for verdict, score in judged:
        scores[verdict == "defect"].append(score)
    alarmed, quiet = (np.array(sorted(scores[side]), dtype=np.float64) for side in (True, False))
    return _Sides(alarmed, quiet)


def _spread(ranked: Scores, count: int) -> Scores:
    """So many of the sorted scores, evenly over their ranks."""
    return ranked[((np.arange(count) + 0.5) * len(ranked) / max(count, 1)).astype(int)]


def _held_out(bundle: Bundle, surface: str) -> SurfaceDetector:
    """A surface's detector with what its training held out alone: without what recalibrations added."""
    entry = bundle.detectors[surface]
    added = _last_step(bundle, surface)
    if added is None:
        return entry
    good, defect = added["good_scores"], added["defect_scores"]
    return replace(
        entry, good_scores=_without(entry.good_scores, good), defect_scores=_without(entry.defect_scores, defect)
    )


def _last_step(bundle: Bundle, surface: str) -> Mapping[str, Any] | None:
    """The latest recalibration of a surface since it was trained."""
    for step in reversed(bundle.card["provenance"].get("steps", ())):
        if step["surface"] == surface and step["step"] in (STEP, "enrol"):
            return step if step["step"] == STEP else None
    return None


def _without(scores: Scores, added: Sequence[float]) -> Scores:
    left = Counter(scores.tolist()) - Counter(added)
    return np.array(sorted(left.elements()), dtype=np.float64)


def _joined(base: SurfaceDetector, good: ArrayLike, defect: ArrayLike) -> SurfaceDetector:
    return replace(
        base,
        good_scores=np.concatenate([base.good_scores, np.asarray(good, dtype=np.float64)]),
        defect_scores=np.concatenate([base.defect_scores, np.asarray(defect, dtype=np.float64)]),
    )


#: What has to stand beside every proposal.
CAUTION = (
    "Reviewed images were chosen to be looked at, most of them because they alarmed, and they helped to choose the new "
    "threshold: the counts on them flatter it. False alarms were weighed by their share of the log; misses are those "
    "that somebody found, so review the sample of good images, too. The counts on logged images are of all of them."
)


def to_json(proposals: Proposals, bundle: Bundle) -> dict[str, Any]:
    """Proposals as plain JSON values."""
    return {
        "bundle": bundle.digest,
        "surfaces": [one.to_json() for one in proposals.of_surfaces],
        "left_out": dict(proposals.left_out),
        "caution": CAUTION,
    }


def to_markdown(proposals: Proposals, bundle: Bundle) -> str:
    """Proposals for a person to read and decide on."""
    lines = [f"# Proposed thresholds for bundle {bundle.digest[:16]}", ""]
    for one in proposals.of_surfaces:
        lines += [f"## {one.surface}", "", "| | before | after |", "|---|---|---|"]
        lines += [f"| {name} | {before} | {after} |" for name, before, after in compared(one)]
        lines += ["", basis(one), ""]
    lines += [f"Left out: {count} reviewed images, {reason}." for reason, count in proposals.left_out.most_common()]
    return "\n".join([*lines, *([""] if proposals.left_out else []), CAUTION, ""])


def compared(one: Proposal) -> list[tuple[str, str, str]]:
    """What is otherwise after a proposal: name, before, after."""
    before, after = one.effect_before, one.effect_after
    more = after.rejects - before.rejects
    return [
        ("threshold", f"{one.before.value:.3f}", f"{one.after.value:.3f}"),
        ("policy", one.before.policy, one.after.policy),
        (f"false alarms of {one.reviewed_good} reviewed good", f"{before.false_alarms}", f"{after.false_alarms}"),
        (f"misses of {one.reviewed_defect} reviewed defective", f"{before.misses}", f"{after.misses}"),
        (f"rejects of {one.logged} logged", f"{before.rejects}", f"{after.rejects} ({more:+d})"),
    ]


def basis(one: Proposal) -> str:
    """In one line, which images the new threshold comes from."""
    short = one.wanted_false_alarms - one.taken_false_alarms
    lacking = f" ({short} more are needed for that: review more alarms)" if short > 0 else ""
    return (
        f"From {one.held_out_good} good and {one.held_out_defect} defective held-out images and "
        f"{len(one.good_scores)} good and {len(one.defect_scores)} defective reviewed ones, "
        f"{one.taken_false_alarms} false alarms among them: of good images {one.false_alarm_share:.2%} alarm{lacking}."
    )
