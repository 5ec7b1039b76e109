"""The list of alerts: who is on it, in which order, and that it is harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io

import polars as pl
import pyarrow as pa

from sbdzsl.report.alerts import alerts, worst
from sbdzsl.spreadsheet import table_csv
from tests.verdicts import draw_verdicts

TABLE = draw_verdicts(2000, seed=5)
ROWS = pl.from_arrow(TABLE).lazy()
DICTS = TABLE.to_pylist()

COLUMNS = (
    "verdict,uri,surface,margin,defect_score,defect_threshold,defect_probability,unseen_score,unseen_threshold,"
    "unseen_p_value,nearest_surfaces,nearest_scores,attributes,extrapolated,num_regions,region_x,region_y,region_width,region_height,"
    "region_area_px,region_score,error_code,error_detail,inspected_at,image_id,bundle"
)


def _margin(row: dict[str, float], kind: str) -> float:
    return row[f"{kind}_score"] - row[f"{kind}_threshold"]


def test_columns_are_a_contract() -> None:
    assert table_csv(alerts(ROWS)).decode().splitlines()[0] == COLUMNS
    assert table_csv(alerts(ROWS.filter(False))).decode().strip() == COLUMNS


def test_the_list_holds_what_needs_a_person_worst_first() -> None:
    listed = list(csv.DictReader(io.StringIO(table_csv(alerts(ROWS)).decode())))
    expected = [
        row["image_id"]
        for kind in ("defect", "unseen")
        for row in sorted((r for r in DICTS if r["verdict"] == kind), key=lambda r, k=kind: -_margin(r, k))
    ]
    expected += [row["image_id"] for row in DICTS if row["verdict"] == "error"]
    assert [row["image_id"] for row in listed] == expected
    assert {row["verdict"] for row in listed} == {"defect", "unseen", "error"}


def test_the_region_is_the_hottest_one() -> None:
    by_id = {row["image_id"]: row for row in DICTS}
    for row in alerts(ROWS).iter_rows(named=True):
        regions = by_id[row["image_id"]]["regions"]
        assert row["num_regions"] == len(regions)
        hottest = max(regions, key=lambda region: region["score"], default=None)
        assert (row["region_x"], row["region_score"]) == ((hottest["x"], hottest["score"]) if hottest else (None, None))


def test_the_worst_rows_come_whole() -> None:
    expected = sorted((r for r in DICTS if r["verdict"] == "unseen"), key=lambda r: -_margin(r, "unseen"))[:7]
    found = worst(ROWS, "unseen", 7)
    assert [row["image_id"] for row in found] == [row["image_id"] for row in expected]
    assert found[0]["class_embedding"] == expected[0]["class_embedding"]
    assert set(found[0]) == set(TABLE.column_names)
    assert worst(ROWS, "defect", 0) == []


def test_a_doubled_row_is_shown_once() -> None:
    twice = pl.from_arrow(pa.concat_tables([TABLE, TABLE])).lazy()
    ids = [row["image_id"] for row in worst(twice, "defect", 6)]
    assert len(ids) == len(set(ids)) == 6
