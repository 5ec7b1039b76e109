"""Time and peak memory of summary and report at 10 000, 100 000 and 1 000 000 verdict rows.

    python benchmarks/report_scale.py          about five minutes on two cores

The rows are made up (drawn from a random generator, 1024 a part file as an audit leaves them): no image stands behind
them, and they measure the report alone. The galleries are given one ready picture, unseen images are grouped by the
order of their ids: what reading and judging images costs is not in it. Each size is a process of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from PIL import Image
from record import record

from sbdzsl.datasets.sample import Sample
from sbdzsl.grouping import Group, Grouping, Member
from sbdzsl.report.alerts import alerts
from sbdzsl.report.counting import summarise
from sbdzsl.report.figures import copy_rows
from sbdzsl.report.gallery import Viewer
from sbdzsl.report.html import write_report
from sbdzsl.report.overlay import GalleryImage
from sbdzsl.report.summary import AuditFacts
from sbdzsl.verdict import VERDICT_SCHEMA

SIZES = (10_000, 100_000, 1_000_000)
ROWS_A_PART = 1024
SURFACES = tuple(f"surface {letter}" for letter in "ABCDEFGHIJ")
FOLDERS, LIMIT = 400, 1.6
START = datetime(2026, 3, 1, tzinfo=timezone.utc)


def draw_part(number: int, rows: int) -> pl.DataFrame:
    """One part of made-up rows: 92 % good, 5 % defective, 2 % unseen, 1 % unreadable."""
    rng = np.random.default_rng(number)
    kind = rng.choice(4, rows, p=(0.92, 0.05, 0.02, 0.01))
    surface, error, judged = rng.integers(0, len(SURFACES), rows), kind == 3, kind < 2
    index = number * ROWS_A_PART + np.arange(rows)
    folder = (index * FOLDERS) // 1_000_000 if number % 2 else rng.integers(0, FOLDERS, rows)
    brightness = rng.normal(0.45, 0.02, rows) + np.where(surface == 2, 0.04, 0)
    columns: dict[str, Any] = {
        "image_id": [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in index],
        "uri": [f"s3://made-up/line-{f % 4}/lot-{f:04d}/part_{i:07d}.png" for f, i in zip(folder, index, strict=True)],
        "verdict": np.array(["good", "defect", "unseen", "error"])[kind],
        "surface": np.where(error, None, np.array(SURFACES)[surface]),
        "surface_margin": rng.exponential(1, rows),
        "unseen_score": np.where(kind == 2, LIMIT + rng.exponential(1, rows), LIMIT * rng.beta(6, 4, rows)),
        "unseen_threshold": np.full(rows, LIMIT),
        "unseen_p_value": rng.random(rows),
        "defect_score": np.where(kind == 1, 1 + rng.exponential(2, rows), 1 - rng.gamma(4, 1.2, rows)),
        "defect_threshold": np.ones(rows),
        "defect_probability": rng.random(rows),
        "regions": [_regions(rng) if k == 1 else [] for k in kind],
        "class_embedding": list(rng.random((rows, 29), dtype=np.float32)),
        "attributes": [["background: dark", "texture: grainy"]] * rows,
        "nearest_surfaces": [[SURFACES[s], SURFACES[(s + 1) % 10], SURFACES[(s + 2) % 10]] for s in surface],
        "nearest_scores": [[1.0, 1.5, 2.0]] * rows,
        "extrapolated": kind == 2,
        "threshold_policy": ["false-alarm-rate:0.02"] * rows,
        "error_code": np.where(error, np.array(["truncated", "empty", "not-found"])[index % 3], None),
        "error_detail": np.where(error, "made up", None),
        "image_width": np.full(rows, 640),
        "image_height": np.full(rows, 480),
        "bit_depth": [None] * rows,
        "brightness": brightness,
        "sharpness": rng.lognormal(-6, 0.2, rows),
        "modified_at": [START + timedelta(seconds=16 * int(i)) for i in index],
        "bundle": ["0" * 64] * rows,
        "inspected_at": [START] * rows,
        **{
            name: rng.gamma(8, scale, rows) for name, scale in (("decode_ms", 0.3), ("route_ms", 1), ("detect_ms", 0.8))
        },
    }
    plain = {
        name: one.tolist() if getattr(one, "dtype", None) == np.dtype(object) else one for name, one in columns.items()
    }
    table = pl.DataFrame(plain, schema=pl.Schema(VERDICT_SCHEMA), strict=False)
    nothing = pl.when(pl.Series(~error))
    routed = ("surface_margin", "unseen_score", "unseen_threshold", "unseen_p_value", "brightness", "sharpness")
    table = table.with_columns(nothing.then(pl.col(name)) for name in (*routed, "image_width", "image_height"))
    scored = ("defect_score", "defect_threshold", "defect_probability", "threshold_policy", "detect_ms")
    return table.with_columns(pl.when(pl.Series(judged)).then(pl.col(name)) for name in scored)


def _regions(rng: np.random.Generator) -> list[dict[str, Any]]:
    x, y = rng.normal(320, 60), rng.normal(240, 100)
    box = {"x": int(np.clip(x, 0, 620)), "y": int(np.clip(y, 0, 460)), "width": 16, "height": 16, "area_px": 200}
    return [box | {"score": float(rng.exponential(2))} for _ in range(int(rng.integers(1, 4)))]


def draw_viewer() -> Viewer:
    """One ready picture for all, references of the distributions above, groups by order."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(90, 160, (240, 320), np.uint8)).save(buffer, "JPEG", quality=80)
    picture = GalleryImage(buffer.getvalue(), "image/jpeg")
    own = {
        "brightness": rng.normal(0.45, 0.02, 300),
        "sharpness": rng.lognormal(-6, 0.2, 300),
        "unseen_score": LIMIT * rng.beta(6, 4, 300),
        "defect_score": 1 - rng.gamma(4, 1.2, 300),
    }

    def group(samples: Sequence[Sample]) -> Grouping:
        members = [Member(sample, 2.0, SURFACES[0]) for sample in samples]
        groups = [Group(f"group-{i}", tuple(members[i::8]), SURFACES[:2], ("texture: grainy",), None) for i in range(8)]
        return Grouping(tuple(groups), (), len(samples), len(samples), 0, 0)

    return Viewer(dict.fromkeys(SURFACES, own), lambda _: picture, lambda _: picture, group)  # type: ignore[arg-type]


