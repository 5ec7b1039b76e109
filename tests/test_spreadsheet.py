"""CSV that nothing in it makes a spreadsheet run."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timezone
from typing import Any

import polars as pl
import pytest

from sbdzsl.spreadsheet import rows_csv, table_csv


def read(data: bytes) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_text_never_starts_a_formula(start: str) -> None:
    text = f"{start}cmd|' /C calc'!A0"
    expected = [{"name": f"'{text}", "score": "-0.5"}]  # numbers below zero stay numbers
    assert read(table_csv(pl.DataFrame({"name": [text], "score": [-0.5]}))) == expected
    assert read(rows_csv(["name", "score"], [(text, -0.5)])) == expected


def test_all_else_is_left_as_it_is() -> None:
    text = 'a "word", a\nbreak, 2 = 1+1, ü'
    moment = datetime(2026, 3, 1, 6, 0, 0, 5, tzinfo=timezone.utc)
    table = read(table_csv(pl.DataFrame({"text": [text, None], "at": [moment, None]})))
    assert table == [{"text": text, "at": "2026-03-01T06:00:00.000005Z"}, {"text": "", "at": ""}]
    assert read(rows_csv(["text", "at"], [(text, None), (7, True)])) == [
        {"text": text, "at": ""},
        {"text": "7", "at": "True"},
    ]
