"""The figures that a report is made of, and how they are drawn from rows without holding all of them.

Counts are exact. What needs values side by side (quantiles, comparisons of distributions) comes from a bounded sample:
rows are kept by a hash of their `image_id`, so that the same rows always give the same sample. A figure that cannot be
given (no rows, no score) is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import polars as pl

#: Rows of a sample, about, at most; and how many a surface keeps however many surfaces there are.
MAX_SAMPLE, MIN_SURFACE_SAMPLE = 200_000, 2_000

QUANTILES = {"p01": 0.01, "p05": 0.05, "p50": 0.50, "p95": 0.95, "p99": 0.99}


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


def quantile_columns(name: str) -> list[pl.Expr]:
    """Expressions of the percentiles of a column, named `<name>_p01` and so on."""
    return [pl.col(name).quantile(q, "linear").alias(f"{name}_{label}") for label, q in QUANTILES.items()]


def quantiles(row: dict[str, Any], name: str) -> Quantiles:
    """The percentiles that `quantile_columns(name)` put into `row`; None where they are not there."""
    return Quantiles(**{label: row.get(f"{name}_{label}") for label in QUANTILES})


@dataclass(frozen=True, slots=True)
class Sampled:
    """A bounded sample of rows: `table` keeps 1 of k rows of each surface, k a power of two, `one_in` the largest k.

    `uniform` are the rows of `table` that a sample of 1 in `one_in` over all surfaces keeps.
    """

    table: pl.DataFrame
    uniform: pl.DataFrame
    one_in: int


def sample_rows(rows: pl.LazyFrame, columns: tuple[str, ...]) -> Sampled:
    """A sample of `columns` and `surface`; every row where there are few. Null is a surface, too."""
    sizes = collect(rows.group_by("surface").len())
    share = max(MIN_SURFACE_SAMPLE, MAX_SAMPLE // max(sizes.height, 1))
    # Powers of two are nested: what 1 in 8 keeps, 1 in 4 keeps as well.
    steps = [1 << max(0, (number - 1) // share).bit_length() for number in sizes["len"]]
    one_in = max(steps, default=1)
    mark = pl.col("image_id").hash(seed=0)
    if one_in > 1:
        grid = sizes.select("surface", step=pl.Series(steps, dtype=pl.UInt64)).lazy()
        rows = rows.join(grid, on="surface", nulls_equal=True).filter(mark % pl.col("step") == 0)
    table = collect(rows.select("surface", *columns, uniform=mark % one_in == 0))
    return Sampled(table, table.filter("uniform"), one_in)


def copy_rows(rows: pl.LazyFrame, folder: Path) -> pl.LazyFrame:
    """What a report needs of verdict rows as one local file: a store is asked once, not once a figure."""
    target = folder / "rows.parquet"
    rows.drop("class_embedding").sink_parquet(target, compression="lz4", row_group_size=32_768)
    return pl.scan_parquet(target)


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Run a query in bounded memory."""
    return frame.collect(engine="streaming")
