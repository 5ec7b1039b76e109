"""The rows that need a person, worst first: the flat list of alerts, and the few that the gallery shows."""

from __future__ import annotations

from typing import Any

import polars as pl

#: Kinds of alert in the order of the list: a bad part first, then a surface nobody taught, then an image to repair.
ALERT_VERDICTS = ("defect", "unseen", "error")

#: How far the score that decided lies above its threshold; None for errors.
_MARGIN = (
    pl.when(pl.col("verdict") == "defect")
    .then(pl.col("defect_score") - pl.col("defect_threshold"))
    .when(pl.col("verdict") == "unseen")
    .then(pl.col("unseen_score") - pl.col("unseen_threshold"))
    .fill_nan(None)
)


#: Rows of the list, at most: nobody reads more, and a table of all of a large archive would not fit in memory.
MAX_ALERTS = 100_000


def alerts(rows: pl.LazyFrame) -> pl.DataFrame:
    """The rows with verdict defect, unseen or error, flat, worst first, at most `MAX_ALERTS`.

    Defects come first, then unseen, then errors; inside a kind the largest `margin` (score minus threshold) first.
    `region_*` is the region with the highest score, in source pixels. Lists become text joined by "; ".
    """
    region = pl.col("regions").list.eval(
        pl.element().sort_by(pl.element().struct.field("score"), descending=True, nulls_last=True)
    )
    kind = pl.col("verdict").replace_strict(ALERT_VERDICTS, range(len(ALERT_VERDICTS)), return_dtype=pl.Int8)
    order: dict[str, Any] = {"by": ["kind", "margin", "image_id"], "descending": [False, True, False]}
    found = rows.filter(pl.col("verdict").is_in(ALERT_VERDICTS)).with_columns(margin=_MARGIN, kind=kind)
    # Chosen by key alone, so that only the rows of the list are ever held in full.
    first = found.select(*order["by"]).sort(**order, nulls_last=True).head(MAX_ALERTS).select("image_id").unique()
    table = (
        found.join(first.collect(engine="streaming").lazy(), on="image_id", how="semi")
        .sort(**order, nulls_last=True)
        .head(MAX_ALERTS)
        .with_columns(region=region.list.first())
        .select(
            "verdict",
            "uri",
            "surface",
            "margin",
            "defect_score",
            "defect_threshold",
            "defect_probability",
            "unseen_score",
            "unseen_threshold",
            "unseen_p_value",
            pl.col("nearest_surfaces").list.join("; "),
            pl.col("nearest_scores").list.eval(pl.element().round(4).cast(pl.String)).list.join("; "),
            pl.col("attributes").list.join("; "),
            "extrapolated",
            pl.col("regions").list.len().fill_null(0).alias("num_regions"),
            *(
                pl.col("region").struct.field(name).alias(f"region_{name}")
                for name in ("x", "y", "width", "height", "area_px", "score")
            ),
            "error_code",
            "error_detail",
            "inspected_at",
            "image_id",
            "bundle",
        )
    )
    return table.collect(engine="streaming")


def worst(rows: pl.LazyFrame, verdict: str, num: int) -> list[dict[str, Any]]:
    """The `num` rows with this verdict that lie farthest above their threshold, whole, the farthest first.

    Found by id and margin alone and only then read in full, so that the embeddings of a million rows stay on the disk.
    """
    kind = rows.filter(pl.col("verdict") == verdict).with_columns(margin=_MARGIN)
    first = _by_margin(kind.group_by("image_id").agg(pl.col("margin").max())).head(num)
    ids = first.collect(engine="streaming")["image_id"].to_list()
    whole = _by_margin(kind.filter(pl.col("image_id").is_in(ids)))
    # An id with two rows is a flaw that the report counts; the gallery shows it once.
    table = whole.unique("image_id", keep="first", maintain_order=True).drop("margin")
    return table.collect(engine="streaming").to_dicts()


def _by_margin(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.sort("margin", "image_id", descending=[True, False], nulls_last=True)
