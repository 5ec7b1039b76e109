"""CSV for people, who open it in a spreadsheet: one way to write all of it.

A file name, a camera or a remark may begin like a formula, which a spreadsheet would run. Such text gets a quote in
front, which makes it text again. Numbers are left alone, negative ones too. Rows end in CR LF (RFC 4180).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

_FORMULA = r"^([=+\-@\t\r])"
#: Times with their microseconds; tables hold them in UTC.
_TIME = "%Y-%m-%dT%H:%M:%S%.6fZ"


def table_csv(table: pl.DataFrame) -> bytes:
    """A table without nested columns as CSV: UTF-8, a header, times in UTC; empty where a value is None."""
    import polars as pl

    harmless = table.with_columns(pl.col(pl.String).str.replace(_FORMULA, "'$1"))
    return harmless.write_csv(line_terminator="\r\n", datetime_format=_TIME).encode()


def rows_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows of mixed values as CSV, in the same form; each is as long as the header."""
    written = io.StringIO()
    table = csv.writer(written)
    table.writerow(header)
    table.writerows([_harmless(value) for value in row] for row in rows)
    return written.getvalue().encode()


def _harmless(value: Any) -> Any:
    return re.sub(_FORMULA, r"'\1", value) if isinstance(value, str) else value
