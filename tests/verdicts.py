"""Draws plausible verdict rows: what an audit leaves behind, without images or nets, at any size.

Everything is vectorised, so that a million rows take seconds. Same seed, same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbdzsl.datasets.sample import Sample
from sbdzsl.grouping import Group, Grouping, Member
from sbdzsl.report.gallery import Viewer
from sbdzsl.report.overlay import GalleryImage
from sbdzsl.report.summary import AuditFacts
from sbdzsl.verdict import REGION_TYPE, VERDICT_SCHEMA

SURFACES = ("carpet", "hot-rolled steel", "leather", "magnetic tile")
KINDS = ("good", "defect", "unseen", "error")
ERROR_CODES = ("truncated", "unreadable", "empty", "too-large", "not-found", "forbidden")
ATTRIBUTES = ("background: dark", "texture: grainy", "texture: strip", "shape: slender strip", "shape: small dot")
START = datetime(2026, 11, 2, 6, 0, tzinfo=timezone.utc)
UNSEEN_THRESHOLD = 1.6
BUNDLE = "sha256-4f0c2a6be1d9"


def draw_verdicts(
    num_images: int,
    seed: int = 0,
    surfaces: Sequence[str] = SURFACES,
    shares: tuple[float, float, float, float] = (0.90, 0.05, 0.03, 0.02),
) -> pa.Table:
    """A table of `VERDICT_SCHEMA` with `num_images` rows; `shares` of good, defect, unseen and error are expected."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, size=num_images, p=shares)
    surface = rng.integers(0, len(surfaces), num_images)
    thresholds = np.linspace(-0.5, 1.5, len(surfaces))[surface]
    judged, error = kind < 2, kind == 3
    score = np.where(kind == 1, thresholds + rng.exponential(2.5, num_images) + 1e-3, 0.0)
    score = np.where(kind == 0, thresholds - rng.gamma(4.0, 1.2, num_images), score)
    alien = np.where(kind == 2, UNSEEN_THRESHOLD + rng.exponential(1.5, num_images) + 1e-3, 0.0)
    alien = np.where(kind < 2, UNSEEN_THRESHOLD * rng.beta(6, 4, num_images), alien)
    embedding = pa.array(rng.random(29 * num_images, dtype=np.float32))
    nearest = (surface[:, None] + np.arange(min(3, len(surfaces)))) % len(surfaces)
    names = pa.array(surfaces)
    columns: dict[str, Any] = {
        "image_id": [f"{i:012x}" for i in range(num_images)],
        "uri": [f"s3://line-3/2026/11/part_{i:07d}.png" for i in range(num_images)],
        "verdict": pa.array(KINDS).take(pa.array(kind)),
        "surface": _where(names.take(pa.array(surface)), ~error),
        "surface_margin": _where(pa.array(rng.exponential(1.0, num_images)), ~error),
        "unseen_score": _where(pa.array(alien), ~error),
        "unseen_threshold": _where(pa.array(np.full(num_images, UNSEEN_THRESHOLD)), ~error),
        "unseen_p_value": _where(pa.array(np.exp(-2.4 * alien)), ~error),
        "defect_score": _where(pa.array(score), judged),
        "defect_threshold": _where(pa.array(thresholds), judged),
        "defect_probability": _where(pa.array(1 / (1 + np.exp(thresholds - score))), judged),
        "regions": _regions(rng, np.where(kind == 1, rng.integers(1, 4, num_images), 0)),
        "class_embedding": _lists(np.where(error, 0, 29), embedding),
        "attributes": _lists(np.where(error, 0, 2), pa.array(ATTRIBUTES), rng),
        "nearest_surfaces": _lists(np.where(error, 0, nearest.shape[1]), names.take(pa.array(nearest[~error].ravel()))),
        "nearest_scores": _lists(
            np.where(error, 0, nearest.shape[1]),
            pa.array((alien[:, None] * np.linspace(1, 1.5, nearest.shape[1]))[~error].ravel()),
        ),
        "extrapolated": _where(pa.array(kind == 2), ~error),
        "threshold_policy": _where(pa.array(["false-alarm-rate"] * num_images), judged),
        "error_code": _where(
            pa.array(ERROR_CODES).take(pa.array(rng.integers(0, len(ERROR_CODES), num_images))), error
        ),
        "error_detail": _where(pa.array(["found 0 bytes, expected an image"] * num_images), error),
        "image_width": _where(pa.array(np.full(num_images, 460)), ~error),
        "image_height": _where(pa.array(np.full(num_images, 460)), ~error),
        "bit_depth": [None] * num_images,
        "brightness": _where(pa.array(rng.normal(0.45, 0.02, num_images)), ~error),
        "sharpness": _where(pa.array(rng.lognormal(-6, 0.2, num_images)), ~error),
        "modified_at": pa.array(np.datetime64("2026-10-01T00:00", "us") + np.arange(num_images) * 1_900_000_000),
        "bundle": [BUNDLE] * num_images,
        "inspected_at": pa.array(np.datetime64("2026-11-02T06:00", "us") + np.arange(num_images) * 12_000),
        "decode_ms": _where(pa.array(rng.gamma(8, 0.3, num_images)), ~error),
        "route_ms": _where(pa.array(rng.gamma(20, 0.4, num_images)), ~error),
        "detect_ms": _where(pa.array(rng.gamma(20, 0.3, num_images)), judged),
    }
    arrays = [_array(columns[field.name], field.type) for field in VERDICT_SCHEMA]
    return pa.table(arrays, schema=VERDICT_SCHEMA)


