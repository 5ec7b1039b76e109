"""Aggregates of an audit: a lazy scan over verdict rows becomes one small frozen `Summary`.

Everything the report says is counted here, by polars in its streaming engine, so that a million rows (or a hundred)
end in a few kilobytes. The page is drawn from the `Summary` and reads the rows again only for its gallery.
A figure that cannot be given (no rows, no score) is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from math import ceil, sqrt
from typing import Any

import polars as pl
from pydantic import TypeAdapter

from sbdzsl.config import Promise

SUMMARY_VERSION = 1

#: Bins between the lowest and the highest score of a histogram; one or two more where an edge moves to the threshold.
NUM_BINS = 40
#: Distinct thresholds, and example rows of an error, that a summary lists. An audit has one threshold a surface.
MAX_THRESHOLDS = 5
MAX_EXAMPLES = 3

_QUANTILES = {"p01": 0.01, "p05": 0.05, "p50": 0.50, "p95": 0.95, "p99": 0.99}
_SCORES = ("unseen_score", "unseen_threshold", "unseen_p_value", "defect_score", "defect_threshold")
_TIMES = ("decode_ms", "route_ms", "detect_ms")


@dataclass(frozen=True, slots=True)
class AuditFacts:
    """What the rows do not know about their audit.

    `missing` holds the first few image ids of the manifest that have no row, `num_missing` counts all of them;
    `num_duplicates` counts ids with more than one row. `images_per_second` is None where this run judged nothing
    because an earlier one had. The budgets are the false-alarm rates that the user asked for;
    `promise` says for which conditions the router's holds.
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
    unseen_budget: float | None = None
    promise: Promise = "plain"
    defect_budget: float | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows by verdict."""

    good: int = 0
    defect: int = 0
    unseen: int = 0
    error: int = 0

    @property
    def total(self) -> int:
        """All rows."""
        return self.good + self.defect + self.unseen + self.error


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of images with its 95 % interval (Wilson 1927); all None where there was nothing to take a share of."""

    num: int
    of: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Percentiles of a score or a time over the rows that have one."""

    p01: float | None
    p05: float | None
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of scores in equal bins from `low` on; a bin edge lies on the threshold where there is just one.

    `passed` are rows without, `alarmed` rows with the alarm that the score decides. The range holds all but the
    outermost 0.1 % of scores on either side; those are counted in the outermost bins.
    """

    low: float
    bin_width: float
    passed: tuple[int, ...]
    alarmed: tuple[int, ...]


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
    """An audit in figures. `to_json` and `from_json` are each other's inverse."""

    facts: AuditFacts
    counts: Counts
    surfaces: tuple[SurfaceSummary, ...]
    unseen: UnseenSummary
    errors: tuple[ErrorSummary, ...]
    timing: Timing
    version: int = field(default=SUMMARY_VERSION)

    @property
    def complete(self) -> bool:
        """Whether every image of the manifest has exactly one row, and the table holds no other."""
        facts = self.facts
        matched = facts.num_manifest == facts.num_rows == self.counts.total
        return matched and facts.num_missing == 0 and facts.num_duplicates == 0

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
        return (
            f"{judged}. Not complete: the manifest names {_images(facts.num_manifest)}, the table holds "
            f"{counts.total:,} rows; {facts.num_missing:,} without a row, {facts.num_duplicates:,} with more than one."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `complete` and `sentence` stand beside the fields."""
        return {"complete": self.complete, "sentence": self.sentence} | _ADAPTER.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Summary:
        """Read what `to_json` wrote. Raises `ValueError` (pydantic) where a field is missing or of another type."""
        return _ADAPTER.validate_python(values)


_ADAPTER = TypeAdapter(Summary)


def summarise(rows: pl.LazyFrame, facts: AuditFacts) -> Summary:
    """Count what an audit found.

    `rows` has the columns of `VERDICT_SCHEMA`, usually a scan over part files; it is read once per group of figures,
    only the columns needed. Scores that are not finite count as not given.
    """
    rows = rows.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in _SCORES + _TIMES)
    counts = _collect(rows.group_by("verdict").len())
    return Summary(
        facts=facts,
        counts=Counts(**dict(counts.iter_rows())),
        surfaces=_surfaces(rows),
        unseen=_unseen(rows, facts.unseen_budget),
        errors=_errors(rows),
        timing=_timing(rows),
    )


def rate(num: int, of: int) -> Rate:
    """The share `num` / `of` with its 95 % Wilson interval."""
    if of == 0:
        return Rate(num, of, None, None, None)
    z = 1.959964
    share = num / of
    centre = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    # At shares of 0 and 1 the bound is exact and only rounding would move it.
    return Rate(num, of, share, max(centre - half, 0.0) if num else 0.0, min(centre + half, 1.0) if num < of else 1.0)


def _surfaces(rows: pl.LazyFrame) -> tuple[SurfaceSummary, ...]:
    judged = rows.filter(pl.col("verdict").is_in(["good", "defect"]), pl.col("surface").is_not_null())
    table = _collect(
        judged.group_by("surface").agg(
            (pl.col("verdict") == "good").sum().alias("good"),
            (pl.col("verdict") == "defect").sum().alias("defect"),
            _distinct("defect_threshold"),
            _distinct("threshold_policy"),
            *_quantiles("defect_score"),
            *(pl.col(name).median() for name in _TIMES),
        )
    )
    found = {row["surface"]: row for row in table.iter_rows(named=True)}
    near = pl.coalesce("surface", pl.col("nearest_surfaces").list.first()).alias("surface")
    nearest = dict(_collect(rows.filter(pl.col("verdict") == "unseen").group_by(near).len()).iter_rows())
    histograms = _histograms(
        judged.select("surface", score="defect_score", threshold="defect_threshold", alarmed=_is("defect"))
    )
    names = sorted(found.keys() | nearest.keys() - {None})
    return tuple(_surface(name, found.get(name, {}), nearest.get(name, 0), histograms.get(name)) for name in names)


def _surface(name: str, row: dict[str, Any], num_nearest: int, histogram: Histogram | None) -> SurfaceSummary:
    good, defect = row.get("good", 0), row.get("defect", 0)
    return SurfaceSummary(
        surface=name,
        good=good,
        defect=defect,
        unseen_nearest=num_nearest,
        defect_rate=rate(defect, good + defect),
        defect_thresholds=tuple(row.get("defect_threshold", ())),
        threshold_policies=tuple(row.get("threshold_policy", ())),
        defect_scores=Quantiles(**{q: row.get(f"defect_score_{q}") for q in _QUANTILES}),
        defect_histogram=histogram,
        **{time: row.get(time) for time in _TIMES},
    )


def _unseen(rows: pl.LazyFrame, budget: float | None) -> UnseenSummary:
    scored = rows.filter(pl.col("unseen_score").is_not_null())
    row = _collect(
        scored.select(
            pl.len().alias("of"), _is("unseen").sum(), _distinct("unseen_threshold"), *_quantiles("unseen_score")
        )
    ).row(0, named=True)
    histograms = _histograms(
        scored.select(surface=pl.lit("all"), score="unseen_score", threshold="unseen_threshold", alarmed=_is("unseen"))
    )
    return UnseenSummary(
        rate=rate(row["unseen"], row["of"]),
        budget=budget,
        thresholds=tuple(row["unseen_threshold"]),
        scores=Quantiles(**{q: row[f"unseen_score_{q}"] for q in _QUANTILES}),
        histogram=histograms.get("all"),
    )


def _errors(rows: pl.LazyFrame) -> tuple[ErrorSummary, ...]:
    """Errors by code, the most frequent first; the examples are the first by name, so that they do not change."""
    example = pl.struct("uri", detail="error_detail").sort_by("uri").head(MAX_EXAMPLES)
    table = _collect(
        rows.filter(pl.col("verdict") == "error")
        .group_by(code=pl.col("error_code").fill_null("unspecified"))
        .agg(count=pl.len(), examples=example)
        .sort(["count", "code"], descending=[True, False])
    )
    return tuple(
        ErrorSummary(row["code"], row["count"], tuple(ErrorExample(**values) for values in row["examples"]))
        for row in table.iter_rows(named=True)
    )


def _timing(rows: pl.LazyFrame) -> Timing:
    row = _collect(rows.select(q for name in _TIMES for q in _quantiles(name))).row(0, named=True)
    return Timing(**{name: Quantiles(**{q: row[f"{name}_{q}"] for q in _QUANTILES}) for name in _TIMES})


def _histograms(scores: pl.LazyFrame) -> dict[str, Histogram]:
    """Histogram of each surface, from columns `surface`, `score`, `threshold`, `alarmed` (bool)."""
    scores = scores.filter(pl.col("score").is_not_null())
    ranges = _collect(
        scores.group_by("surface").agg(
            low=pl.col("score").quantile(0.001, "lower"),
            high=pl.col("score").quantile(0.999, "higher"),
            threshold=pl.col("threshold").median(),
        )
    )
    bins = {row["surface"]: _bins(row["low"], row["high"], row["threshold"]) for row in ranges.iter_rows(named=True)}
    grid = pl.LazyFrame(
        [(surface, low, width, number) for surface, (low, width, number) in bins.items()],
        schema={"surface": pl.String, "low": pl.Float64, "width": pl.Float64, "number": pl.Int64},
        orient="row",
    )
    place = ((pl.col("score") - pl.col("low")) / pl.col("width")).floor().cast(pl.Int64)
    table = _collect(
        scores.join(grid, on="surface")
        .group_by("surface", "alarmed", bin=pl.max_horizontal(0, pl.min_horizontal(place, pl.col("number") - 1)))
        .len()
    )
    counts = {(surface, alarmed): [0] * bins[surface][2] for surface in bins for alarmed in (False, True)}
    for surface, alarmed, place_of, num in table.iter_rows():
        counts[surface, alarmed][place_of] = num
    return {
        surface: Histogram(low, width, tuple(counts[surface, False]), tuple(counts[surface, True]))
        for surface, (low, width, _) in bins.items()
    }


def _bins(low: float, high: float, threshold: float | None) -> tuple[float, float, int]:
    """Lowest edge, width and number of bins that cover [low, high] and the threshold, on which an edge lies."""
    anchor = low if threshold is None else threshold
    low, high = min(low, anchor), max(high, anchor)
    width = (high - low) / NUM_BINS or 1.0
    start = anchor - ceil((anchor - low) / width) * width
    return start, width, max(ceil((high - start) / width), 1)


def _is(verdict: str) -> pl.Expr:
    return (pl.col("verdict") == verdict).alias(verdict)


def _distinct(name: str) -> pl.Expr:
    return pl.col(name).drop_nulls().unique().sort().head(MAX_THRESHOLDS).implode()


def _quantiles(name: str) -> list[pl.Expr]:
    return [pl.col(name).quantile(q, "linear").alias(f"{name}_{label}") for label, q in _QUANTILES.items()]


def _collect(frame: pl.LazyFrame) -> pl.DataFrame:
    return frame.collect(engine="streaming")


def _images(num: int) -> str:
    return "1 image" if num == 1 else f"{num:,} images"
