"""Two audits compared: each reason on an image of its own, and a large table against a slow comparison."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from typing import Any

import polars as pl
import pytest

from sbdzsl.report import diff as diffs
from sbdzsl.report.diff import AuditDiff, diff
from sbdzsl.verdict import Verdict, verdict_table
from tests.verdicts import draw_verdicts


def _row(uri: str, verdict: Any, **fields: Any) -> Verdict:
    known: dict[str, Any] = {"image_id": uri, "bundle": "a", "unseen_score": 1.0, "unseen_threshold": 2.0}
    if verdict == "error":
        known = {"image_id": uri, "bundle": "a", "error_code": "truncated"}
    elif verdict != "unseen":
        known |= {"surface": "steel", "defect_score": 0.0, "defect_threshold": 1.0}
    return Verdict(uri=uri, verdict=verdict, **(known | fields))


def _rows(*verdicts: Verdict) -> pl.LazyFrame:
    return pl.from_arrow(verdict_table(verdicts)).lazy()


CASES: list[tuple[str, Verdict | None, Verdict | None]] = [
    ("only-in-a", _row("1", "good"), None),
    ("only-in-b", None, _row("2", "defect")),
    ("file-changed", _row("3", "good"), _row("3", "defect", image_id="3b", defect_score=3.0)),
    ("not-judged", _row("4", "good"), _row("4", "error")),
    ("not-judged", _row("5", "error"), _row("5", "unseen", unseen_score=4.0)),
    ("score-moved", _row("6", "good"), _row("6", "defect", defect_score=1.5)),
    (
        "threshold-moved",
        _row("7", "good", defect_score=0.9),
        _row("7", "defect", defect_score=0.8, defect_threshold=0.5),
    ),
    ("score-and-threshold-moved", _row("8", "good"), _row("8", "defect", defect_score=0.9, defect_threshold=0.8)),
    ("score-moved", _row("9", "good"), _row("9", "unseen", unseen_score=2.5)),
    (
        "threshold-moved",
        _row("10", "unseen", unseen_score=2.5),
        _row("10", "good", unseen_score=2.5, unseen_threshold=3),
    ),
    ("other-surface", _row("11", "good"), _row("11", "good", surface="leather")),
    ("other-surface", _row("12", "good"), _row("12", "defect", surface="leather", defect_score=2.0)),
]
#: Both surfaces are known to both audits, so that neither was renamed.
SAME = [_row("same", "good"), _row("leather", "good", surface="leather"), _row("bad", "error")]


@pytest.fixture(scope="module")
def found() -> AuditDiff:
    return diff(
        _rows(*SAME, *(before for _, before, _ in CASES if before)),
        _rows(*SAME, *(after for _, _, after in CASES if after)),
    )


def test_each_reason_is_named(found: AuditDiff) -> None:
    expected = {(before or after).uri: reason for reason, before, after in CASES}  # type: ignore[union-attr]
    assert dict(found.changes.select("uri", "reason").iter_rows()) == expected
    assert dict(found.reasons) == Counter(expected.values())
    assert (found.num_changed, found.num_compared) == (len(CASES), len(CASES) - 2 + len(SAME))
    assert found.renamed == ()


def test_verdicts_from_and_to_are_counted(found: AuditDiff) -> None:
    pairs = Counter((before and before.verdict, after and after.verdict) for _, before, after in CASES)
    pairs.update((one.verdict, one.verdict) for one in SAME)
    assert {(before, after): number for before, after, number in found.verdicts} == pairs


def test_the_list_says_why_with_figures(found: AuditDiff) -> None:
    listed = {row["uri"]: row for row in csv.DictReader(io.StringIO(found.changes_csv().decode()))}
    assert listed["7"]["words"] == "defect score 0.9 -> 0.8, threshold 1.0 -> 0.5; same bundle"
    assert listed["9"]["words"] == "unseen score 1.0 -> 2.5, threshold 2.0 -> 2.0; same bundle"
    assert listed["4"]["words"] == "judged -> truncated"
    assert listed["11"]["words"] == "taken for steel -> leather; same bundle"
    assert (listed["3"]["image_id_a"], listed["3"]["image_id_b"]) == ("3", "3b")
    assert all(row["words"] for row in listed.values())


def test_text_and_json(found: AuditDiff) -> None:
    text, values = found.to_text(), json.loads(json.dumps(found.to_json()))
    assert text.startswith(f"{found.num_compared} images are in both audits, judged by the same bundle; 12 changed")
    assert "good -> defect" in text
    assert "no row -> defect" in text
    assert values["reasons"] == dict(found.reasons)
    assert values["same_bundle"] is True


def test_a_renamed_surface_is_no_change_but_said() -> None:
    before = _rows(_row("1", "good"), _row("2", "good"), _row("3", "good", surface="leather"))
    after = _rows(
        _row("1", "good", surface="steel 2"),
        _row("2", "defect", surface="steel 2", defect_score=4.0, bundle="b"),
        _row("3", "good", surface="leather"),
    )
    found = diff(before, after)
    assert found.renamed == (("steel", "steel 2", 2),)
    assert found.reasons == (("score-moved", 1),)
    assert found.changes["words"].to_list() == ["defect score 0.0 -> 4.0, threshold 1.0 -> 1.0; other bundle"]
    assert (found.bundles_a, found.bundles_b) == (("a",), ("a", "b"))
    assert "is now 'steel 2'" in found.to_text()


def test_files_that_moved_are_joined_by_their_ids() -> None:
    before, after = _rows(_row("old/1.png", "good", image_id="x")), _rows(_row("new/1.png", "good", image_id="x"))
    assert diff(before, after).num_changed == 2
    assert diff(before, after, key="image_id").num_changed == 0


def test_nothing_changes_against_itself_and_nothing_at_all_is_fine() -> None:
    rows = pl.from_arrow(draw_verdicts(500)).lazy()
    assert diff(rows, rows).num_changed == 0
    empty = diff(rows.limit(0), rows.limit(0))
    assert (empty.verdicts, empty.num_changed, empty.changes.height) == ((), 0, 0)
    assert diff(rows, rows.limit(0)).reasons == (("only-in-a", 500),)


def test_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (pl.from_arrow(draw_verdicts(3000, seed=seed)).lazy() for seed in (1, 2))
    whole = diff(before, after)
    monkeypatch.setattr(diffs, "ROWS_AT_ONCE", 400)
    parts = diff(before, after)
    assert (parts.verdicts, parts.reasons, parts.renamed) == (whole.verdicts, whole.reasons, whole.renamed)
    assert parts.changes.equals(whole.changes)
    monkeypatch.setattr(diffs, "MAX_CHANGES", 100)
    cut = diff(before, after)
    assert cut.reasons == whole.reasons
    assert cut.changes.equals(whole.changes.head(100))
    pairs = Counter(
        (one, other) for one, other in zip(*(rows.collect()["verdict"] for rows in (before, after)), strict=True)
    )
    assert {(one, other): number for one, other, number in whole.verdicts} == pairs
