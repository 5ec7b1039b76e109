"""An audit in figures: one small frozen `Summary`, of which the page is drawn and `summary.json` written.

`counting.summarise` makes it of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from sbdzsl.config import Promise
from sbdzsl.report.drift import SurfaceDrift
from sbdzsl.report.figures import Counts, Histogram, Quantiles, Rate
from sbdzsl.report.places import Folders, HeatMap, Timeline

#: 2: run, stop and selection in the facts; drift, heat maps, folders, timeline, warnings, exit code.
SUMMARY_VERSION = 2


@dataclass(frozen=True, slots=True)
class AuditFacts:
    """What the rows do not know about their audit.

    `missing` holds the first few image ids of the manifest that have no row, `num_missing` counts all of them;
    `num_duplicates` counts ids with more than one row, `num_unexpected` rows of no image of the manifest. `run` is the
    number of this run, the first is 1, and `num_judged` what it judged; `images_per_second` is None where that is
    nothing because an earlier run had. `stopped` is the error code of an audit that was stopped before its end, such as
    "out-of-time", `stop_detail` what there is to say about it; `exit_code` is that of the command. `selection` names in
    words what was left out of the lake or put in front, such as "sample 1%". The budgets are the false-alarm rates that
    the user asked for; `promise` says for which conditions the router's holds.
    """

    lake: str
    out: str
    bundle: str
    bundle_name: str
    started_at: datetime
    finished_at: datetime
    num_manifest: int
    num_rows: int
    missing: tuple[str, ...]
    num_missing: int
    num_duplicates: int
    num_shards: int
    num_shards_resumed: int
    images_per_second: float | None
    actors: int
    run: int
    num_judged: int
    num_unexpected: int = 0
    stopped: str | None = None
    stop_detail: str | None = None
    exit_code: int = 0
    selection: tuple[str, ...] = ()
    unseen_budget: float | None = None
    promise: Promise = "plain"
    defect_budget: float | None = None


@dataclass(frozen=True, slots=True)
class SurfaceSummary:
    """One surface: images judged on it, and the images on unseen surfaces that came nearest to it."""

    surface: str
    good: int
    defect: int
    unseen_nearest: int
    defect_rate: Rate
    defect_thresholds: tuple[float, ...]
    threshold_policies: tuple[str, ...]
    defect_scores: Quantiles
    defect_histogram: Histogram | None
    decode_ms: float | None
    route_ms: float | None
    detect_ms: float | None


@dataclass(frozen=True, slots=True)
class UnseenSummary:
    """Stage one over all images that it could score: the share called unseen beside the budget the user stated."""

    rate: Rate
    budget: float | None
    thresholds: tuple[float, ...]
    scores: Quantiles
    histogram: Histogram | None

    @property
    def above_budget(self) -> bool:
        """Whether more images are unseen than false alarms at the budget explain, at 95 % confidence."""
        return self.budget is not None and self.rate.low is not None and self.rate.low > self.budget


@dataclass(frozen=True, slots=True)
class ErrorExample:
    """One image that could not be judged."""

    uri: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Images that could not be judged for one reason."""

    code: str
    count: int
    examples: tuple[ErrorExample, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Time an image, in milliseconds, over the rows that have it."""

    decode_ms: Quantiles
    route_ms: Quantiles
    detect_ms: Quantiles


@dataclass(frozen=True, slots=True)
class Summary:
    """An audit in figures. `to_json` and `from_json` are each other's inverse.

    Quantiles and drift are of 1 in `sampled_one_in` images of the largest surface, by their ids; all else is counted.
    """

    facts: AuditFacts
    counts: Counts
    surfaces: tuple[SurfaceSummary, ...]
    unseen: UnseenSummary
    errors: tuple[ErrorSummary, ...]
    timing: Timing
    drift: tuple[SurfaceDrift, ...]
    heat_maps: tuple[HeatMap, ...]
    folders: Folders
    timeline: Timeline | None
    sampled_one_in: int = 1
    version: int = field(default=SUMMARY_VERSION)

    @property
    def complete(self) -> bool:
        """Whether every image of the manifest has exactly one row, the table holds no other, and nothing stopped it."""
        facts = self.facts
        matched = facts.num_manifest == facts.num_rows == self.counts.total
        return matched and not (facts.num_missing or facts.num_duplicates or facts.num_unexpected or facts.stopped)

    @property
    def sentence(self) -> str:
        """The result in one plain sentence."""
        counts, facts = self.counts, self.facts
        judged = (
            f"{_images(counts.total)}: {counts.good:,} good, {counts.defect:,} defective, "
            f"{counts.unseen:,} on unseen surfaces, {counts.error:,} could not be judged"
        )
        if self.complete and not counts.total:
            return "The manifest is empty: there was no image to judge."
        if self.complete:
            return f"{judged}; every image of the manifest has exactly one row."
        why = f"stopped ({facts.stopped}); " if facts.stopped else ""
        return (
            f"Not complete: {why}the manifest names {_images(facts.num_manifest)}, the table holds {counts.total:,} "
            f"rows; {facts.num_missing:,} without a row, {facts.num_duplicates:,} with more than one, "
            f"{facts.num_unexpected:,} of no image of the manifest. So far {judged}."
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look into, in plain sentences; drift last. None where all is as it was promised."""
        found = []
        if not self.complete:
            found.append(self.sentence)
        if self.unseen.above_budget:
            assert self.unseen.rate.value is not None
            found.append(
                f"{self.unseen.rate.value:.2%} of images are called unseen, more than the {self.unseen.budget:.2%} "
                "that false alarms explain. Look for a surface that was never taught (`sbdzsl groups`), or for other "
                "light, another lens or a new batch."
            )
        return (*found, *(one.warning for one in self.drift if one.warning))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `complete`, `sentence`, `warnings` and `exit_code` stand beside the fields."""
        first = {
            "complete": self.complete,
            "sentence": self.sentence,
            "warnings": list(self.warnings),
            "exit_code": self.facts.exit_code,
        }
        return first | _ADAPTER.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Summary:
        """Read what `to_json` wrote. Raises `ValueError` (pydantic) where a field is missing or of another type."""
        return _ADAPTER.validate_python(values)


_ADAPTER = TypeAdapter(Summary)


def _images(num: int) -> str:
    return "1 image" if num == 1 else f"{num:,} images"