def draw_facts(table: pa.Table, **changes: Any) -> AuditFacts:
    """Facts of an audit that went well and left `table`; `changes` replace single fields."""
    values: dict[str, Any] = {
        "lake": "s3://line-3/2026/11/",
        "out": "s3://quality/audits/2026-11-02/",
        "bundle": BUNDLE,
        "bundle_name": "line-3 v12",
        "started_at": START,
        "finished_at": START.replace(minute=41, second=7),
        "num_manifest": table.num_rows,
        "num_rows": table.num_rows,
        "missing": (),
        "num_missing": 0,
        "num_duplicates": 0,
        "num_shards": 8,
        "num_shards_resumed": 3,
        "images_per_second": 84.0,
        "actors": 16,
        "run": 1,
        "num_judged": table.num_rows,
        "unseen_budget": 0.02,
        "defect_budget": 0.02,
    }
    return AuditFacts(**(values | changes))


def draw_references(num: int = 200, seed: int = 1, surfaces: Sequence[str] = SURFACES) -> dict[str, dict[Any, Any]]:
    """What held-out good images of each surface would have given, of the distributions of `draw_verdicts`."""
    rng = np.random.default_rng(seed)
    return {
        surface: {
            "brightness": rng.normal(0.45, 0.02, num),
            "sharpness": rng.lognormal(-6, 0.2, num),
            "unseen_score": UNSEEN_THRESHOLD * rng.beta(6, 4, num),
            "defect_score": threshold - rng.gamma(4.0, 1.2, num),
        }
        for surface, threshold in zip(surfaces, np.linspace(-0.5, 1.5, len(surfaces)), strict=True)
    }


def draw_viewer(picture: Callable[[Mapping[str, Any]], GalleryImage | None], **changes: Any) -> Viewer:
    """A viewer without a bundle: `picture` shows rows and images, unseen images are groups of ten in their order."""

    def group(samples: Sequence[Sample]) -> Grouping:
        members = [Member(sample, 2.0, SURFACES[0]) for sample in samples]
        tens = [tuple(members[start : start + 10]) for start in range(0, len(members), 10)]
        groups = tuple(Group(f"group-{i:02d}", ten, SURFACES[:2], ATTRIBUTES[:2], None) for i, ten in enumerate(tens))
        return Grouping(groups, (), len(samples), len(samples), 0, 0)

    values: dict[str, Any] = {
        "references": draw_references(),
        "picture": picture,
        "thumbnail": lambda sample: picture({"uri": sample.uri, "verdict": "unseen"}),
        "group": group,
    }
    return Viewer(**(values | changes))


def write_parts(table: pa.Table, folder: Path, rows_per_part: int) -> pl.LazyFrame:
    """The table as part files `part-00000.parquet`, ... in `folder`; a lazy scan over them."""
    for number, start in enumerate(range(0, max(table.num_rows, 1), rows_per_part)):
        part = table.slice(start, rows_per_part)
        pq.write_table(part, folder / f"part-{number:05d}.parquet", compression="zstd")
    return pl.scan_parquet(str(folder / "*.parquet"))


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return pa.array(values, type=kind) if isinstance(values, list) else pc.cast(values, kind)


def _where(values: pa.Array, keep: np.ndarray) -> pa.Array:
    return pc.if_else(pa.array(keep), values, pa.scalar(None, values.type))


def _lists(lengths: np.ndarray, values: pa.Array, rng: np.random.Generator | None = None) -> pa.Array:
    """Lists of the given lengths, filled from `values` in order, or at random where a generator is given."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    if rng is not None:
        values = values.take(pa.array(rng.integers(0, len(values), int(offsets[-1]))))
    return pa.ListArray.from_arrays(pa.array(offsets), values.slice(0, int(offsets[-1])))


def _regions(rng: np.random.Generator, lengths: np.ndarray) -> pa.Array:
    total = int(lengths.sum())
    side = rng.integers(4, 60, (2, total))
    columns = [*rng.integers(0, 400, (2, total)), *side, side[0] * side[1] // 2, rng.exponential(2.0, total)]
    arrays = [pa.array(column).cast(REGION_TYPE.field(i).type, safe=False) for i, column in enumerate(columns)]
    return _lists(lengths, pa.StructArray.from_arrays(arrays, fields=list(REGION_TYPE)))
