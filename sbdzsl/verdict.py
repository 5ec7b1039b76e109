"""What inspection says about one image, and the Arrow schema of the table it is stored in.

`Verdict` is the one answer of all ways in (command line, audit, evaluation): `to_row` makes the row of
`VERDICT_SCHEMA`, `to_json` the same fields as plain JSON. Coordinates are source pixels, origin top left, before any
scaling; scores are raw, nothing is clamped. A field that was not computed is None, never 0.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

Decision = Literal["good", "defect", "unseen", "error"]

#: 2: `nearest_scores` and `extrapolated` stand beside the columns of 1. 3: the image's own: `modified_at`, `bit_depth`,
#: `image_width`, `image_height`, `brightness`, `sharpness`.
SCHEMA_VERSION = 3

#: OPC 40001-101 `ResultEvaluation` of each decision: OK only where an image was judged good.
OPC_RESULT_EVALUATION: dict[Decision, int] = {"good": 1, "defect": 2, "unseen": 3, "error": 0}

REGION_TYPE = pa.struct(
    [
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("area_px", pa.int32()),
        ("score", pa.float32()),
    ]
)

VERDICT_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        ("surface", pa.string()),
        ("surface_margin", pa.float64()),
        ("unseen_score", pa.float64()),
        ("unseen_threshold", pa.float64()),
        ("unseen_p_value", pa.float64()),
        ("defect_score", pa.float64()),
        ("defect_threshold", pa.float64()),
        ("defect_probability", pa.float64()),
        ("regions", pa.list_(REGION_TYPE)),
        ("class_embedding", pa.list_(pa.float32())),
        ("attributes", pa.list_(pa.string())),
        ("nearest_surfaces", pa.list_(pa.string())),
        ("nearest_scores", pa.list_(pa.float64())),
        ("extrapolated", pa.bool_()),
        ("threshold_policy", pa.string()),
        ("error_code", pa.string()),
        ("error_detail", pa.string()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("bit_depth", pa.int16()),
        ("brightness", pa.float32()),
        ("sharpness", pa.float32()),
        ("modified_at", pa.timestamp("us", tz="UTC")),
        pa.field("bundle", pa.string(), nullable=False),
        pa.field("inspected_at", pa.timestamp("us", tz="UTC"), nullable=False),
        ("decode_ms", pa.float32()),
        ("route_ms", pa.float32()),
        ("detect_ms", pa.float32()),
    ],
    metadata={"sbdzsl_schema": "verdict", "version": str(SCHEMA_VERSION)},
)


@dataclass(frozen=True, slots=True)
class Region:
    """One connected place of a defect: box and area in source pixels, `score` the highest map value (a logit) in it."""

    x: int
    y: int
    width: int
    height: int
    area_px: int
    score: float


@dataclass(frozen=True, slots=True)
class Route:
    """What SBAD says: the nearest seen surface, and whether the image is too far from all of them.

    `unseen_score` is larger the stranger the image; it is unseen where the score exceeds `unseen_threshold`.
    `unseen_p_value` is conformal: the share of held-out seen images at least as strange. `surface_margin` is how much
    farther the second nearest surface is, None where only one is known. `nearest_surfaces` are up to three, the nearest
    first, `nearest_scores` how far each of them is: the score that would be the unseen score if it were the only one.

    `class_embedding` holds the A attribute values, `attributes` the words of those that stand out. Where the surface is
    unseen they are `extrapolated`: read by a net that was fitted on the seen surfaces alone.
    """

    surface: str
    surface_margin: float | None
    unseen_score: float
    unseen_threshold: float
    unseen_p_value: float
    class_embedding: tuple[float, ...]
    attributes: tuple[str, ...]
    nearest_surfaces: tuple[str, ...]
    nearest_scores: tuple[float, ...]

    @property
    def is_unseen(self) -> bool:
        """Whether the image belongs to none of the seen surfaces, at the user's false-alarm budget."""
        return self.unseen_score > self.unseen_threshold

    @property
    def extrapolated(self) -> bool:
        """Whether class embedding and attributes are read off a surface that none was fitted on."""
        return self.is_unseen


