"""The two tables and the error codes: a public contract, frozen here."""

from pathlib import Path

import polars as pl

from sbdzsl import errors
from sbdzsl.datasets import validation
from sbdzsl.lake import MANIFEST_SCHEMA, MANIFEST_VALUES
from sbdzsl.report.counting import summarise
from sbdzsl.report.diff import REASONS
from sbdzsl.serving.log import LOG_SCHEMA
from sbdzsl.verdict import VERDICT_SCHEMA
from tests.verdicts import draw_facts, draw_references, draw_verdicts

MANIFEST = {
    "image_id": "string",
    "uri": "string",
    "size_bytes": "int64",
    "etag": "string",
    "modified_at": "timestamp[us, tz=UTC]",
    "surface": "string",
    "label": "string",
    "mask_uri": "string",
    "mask_kind": "string",
    "group": "string",
    "split": "string",
    "bit_depth": "int16",
}

VERDICT = {
    "image_id": "string",
    "uri": "string",
    "verdict": "string",
    "surface": "string",
    "surface_margin": "double",
    "unseen_score": "double",
    "unseen_threshold": "double",
    "unseen_p_value": "double",
    "defect_score": "double",
    "defect_threshold": "double",
    "defect_probability": "double",
    "regions": "list<element: struct<x: int32, y: int32, width: int32, height: int32, area_px: int32, score: float>>",
    "class_embedding": "list<element: float>",
    "attributes": "list<element: string>",
    "nearest_surfaces": "list<element: string>",
    "nearest_scores": "list<element: double>",
    "extrapolated": "bool",
    "threshold_policy": "string",
    "error_code": "string",
    "error_detail": "string",
    "image_width": "int32",
    "image_height": "int32",
    "bit_depth": "int16",
    "brightness": "float",
    "sharpness": "float",
    "modified_at": "timestamp[us, tz=UTC]",
    "bundle": "string",
    "inspected_at": "timestamp[us, tz=UTC]",
    "decode_ms": "float",
    "route_ms": "float",
    "detect_ms": "float",
}

CODES = {
    "ImageError": {
        "empty",
        "unreadable",
        "truncated",
        "unsupported-format",
        "too-large",
        "too-small",
        "depth-mismatch",
    },
    "LakeError": {
        "not-found",
        "forbidden",
        "no-images",
        "unreachable",
        "unsupported-store",
        "already-exists",
        "disk-full",
    },
    "DataError": {"bad-layout", "bad-manifest", "bad-mask", "bad-attributes", "too-few-images", "bad-images"},
    "ConfigError": {"bad-config", "missing-extra"},
    "BundleError": {
        "no-bundle",
        "bundle-exists",
        "damaged-bundle",
        "wrong-version",
        "unsafe-file",
        "surface-exists",
        "surface-claimed",
    },
    "TrainingError": {"not-finite", "weights-missing", "surfaces-failed", "workers-failed", "trials-failed"},
    "ExportError": {"no-parity", "export-exists"},
    "AuditError": {"other-audit", "no-resources", "incomplete", "stalled", "crashing"},
    "RegistryError": {
        "no-version",
        "ambiguous-version",
        "promoted-meanwhile",
        "damaged-registry",
        "unsigned",
        "bad-signature",
    },
    "PipelineError": {"other-run", "damaged-run"},
    "StoppedError": {"too-many-errors", "out-of-time", "gate-refused"},
    "ServiceError": {
        "bad-request",
        "unauthorised",
        "missing-scope",
        "unknown-event",
        "unknown-alarm",
        "no-candidate",
        "deadline-exceeded",
        "idempotency-in-flight",
        "idempotency-mismatch",
        "overloaded",
        "bad-answer",
        "not-ready",
        "unreachable",
    },
    "AlertError": {"outbox-unusable", "sink-unreachable", "alert-refused", "sink-gone"},
}

#: Of `sbdzsl datasets validate`, beside those of images and stores; and the columns of what it writes.
FINDINGS = {
    "bad-mask",
    "empty-mask",
    "lossy-mask",
    "doubled-image",
    "split-group",
    "no-surface",
    "no-split",
    "too-few-images",
    "suspect",
}
FINDING_COLUMNS = ("code", "reason", "surface", "label", "split", "group", "score", "image_id", "uri", "mask_uri")


