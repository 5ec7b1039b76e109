"""Where defects are counted: cells, folders and periods against a slow count."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest

from sbdzsl.report import places
from sbdzsl.report.places import GRID, folders, heat_maps, timeline
from tests.verdicts import START, draw_verdicts

TABLE = draw_verdicts(3000, seed=9, shares=(0.6, 0.3, 0.05, 0.05))
ROWS = TABLE.to_pylist()
JUDGED = [row for row in ROWS if row["verdict"] in ("good", "defect")]


def _rows(**columns: Any) -> pl.LazyFrame:
    return pl.from_arrow(TABLE).lazy().with_columns(**columns)


def test_a_defect_counts_where_the_centre_of_its_hottest_region_lies() -> None:
    expected: dict[str, Counter[int]] = {}
    for row in ROWS:
        if row["verdict"] == "defect":
            region = max(row["regions"], key=lambda one: one["score"])
            column = int(GRID * (region["x"] + region["width"] / 2) / row["image_width"])
            line = int(GRID * (region["y"] + region["height"] / 2) / row["image_height"])
            expected.setdefault(row["surface"], Counter())[line * GRID + column] += 1
    found = {one.surface: one for one in heat_maps(_rows())}
    assert found.keys() == expected.keys()
    for surface, one in found.items():
        assert (one.columns, one.rows) == (GRID, GRID)
        assert {place: count for place, count in enumerate(one.cells) if count} == expected[surface]
        assert one.num_placed == one.num_defects == sum(expected[surface].values())
    assert [one.num_defects for one in heat_maps(_rows())] == sorted(
        (one.num_defects for one in found.values()), reverse=True
    )


def test_a_map_has_the_shape_of_the_images() -> None:
    for width, height, shape in ((920, 460, (GRID, GRID // 2)), (230, 920, (GRID // 4, GRID))):
        one = heat_maps(_rows(image_width=pl.lit(width), image_height=pl.lit(height)))[0]
        assert (one.columns, one.rows) == shape
        assert sum(one.cells) == one.num_placed > 0


def test_defects_without_a_place_or_a_size_have_no_map() -> None:
    assert heat_maps(_rows(regions=pl.col("regions").list.head(0))) == ()
    assert heat_maps(_rows(image_width=pl.lit(None, pl.Int32))) == ()


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("s3://b/lot7.tar#1536+20480/img/0001.png", "s3://b/lot7.tar/img"),
        ("s3://b/lot7.tar#1536+20480/0001.png", "s3://b/lot7.tar"),
        ("/data/a#b/1.png", "/data/a#b"),
        ("1.png", "(no folder)"),
    ],
)
def test_the_folder_of_a_uri(uri: str, folder: str) -> None:
    (one,) = folders(_rows(uri=pl.lit(uri))).listed
    assert one.folder == folder
    assert one.defect_rate.of == len(JUDGED)


def test_folders_with_the_most_defects_and_what_chance_does_not_explain() -> None:
    number = pl.int_range(pl.len()) % 40
    bad = (number == 7) & (pl.col("verdict") == "good") & (pl.int_range(pl.len()) % 80 == 7)
    rows = _rows(
        uri=pl.format("s3://a/lot-{}/x.png", number), verdict=pl.when(bad).then(pl.lit("defect")).otherwise("verdict")
    )
    found = folders(rows)
    assert found.num_folders == 40
    assert len(found.listed) == places.MAX_FOLDERS
    assert [one.folder for one in found.listed if one.above] == ["s3://a/lot-7"]
    assert found.listed[0].folder == "s3://a/lot-7"
    counts = [one.defect_rate.num for one in found.listed]
    assert counts == sorted(counts, reverse=True)
    assert found.overall.of == len(JUDGED)


def test_too_many_folders_are_counted_a_level_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_COUNTED", 50)
    found = folders(_rows(uri=pl.format("s3://a/{}/{}/x.png", pl.int_range(pl.len()) % 3, pl.int_range(pl.len()))))
    assert (found.num_folders, found.num_cut) == (3, 1)
    assert {one.folder for one in found.listed} == {"s3://a/0", "s3://a/1", "s3://a/2"}


@pytest.mark.parametrize(
    ("span", "width"),
    [
        (timedelta(minutes=30), "minute"),
        (timedelta(hours=30), "hour"),
        (timedelta(days=40), "day"),
        (timedelta(days=300), "week"),
        (timedelta(days=3000), "quarter"),
    ],
)
def test_periods_follow_from_the_span(span: timedelta, width: str) -> None:
    moments = [START + span * i / (len(ROWS) - 1) for i in range(len(ROWS))]
    found = timeline(_rows(modified_at=pl.Series(moments).dt.cast_time_unit("us")))
    assert found is not None
    assert found.width == width
    assert len(found.periods) <= places.MAX_BINS + 1
    assert sum(one.defect_rate.of for one in found.periods) == len(JUDGED)
    assert sum(one.defect_rate.num for one in found.periods) == sum(row["verdict"] == "defect" for row in ROWS)
    assert [one.start for one in found.periods] == sorted(one.start for one in found.periods)


def test_times_that_are_not_known_are_counted_and_left_out() -> None:
    nothing = timeline(_rows(modified_at=pl.lit(None, pl.Datetime("us", "UTC"))))
    assert nothing is not None
    assert (nothing.periods, nothing.num_untimed) == ((), len(JUDGED))
    epoch = pl.lit(datetime(1970, 1, 1, tzinfo=timezone.utc)).cast(pl.Datetime("us", "UTC"))
    some = timeline(_rows(modified_at=pl.when(pl.int_range(pl.len()) < 100).then(epoch).otherwise("modified_at")))
    assert some is not None
    assert some.num_untimed == sum(row["verdict"] in ("good", "defect") for row in ROWS[:100])
    assert min(one.start for one in some.periods).year == 2026
    assert timeline(_rows().filter(False)) is None