@dataclass(frozen=True, slots=True)
class Detection:
    """What one surface's SBDD says: `defect_score` is a sum of two logits, raw; a defect exceeds `defect_threshold`.

    `defect_probability` is calibrated on held-out images, None where they held no defect to calibrate with.
    """

    defect_score: float
    defect_threshold: float
    defect_probability: float | None
    regions: tuple[Region, ...]
    threshold_policy: str

    @property
    def is_defect(self) -> bool:
        """Whether the score exceeds the threshold."""
        return self.defect_score > self.defect_threshold


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on one image, with everything that led to it. Fields as in `VERDICT_SCHEMA`.

    `image_width` and `image_height` are source pixels, upright; `brightness` and `sharpness` as in `image.Appearance`;
    all None where the image could not be decoded. `modified_at` and `bit_depth` are the manifest's: when the file was
    last written, and the depth that it was decoded with where one was declared.
    """

    image_id: str
    uri: str
    verdict: Decision
    bundle: str
    surface: str | None = None
    surface_margin: float | None = None
    unseen_score: float | None = None
    unseen_threshold: float | None = None
    unseen_p_value: float | None = None
    defect_score: float | None = None
    defect_threshold: float | None = None
    defect_probability: float | None = None
    regions: tuple[Region, ...] = ()
    class_embedding: tuple[float, ...] = ()
    attributes: tuple[str, ...] = ()
    nearest_surfaces: tuple[str, ...] = ()
    nearest_scores: tuple[float, ...] = ()
    extrapolated: bool | None = None
    threshold_policy: str | None = None
    error_code: str | None = None
    error_detail: str | None = None
    image_width: int | None = None
    image_height: int | None = None
    bit_depth: int | None = None
    brightness: float | None = None
    sharpness: float | None = None
    modified_at: datetime | None = None
    inspected_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    decode_ms: float | None = None
    route_ms: float | None = None
    detect_ms: float | None = None

    @property
    def result_evaluation(self) -> int:
        """`ResultEvaluation` of OPC 40001-101: 1 OK, 2 NotOK, 3 NotDecidable, 0 Undefined."""
        return OPC_RESULT_EVALUATION[self.verdict]

    def describe(self) -> str:
        """The verdict in one line for a person."""
        if self.verdict == "error":
            return f"ERROR {self.error_code}: {self.error_detail}"
        if self.verdict == "unseen":
            near = nearness(self.nearest_surfaces, self.nearest_scores, self.unseen_threshold)
            return f"UNSEEN (p = {self.unseen_p_value:.3f}); nearest: {near}; looks: {self.looks}"
        line = f"{self.surface}, score {self.defect_score:.2f} against threshold {self.defect_threshold:.2f}"
        if self.verdict == "good":
            return f"GOOD {line}"
        places = (
            ", ".join(f"{r.width}x{r.height} px at ({r.x}, {r.y})" for r in self.regions[:3]) or "no place stands out"
        )
        more = f" and {len(self.regions) - 3} more" if len(self.regions) > 3 else ""
        return f"DEFECT {line}; {places}{more}; looks: {self.looks}"

    @property
    def looks(self) -> str:
        """The attributes that stand out in one phrase, marked where they are extrapolated."""
        return phrase(self.attributes) + (" (extrapolated)" if self.extrapolated else "")

    def to_row(self) -> dict[str, Any]:
        """One row of `VERDICT_SCHEMA`."""
        return asdict(self)

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values, with `result_evaluation` beside them."""
        row = self.to_row()
        row["inspected_at"] = self.inspected_at.isoformat()
        row["modified_at"] = self.modified_at and self.modified_at.isoformat()
        return row | {"result_evaluation": self.result_evaluation}


def nearness(surfaces: Sequence[str], scores: Sequence[float], threshold: float | None) -> str:
    """How far the nearest known surfaces are: "leather (1.80× the limit), sandpaper (2.40×)".

    The limit is the threshold, the score at which an image still counts as seen: 1.00× lies on it. Raw scores where the
    threshold is no length to measure with, names alone where there are no scores.
    """
    if len(scores) != len(surfaces):
        return ", ".join(surfaces)
    if threshold is None or threshold <= 0:
        return ", ".join(f"{name} (score {score:.2f})" for name, score in zip(surfaces, scores, strict=True))
    parts = [f"{name} ({score / threshold:.2f}×" for name, score in zip(surfaces, scores, strict=True)]
    return ", ".join(part + (")" if number else " the limit)") for number, part in enumerate(parts))


def phrase(attributes: Sequence[str]) -> str:
    """Attributes in one phrase: what shares the kind before a colon stands together, "texture grainy, strip; ..."."""
    kinds: dict[str, list[str]] = {}
    for attribute in attributes:
        kind, _, word = attribute.rpartition(": ")
        kinds.setdefault(kind, []).append(word)
    return "; ".join(f"{kind} {', '.join(words)}".strip() for kind, words in kinds.items()) or "nothing stands out"


def verdict_table(verdicts: Sequence[Verdict]) -> pa.Table:
    """Verdicts as a table of `VERDICT_SCHEMA`, in the order given."""
    return pa.Table.from_pylist([verdict.to_row() for verdict in verdicts], schema=VERDICT_SCHEMA)


def to_parquet(verdicts: Sequence[Verdict]) -> bytes:
    """Verdicts as the bytes of one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(verdict_table(verdicts), buffer, compression="zstd")
    return buffer.getvalue()