#: Of `summary.json`: scripts read it.
SUMMARY = {
    "complete",
    "sentence",
    "warnings",
    "exit_code",
    "facts",
    "counts",
    "surfaces",
    "unseen",
    "errors",
    "timing",
    "drift",
    "heat_maps",
    "folders",
    "timeline",
    "sampled_one_in",
    "version",
}
FACTS = {
    "lake",
    "out",
    "bundle",
    "bundle_name",
    "started_at",
    "finished_at",
    "num_manifest",
    "num_rows",
    "missing",
    "num_missing",
    "num_duplicates",
    "num_unexpected",
    "num_shards",
    "num_shards_resumed",
    "images_per_second",
    "actors",
    "run",
    "num_judged",
    "stopped",
    "stop_detail",
    "exit_code",
    "selection",
    "unseen_budget",
    "promise",
    "defect_budget",
}
DRIFT = {
    "measure",
    "num_reference",
    "num_images",
    "smallest_seen",
    "reference_median",
    "median",
    "psi",
    "psi_noise",
    "ks",
    "p_value",
    "moved",
}
DIFF_REASONS = {
    "only-in-a",
    "only-in-b",
    "file-changed",
    "not-judged",
    "threshold-moved",
    "score-moved",
    "score-and-threshold-moved",
    "other-surface",
}


#: What the log of a service has beside the columns of a verdict.
LOG = {
    "journal": "string",
    "event_id": "int64",
    "request_id": "string",
    "camera": "string",
    "trigger_id": "string",
    "part_id": "string",
    "sequence": "int64",
    "captured_at": "timestamp[us, tz=UTC]",
    "surface_expected": "string",
    "surface_as_expected": "bool",
    "queue_ms": "float",
}


def test_the_verdict_log_is_the_verdict_table_with_columns_of_the_service() -> None:
    assert LOG_SCHEMA.names == [*VERDICT, *LOG]
    assert all(LOG_SCHEMA.field(name).equals(VERDICT_SCHEMA.field(name)) for name in VERDICT)
    assert {name: str(LOG_SCHEMA.field(name).type) for name in LOG} == LOG
    assert LOG_SCHEMA.metadata == {b"sbdzsl_schema": b"verdict-log", b"version": b"1"}


def test_summary_of_an_audit() -> None:
    table = draw_verdicts(10)
    rows = pl.from_arrow(table).lazy()
    found = summarise(rows, draw_facts(table), draw_references()).to_json()
    assert found.keys() == SUMMARY
    assert list(found)[:4] == ["complete", "sentence", "warnings", "exit_code"]
    assert found["version"] == 2
    assert found["facts"].keys() == FACTS
    assert found["drift"][0].keys() == {"surface", "measures"}
    assert found["drift"][0]["measures"][0].keys() == DRIFT


def test_reasons_of_a_difference_are_in_the_manual() -> None:
    assert set(REASONS) == DIFF_REASONS
    manual = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
    assert [reason for reason in sorted(DIFF_REASONS) if f"`{reason}`" not in manual] == []


def test_findings_of_a_validation() -> None:
    assert set(validation.CODES) == FINDINGS
    assert validation.COLUMNS == FINDING_COLUMNS


def test_the_values_of_closed_columns() -> None:
    assert MANIFEST_VALUES == {
        "label": ("benign", "defect"),
        "mask_kind": ("pixels", "ellipse", "rle", "box", "polygon"),
        "split": ("train", "val", "test"),
    }


def test_manifest_schema() -> None:
    assert {field.name: str(field.type) for field in MANIFEST_SCHEMA} == MANIFEST
    assert [field.name for field in MANIFEST_SCHEMA if not field.nullable] == ["image_id", "uri"]


def test_verdict_schema() -> None:
    assert {field.name: str(field.type).replace("item:", "element:") for field in VERDICT_SCHEMA} == VERDICT
    assert VERDICT_SCHEMA.metadata[b"version"] == b"3"
    required = [field.name for field in VERDICT_SCHEMA if not field.nullable]
    assert required == ["image_id", "uri", "verdict", "bundle", "inspected_at"]


def test_error_codes_and_exit_codes() -> None:
    kinds = {kind.__name__: kind for kind in errors.SbdzslError.__subclasses__()}
    assert {name: set(kind.CODES) for name, kind in kinds.items()} == CODES
    assert {name: kind.exit_code for name, kind in kinds.items()} == {
        name: {"DataError": 2, "ConfigError": 2, "StoppedError": 3}.get(name, 1) for name in CODES
    }
