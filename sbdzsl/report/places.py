"""Where defects are: in the image, by folder, and by the time of the file. All of it counted, nothing sampled."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import polars as pl
from scipy import special

from sbdzsl.report.figures import Rate, collect, rate

#: Cells of a heat map along the longer side of the surface's images.
GRID = 24
#: Surfaces that have a heat map, folders that are listed, and bins of a timeline, at most.
MAX_MAPS, MAX_FOLDERS, MAX_BINS = 24, 20, 48
#: Folders that are counted at once; where there are more, the last part of their names is cut off.
MAX_COUNTED = 10_000

FALSE_MARKS = 0.01

#: `<archive>#<offset>+<size>/<member>`: a member of an archive lies in the folder `<archive>/<folder of the member>`.
_PACKED = r"#\d+\+\d+/"

#: Widths of bins as polars names them, the word for a reader, and about how many seconds they are.
_WIDTHS = (
    ("1m", "minute", 60),
    ("10m", "10 minutes", 600),
    ("1h", "hour", 3600),
    ("6h", "6 hours", 21_600),
    ("1d", "day", 86_400),
    ("1w", "week", 604_800),
    ("1mo", "month", 2_629_800),
    ("1q", "quarter", 7_889_400),
    ("1y", "year", 31_557_600),
    ("10y", "10 years", 315_576_000),
)


#: Archives write 1970 or 1980 where they do not know the time of a file.
_NO_TIME_BEFORE = datetime(1980, 1, 2, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Defects of one surface by the centre of their hottest region, relative to the size of the image.

    `cells` holds `columns` counts a row, `rows` rows, the top left first; a map has the shape of the surface's typical
    image. `num_placed` of `num_defects` defects have a region.
    """

    surface: str
    columns: int
    rows: int
    cells: tuple[int, ...]
    num_placed: int
    num_defects: int


