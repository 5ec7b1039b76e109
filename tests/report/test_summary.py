"""Counts against an independent slow count, and the tables that are empty, full of errors or without scores."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from sbdzsl.report import figures
from sbdzsl.report.counting import summarise
from sbdzsl.report.figures import Rate, rate
from sbdzsl.report.summary import Summary
from tests.verdicts import KINDS, draw_facts, draw_references, draw_verdicts, write_parts

TABLE = draw_verdicts(2000, seed=3)
ROWS = TABLE.to_pylist()


def _summary(table: pa.Table, **facts: object) -> Summary:
    return summarise(pl.from_arrow(table).lazy(), draw_facts(table, **facts), draw_references())


@pytest.fixture(scope="module")
def summary() -> Summary:
    return _summary(TABLE)


def test_counts_by_verdict(summary: Summary) -> None:
    counted = Counter(row["verdict"] for row in ROWS)
    assert set(counted) == set(KINDS)
    assert {kind: getattr(summary.counts, kind) for kind in KINDS} == counted
    assert summary.counts.total == len(ROWS)


def test_counts_by_surface(summary: Summary) -> None:
    counted = Counter((row["surface"], row["verdict"]) for row in ROWS)
    assert [s.surface for s in summary.surfaces] == sorted({row["surface"] for row in ROWS} - {None})
    for s in summary.surfaces:
        found = (s.good, s.defect, s.unseen_nearest)
        assert found == tuple(counted[s.surface, kind] for kind in ("good", "defect", "unseen"))
        assert s.defect_rate.value == s.defect / (s.good + s.defect)


def test_scores_and_times_by_surface(summary: Summary) -> None:
    for s in summary.surfaces:
        judged = [row for row in ROWS if row["surface"] == s.surface and row["defect_score"] is not None]
        scores = np.array([row["defect_score"] for row in judged])
        assert s.defect_scores.p95 == pytest.approx(np.quantile(scores, 0.95))
        assert s.detect_ms == pytest.approx(np.median([row["detect_ms"] for row in judged]))
        assert s.defect_thresholds == (judged[0]["defect_threshold"],)
        assert s.threshold_policies == ("false-alarm-rate",)


def test_a_histogram_holds_every_image_and_splits_at_the_threshold(summary: Summary) -> None:
    for s in summary.surfaces:
        histogram = s.defect_histogram
        assert histogram is not None
        assert (sum(histogram.passed), sum(histogram.alarmed)) == (s.good, s.defect)
        edge = (s.defect_thresholds[0] - histogram.low) / histogram.bin_width
        assert edge == pytest.approx(round(edge), abs=1e-6)
        assert sum(histogram.passed[round(edge) :]) == 0
        assert sum(histogram.alarmed[: round(edge)]) == 0


def test_unseen_share_beside_the_budget(summary: Summary) -> None:
    scored = sum(row["unseen_score"] is not None for row in ROWS)
    assert (summary.unseen.rate.num, summary.unseen.rate.of) == (summary.counts.unseen, scored)
    assert summary.unseen.above_budget
    assert not _summary(TABLE, unseen_budget=0.03).unseen.above_budget
    assert not _summary(TABLE, unseen_budget=None).unseen.above_budget


def test_errors_by_code_with_examples(summary: Summary) -> None:
    counted = Counter(row["error_code"] for row in ROWS if row["verdict"] == "error")
    assert {error.code: error.count for error in summary.errors} == counted
    assert [error.count for error in summary.errors] == sorted(counted.values(), reverse=True)
    for error in summary.errors:
        uris = sorted(row["uri"] for row in ROWS if row["error_code"] == error.code)
        assert [example.uri for example in error.examples] == uris[:3]


def test_part_files_give_the_same_summary_as_one_table(
    summary: Summary, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = write_parts(TABLE, tmp_path_factory.mktemp("parts"), rows_per_part=300)
    assert summarise(rows, draw_facts(TABLE), draw_references()) == summary


def test_json_round_trip(summary: Summary) -> None:
    text = json.dumps(summary.to_json())
    assert Summary.from_json(json.loads(text)) == summary
    assert json.loads(text)["complete"] is True
    assert json.loads(text)["version"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"stopped": "deadline"},
        {"num_unexpected": 1},
        {"num_missing": 1},
        {"num_duplicates": 1},
        {"num_manifest": 2001},
        {"num_rows": 1999},
    ],
)
def test_one_flaw_is_enough_to_be_incomplete(change: dict[str, int]) -> None:
    flawed = _summary(TABLE, **change)
    assert not flawed.complete
    assert "Not complete" in flawed.sentence


def test_sentence_names_every_number(summary: Summary) -> None:
    assert summary.sentence.startswith("2,000 images: ")
    assert summary.sentence.endswith("every image of the manifest has exactly one row.")
    for kind in KINDS:
        assert f" {getattr(summary.counts, kind):,} " in summary.sentence


def test_empty_table() -> None:
    empty = _summary(TABLE.slice(0, 0))
    assert empty.counts.total == 0
    assert empty.complete
    assert "empty" in empty.sentence
    assert empty.surfaces == empty.errors == ()
    assert empty.unseen.rate == Rate(0, 0, None, None, None)
    assert empty.unseen.histogram is None
    assert empty.timing.decode_ms.p50 is None


def test_only_errors() -> None:
    table = draw_verdicts(20, shares=(0, 0, 0, 1))
    broken = _summary(table)
    assert broken.counts.error == 20
    assert broken.surfaces == ()
    assert broken.unseen.scores.p50 is None


def test_a_surface_that_is_only_near_has_no_rate() -> None:
    strange = _summary(draw_verdicts(9, surfaces=("carpet",), shares=(0, 0, 1, 0)))
    (surface,) = strange.surfaces
    assert (surface.good, surface.defect, surface.unseen_nearest) == (0, 0, 9)
    assert surface.defect_rate.value is None
    assert surface.defect_histogram is None


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_scores_that_are_not_given_or_not_finite_are_left_out(score: float | None) -> None:
    table = draw_verdicts(50, surfaces=("carpet",), shares=(1, 0, 0, 0))
    scores = pa.array([score] * 49 + [2.5], pa.float64())
    table = table.set_column(table.schema.get_field_index("defect_score"), table.schema.field("defect_score"), scores)
    (surface,) = _summary(table).surfaces
    assert surface.good == 50
    assert surface.defect_scores.p50 == 2.5
    assert surface.defect_histogram is not None
    assert sum(surface.defect_histogram.passed) == 1


def test_a_sample_gives_the_same_figures_within_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    table = draw_verdicts(30_000, seed=6)
    whole = _summary(table)
    monkeypatch.setattr(figures, "MAX_SAMPLE", 8000)
    monkeypatch.setattr(figures, "MIN_SURFACE_SAMPLE", 100)
    sampled = _summary(table)
    assert (whole.sampled_one_in, sampled.sampled_one_in) == (1, 8)
    assert sampled.counts == whole.counts
    assert sampled.folders == whole.folders
    for few, all_ in zip(sampled.surfaces, whole.surfaces, strict=True):
        assert (few.good, few.defect, few.defect_rate) == (all_.good, all_.defect, all_.defect_rate)
        assert few.defect_scores.p50 == pytest.approx(all_.defect_scores.p50, abs=0.5)
        assert few.defect_histogram is not None
        assert sum(few.defect_histogram.passed) == all_.good
    assert sampled.unseen.scores.p50 == pytest.approx(whole.unseen.scores.p50, abs=0.05)
    again = summarise(pl.from_arrow(table).lazy().reverse(), draw_facts(table), draw_references())
    assert again.surfaces == sampled.surfaces


def test_a_rare_surface_is_sampled_less_than_a_frequent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MAX_SAMPLE", 1000)
    monkeypatch.setattr(figures, "MIN_SURFACE_SAMPLE", 100)
    rare = pl.when(pl.int_range(pl.len()) < 60).then(pl.lit("rare")).otherwise(pl.lit("frequent"))
    rows = pl.from_arrow(draw_verdicts(20_000, shares=(1, 0, 0, 0))).lazy().with_columns(surface=rare)
    found = figures.sample_rows(rows, ("verdict", "brightness"))
    sizes = dict(found.table.group_by("surface").len().iter_rows())
    assert sizes["rare"] == 60
    assert 200 < sizes["frequent"] < 500
    shares = dict(found.uniform.group_by("surface").len().iter_rows())
    assert shares.get("rare", 0) < 10


def test_unseen_above_budget_is_a_warning(summary: Summary) -> None:
    assert any("called unseen" in one and "sbdzsl groups" in one for one in summary.warnings)
    assert not any("called unseen" in one for one in _summary(TABLE, unseen_budget=0.5).warnings)


def test_equal_scores_make_one_bin() -> None:
    table = draw_verdicts(5, surfaces=("carpet",), shares=(1, 0, 0, 0))
    for name in ("defect_score", "defect_threshold"):
        column = pa.array([0.5] * 5, pa.float64())
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    (surface,) = _summary(table).surfaces
    assert surface.defect_histogram is not None
    assert surface.defect_histogram.passed == (5,)


def test_wilson_interval() -> None:
    # The textbook case of 10 of 100, to the digits commonly printed.
    assert rate(10, 100).low == pytest.approx(0.0552, abs=1e-4)
    assert rate(10, 100).high == pytest.approx(0.1744, abs=1e-4)
    assert (rate(0, 10).low, rate(10, 10).high) == (0.0, 1.0)
    assert rate(0, 10).high == pytest.approx(0.2775, abs=1e-4)
