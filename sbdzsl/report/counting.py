"""Counts an audit: a lazy scan over verdict rows becomes one small frozen `Summary`.

Everything the report says is counted here and in `places` and `drift`, by polars in its streaming engine, so that a
million rows (or a hundred) end in a few kilobytes. The page is drawn from the `Summary` and reads the rows again only
for its galleries.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import polars as pl

from sbdzsl.report import places
from sbdzsl.report.drift import References, measure_drift
from sbdzsl.report.figures import (
    Counts,
    Histogram,
    collect,
    quantile_columns,
    quantiles,
    rate,
    sample_rows,
)
from sbdzsl.report.summary import (
    AuditFacts,
    ErrorExample,
    ErrorSummary,
    Summary,
    SurfaceSummary,
    Timing,
    UnseenSummary,
)

#: Bins between the lowest and the highest score of a histogram; one or two more where an edge moves to the threshold.
NUM_BINS = 40
#: Distinct thresholds, and example rows of an error, that a summary lists. An audit has one threshold a surface.
MAX_THRESHOLDS = 5
MAX_EXAMPLES = 3

_TIMES = ("decode_ms", "route_ms", "detect_ms")
_NUMBERS = (
    *("unseen_score", "unseen_threshold", "unseen_p_value", "defect_score", "defect_threshold"),
    *("brightness", "sharpness"),
    *_TIMES,
)


def summarise(rows: pl.LazyFrame, facts: AuditFacts, references: References) -> Summary:
    """Count what an audit found, and compare it with the `references` of its bundle.

    `rows` has the columns of `VERDICT_SCHEMA`, usually a scan over part files; it is read once per group of figures,
    only the columns needed. Numbers that are not finite count as not given.
    """
    rows = rows.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in _NUMBERS)
    counts = collect(rows.group_by("verdict").len())
    sampled = sample_rows(rows, ("verdict", "threshold_policy", *_NUMBERS))
    return Summary(
        facts=facts,
        counts=Counts(**dict(counts.iter_rows())),
        surfaces=_surfaces(rows, sampled.table),
        unseen=_unseen(rows, sampled.uniform, facts.unseen_budget),
        errors=_errors(rows),
        timing=_timing(sampled.uniform),
        drift=measure_drift(sampled.table, references),
        heat_maps=places.heat_maps(rows),
        folders=places.folders(rows),
        timeline=places.timeline(rows),
        sampled_one_in=sampled.one_in,
    )


def _surfaces(rows: pl.LazyFrame, sample: pl.DataFrame) -> tuple[SurfaceSummary, ...]:
    judged = pl.col("verdict").is_in(["good", "defect"]) & pl.col("surface").is_not_null()
    near = pl.coalesce("surface", pl.col("nearest_surfaces").list.first()).alias("surface")
    counts: dict[str, dict[str, int]] = {}
    for surface, verdict, number in collect(rows.group_by(near, "verdict").len()).iter_rows():
        if surface is not None and verdict != "error":
            counts.setdefault(surface, {})[verdict] = number
    table = (
        sample.filter(judged)
        .group_by("surface")
        .agg(
            _distinct("defect_threshold"),
            _distinct("threshold_policy"),
            *quantile_columns("defect_score"),
            *(pl.col(name).median() for name in _TIMES),
        )
    )
    found = {row["surface"]: row for row in table.iter_rows(named=True)}
    scores = {"surface": pl.col("surface"), "score": pl.col("defect_score"), "threshold": pl.col("defect_threshold")}
    histograms = _histograms(
        rows.filter(judged).select(**scores, alarmed=_is("defect")), sample.filter(judged).select(**scores)
    )
    return tuple(_surface(name, counts[name], found.get(name, {}), histograms.get(name)) for name in sorted(counts))


def _surface(name: str, counts: dict[str, int], row: dict[str, Any], histogram: Histogram | None) -> SurfaceSummary:
    good, defect = counts.get("good", 0), counts.get("defect", 0)
    return SurfaceSummary(
        surface=name,
        good=good,
        defect=defect,
        unseen_nearest=counts.get("unseen", 0),
        defect_rate=rate(defect, good + defect),
        defect_thresholds=tuple(row.get("defect_threshold", ())),
        threshold_policies=tuple(row.get("threshold_policy", ())),
        defect_scores=quantiles(row, "defect_score"),
        defect_histogram=histogram,
        **{time: row.get(time) for time in _TIMES},
    )


def _unseen(rows: pl.LazyFrame, sample: pl.DataFrame, budget: float | None) -> UnseenSummary:
    scored = pl.col("unseen_score").is_not_null()
    number, unseen = collect(rows.filter(scored).select(of=pl.len(), num=_is("unseen").sum())).row(0)
    row = sample.filter(scored).select(_distinct("unseen_threshold"), *quantile_columns("unseen_score"))
    scores = {"surface": pl.lit("all"), "score": pl.col("unseen_score"), "threshold": pl.col("unseen_threshold")}
    histograms = _histograms(
        rows.filter(scored).select(**scores, alarmed=_is("unseen")), sample.filter(scored).select(**scores)
    )
    first = row.row(0, named=True)
    return UnseenSummary(
        rate=rate(unseen, number),
        budget=budget,
        thresholds=tuple(first["unseen_threshold"]),
        scores=quantiles(first, "unseen_score"),
        histogram=histograms.get("all"),
    )


def _errors(rows: pl.LazyFrame) -> tuple[ErrorSummary, ...]:
    """Errors by code, the most frequent first; the examples are the first by name, so that they do not change."""
    example = pl.struct("uri", detail="error_detail").sort_by("uri").head(MAX_EXAMPLES)
    table = collect(
        rows.filter(pl.col("verdict") == "error")
        .group_by(code=pl.col("error_code").fill_null("unspecified"))
        .agg(count=pl.len(), examples=example)
        .sort(["count", "code"], descending=[True, False])
    )
    return tuple(
        ErrorSummary(row["code"], row["count"], tuple(ErrorExample(**values) for values in row["examples"]))
        for row in table.iter_rows(named=True)
    )


def _timing(sample: pl.DataFrame) -> Timing:
    row = sample.select(q for name in _TIMES for q in quantile_columns(name)).row(0, named=True)
    return Timing(**{name: quantiles(row, name) for name in _TIMES})


def _histograms(scores: pl.LazyFrame, sample: pl.DataFrame) -> dict[str, Histogram]:
    """Histogram of each surface, from columns `surface`, `score`, `threshold`, `alarmed` (bool).

    The `sample` of the first three sets the range; all scores are counted.
    """
    scores = scores.filter(pl.col("score").is_not_null())
    ranges = (
        sample.filter(pl.col("score").is_not_null())
        .group_by("surface")
        .agg(
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
    table = collect(
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