@dataclass(frozen=True, slots=True)
class Folder:
    """The judged images of one folder: how many are defective.

    `above`: more than the rate over all folders explains, with a chance of `FALSE_MARKS` that any folder is marked
    falsely (binomial tail, corrected for the number of folders).
    """

    folder: str
    defect_rate: Rate
    above: bool


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders with the most defects, most first; `num_folders` in all, `num_cut` last parts of names cut off.

    `overall` is the rate over all folders.
    """

    listed: tuple[Folder, ...]
    overall: Rate
    num_folders: int
    num_cut: int


@dataclass(frozen=True, slots=True)
class Period:
    """The judged images whose files were written from `start` on, until the next period's start or a bin's width."""

    start: datetime
    defect_rate: Rate


@dataclass(frozen=True, slots=True)
class Timeline:
    """Defects by the time of the file. `width` is a bin in words; `num_untimed` judged images have no time."""

    width: str
    periods: tuple[Period, ...]
    num_untimed: int


def heat_maps(rows: pl.LazyFrame) -> tuple[HeatMap, ...]:
    """Of each surface with defects that have a place, the most defects first, at most `MAX_MAPS`."""
    defects = rows.filter(pl.col("verdict") == "defect", pl.col("surface").is_not_null())
    hottest = pl.col("regions").list.eval(
        pl.element().sort_by(pl.element().struct.field("score"), descending=True, nulls_last=True)
    )
    region = {name: pl.col("hottest").struct.field(name) for name in ("x", "y", "width", "height")}
    placed = (
        defects.select("surface", "image_width", "image_height", hottest=hottest.list.first())
        .with_columns(
            across=(region["x"] + region["width"] / 2) / pl.col("image_width"),
            down=(region["y"] + region["height"] / 2) / pl.col("image_height"),
        )
        .with_columns(
            *((pl.col(name) * 2 * GRID).floor().clip(0, 2 * GRID - 1).cast(pl.Int32) for name in ("across", "down"))
        )
    )
    sizes = collect(
        placed.group_by("surface")
        .agg(
            pl.len().alias("number"),
            aspect=(pl.col("image_width") / pl.col("image_height")).mean(),
        )
        .sort("number", "surface", descending=[True, False])
        .head(MAX_MAPS)
    )
    counts = collect(placed.drop_nulls(["across", "down"]).group_by("surface", "across", "down").len())
    cells: dict[str, list[tuple[int, int, int]]] = {}
    for surface, across, down, number in counts.iter_rows():
        cells.setdefault(surface, []).append((across, down, number))
    maps = (
        _heat_map(surface, aspect or 1.0, cells.get(surface, []), number)
        for surface, number, aspect in sizes.iter_rows()
    )
    return tuple(one for one in maps if one.num_placed)


def _heat_map(surface: str, aspect: float, found: list[tuple[int, int, int]], num_defects: int) -> HeatMap:
    """From counts on a grid of twice `GRID` cells a side to cells that are about square for images of this aspect."""
    columns = GRID if aspect >= 1 else max(1, round(GRID * aspect))
    rows = GRID if aspect <= 1 else max(1, round(GRID / aspect))
    cells = [0] * (columns * rows)
    for across, down, number in found:
        cells[(down * rows // (2 * GRID)) * columns + across * columns // (2 * GRID)] += number
    return HeatMap(surface, columns, rows, tuple(cells), sum(cells), num_defects)


def folders(rows: pl.LazyFrame) -> Folders:
    """The `MAX_FOLDERS` folders with the most defects."""
    judged = rows.filter(pl.col("verdict").is_in(["good", "defect"]))
    plain = pl.col("uri").str.replace(_PACKED, "/")
    named = judged.select("verdict", folder=plain.str.replace(r"/?[^/]*$", ""))
    num_cut = 0
    # A folder an image would be as many folders as images: memory has to stay flat.
    while num_cut < 20 and _about_how_many(named) > MAX_COUNTED:
        named = named.with_columns(pl.col("folder").str.replace(r"/?[^/]*$", ""))
        num_cut += 1
    table = named.group_by("folder").agg(defect=(pl.col("verdict") == "defect").sum(), judged=pl.len())
    counted = collect(table)
    overall = rate(int(counted["defect"].sum()), int(counted["judged"].sum()))
    first = counted.filter(pl.col("defect") > 0).sort("defect", "judged", "folder", descending=[True, False, False])
    limit = FALSE_MARKS / max(counted.height, 1)
    # bdtrc: the chance of so many defects or more, were this folder like all.
    listed = tuple(
        Folder(folder or "(no folder)", rate(num, of), bool(special.bdtrc(num - 1, of, overall.value) < limit))
        for folder, num, of in first.head(MAX_FOLDERS).iter_rows()
    )
    return Folders(listed, overall, counted.height, num_cut)


def _about_how_many(named: pl.LazyFrame) -> int:
    return int(collect(named.select(pl.col("folder").approx_n_unique())).item() or 0)


def timeline(rows: pl.LazyFrame) -> Timeline | None:
    """Defects by the time of the file, in at most `MAX_BINS` bins of a usual width; None where no image was judged."""
    known = pl.when(pl.col("modified_at") >= _NO_TIME_BEFORE).then(pl.col("modified_at"))
    judged = rows.filter(pl.col("verdict").is_in(["good", "defect"])).select("verdict", moment=known)
    span = collect(
        judged.select(
            first=pl.col("moment").min(), last=pl.col("moment").max(), none=pl.col("moment").null_count(), all=pl.len()
        )
    ).row(0, named=True)
    if not span["all"]:
        return None
    if span["first"] is None:
        return Timeline("", (), span["none"])
    seconds = (span["last"] - span["first"]).total_seconds()
    every, width = next(
        (name, word) for name, word, length in _WIDTHS if seconds < length * (MAX_BINS - 1) or length == _WIDTHS[-1][2]
    )
    table = collect(
        judged.drop_nulls("moment")
        .group_by(start=pl.col("moment").dt.truncate(every))
        .agg(defect=(pl.col("verdict") == "defect").sum(), judged=pl.len())
        .sort("start")
    )
    periods = tuple(Period(start, rate(defect, of)) for start, defect, of in table.iter_rows())
    return Timeline(width, periods, span["none"])