def draw_facts(rows: int, out: str) -> AuditFacts:
    """Facts of an audit of so many made-up rows that went well."""
    return AuditFacts(
        lake="s3://made-up/",
        out=out,
        bundle="0" * 64,
        bundle_name="made up",
        started_at=START,
        finished_at=START,
        num_manifest=rows,
        num_rows=rows,
        missing=(),
        num_missing=0,
        num_duplicates=0,
        num_shards=-(-rows // ROWS_A_PART),
        num_shards_resumed=0,
        images_per_second=None,
        actors=0,
        run=1,
        num_judged=rows,
        unseen_budget=0.02,
        defect_budget=0.02,
    )


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Seconds of each step and peak memory of this process, in MB beyond what it takes before the first row."""
    scan = pl.scan_parquet(str(folder / "*.parquet"))
    viewer, facts = draw_viewer(), draw_facts(rows, str(folder / "out"))
    pl.DataFrame({"a": [1]}).lazy().select("a").collect(engine="streaming")
    before = _status_mb("VmRSS")
    seconds = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        copied = copy_rows(scan, Path(name))
        seconds["copy_s"], started = round(time.perf_counter() - started, 2), time.perf_counter()
        summarise(copied, facts, viewer.references)
        seconds["summary_s"], started = round(time.perf_counter() - started, 2), time.perf_counter()
        alerts(copied)
        seconds["alerts_s"] = round(time.perf_counter() - started, 2)
    started = time.perf_counter()
    write_report(scan, facts, str(folder / "out"), viewer, 24)
    seconds["report_in_all_s"] = round(time.perf_counter() - started, 2)
    sizes = {
        f"{name}_kb": round((folder / "out" / file).stat().st_size / 1e3)
        for name, file in (("page", "report.html"), ("summary", "summary.json"), ("alerts", "alerts.csv"))
    }
    return {"rows": rows, **seconds, "peak_mb": round(_status_mb("VmHWM") - before), "start_mb": round(before), **sizes}


def _status_mb(name: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) * 1024 / 1e6


def main() -> None:
    """Draw the rows, measure each size in a process of its own, record."""
    runs = []
    with tempfile.TemporaryDirectory() as name:
        for rows in SIZES:
            folder = Path(name) / str(rows)
            folder.mkdir()
            for number, start in enumerate(range(0, rows, ROWS_A_PART)):
                part = draw_part(number, min(ROWS_A_PART, rows - start)).to_arrow().cast(VERDICT_SCHEMA)
                pq.write_table(part, folder / f"0001-{number:06d}.parquet", compression="zstd")
            command = [sys.executable, __file__, str(folder), str(rows)]
            runs.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
            print(runs[-1], flush=True)
    record("report_scale", {"rows": "made up; they measure summary and report alone", "runs": runs})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
