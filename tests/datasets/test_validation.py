"""Each way in which a row can be unfit is found, named and counted; fit rows are left in peace."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sbdzsl import cli, lake
from sbdzsl.config import ImageSettings
from sbdzsl.datasets import validation
from sbdzsl.datasets.sample import Sample, samples_to_table
from sbdzsl.datasets.validation import CODES, COLUMNS, Finding, Validation, validate
from sbdzsl.errors import ConfigError, ImageError, LakeError
from tests.datasets.test_adapters import SPOT


def draw(path: Path, seed: int) -> str:
    """A grey image of noise, so that no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (20, 24), np.uint8))
    return str(path)


def fit_samples(root: Path) -> list[Sample]:
    """A surface with nothing to complain about: 6 rows in train, 2 in val, 2 in test; two defects with masks."""
    cv2.imwrite(str(root / "spot.png"), SPOT)
    samples = []
    for k in range(10):
        split = "train" if k < 6 else "val" if k < 8 else "test"
        mask = {"label": "defect", "mask_uri": str(root / "spot.png"), "mask_kind": "pixels"} if k in (0, 6) else {}
        fields: dict[str, Any] = {
            "surface": "steel",
            "label": "benign",
            "group": f"lot{k // 2}",
            "split": split,
            **mask,
        }
        samples.append(Sample(f"id{k}", draw(root / f"{k}.png", k), **fields))
    return samples


def check(samples: list[Sample]) -> Validation:
    return validate(samples, ImageSettings(), min_train=5)


def found(samples: list[Sample]) -> set[tuple[str | None, str]]:
    return {(f.sample.image_id if f.sample else f.surface, f.code) for f in check(samples).rejections}


def test_fit_rows_are_counted_and_not_rejected(tmp_path: Path) -> None:
    result = check(fit_samples(tmp_path))
    assert result.rejections == ()
    (row,) = result.surfaces
    assert row == validation.SurfaceCounts("steel", 10, 8, 2, 0, masked=2, alike=0, rejected=0)


def spoil(samples: list[Sample], place: int, **fields: Any) -> list[Sample]:
    return [replace(s, **fields) if k == place else s for k, s in enumerate(samples)]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty"), (b"no image", "unsupported-format"), (None, "not-found"), (b"\x89PNG", "truncated")],
)
def test_an_image_that_cannot_be_read_has_the_code_of_its_error(tmp_path: Path, data: bytes | None, code: str) -> None:
    samples = fit_samples(tmp_path)
    path = Path(samples[3].uri)
    path.unlink() if data is None else path.write_bytes(data)
    assert found(samples) == {("id3", code)}
    assert code in ImageError.CODES | LakeError.CODES


def test_masks_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    samples = fit_samples(tmp_path)
    cv2.imwrite(str(tmp_path / "small.png"), SPOT[:10])
    cv2.imwrite(str(tmp_path / "black.png"), SPOT * 0)
    cv2.imwrite(str(tmp_path / "lossy.jpg"), SPOT)
    spot = str(tmp_path / "spot.png")
    for uri, code in {
        str(tmp_path / "small.png"): "bad-mask",
        str(tmp_path / "black.png"): "empty-mask",
        str(tmp_path / "lossy.jpg"): "lossy-mask",
        str(tmp_path / "gone.png"): "not-found",
    }.items():
        assert found(spoil(samples, 0, mask_uri=uri)) == {("id0", code)}
    assert found(spoil(samples, 1, mask_uri=spot, mask_kind="pixels")) == {("id1", "bad-mask")}
    assert found(spoil(samples, 0, mask_uri=spot, mask_kind="rle")) == {("id0", "bad-mask")}
    # A defect without a mask is a level of labels, no fault.
    assert found(spoil(samples, 0, mask_uri=None, mask_kind=None)) == set()


@pytest.mark.parametrize(
    ("fields", "differs"),
    [
        ({"label": "defect"}, "label benign and defect"),
        ({"split": "test", "group": "lot9"}, "split train and test"),
        ({"surface": "wood"}, "surface steel and wood"),
    ],
)
def test_copies_that_contradict_each_other_are_both_rejected(
    tmp_path: Path, fields: dict[str, str], differs: str
) -> None:
    samples = fit_samples(tmp_path)
    copy = replace(samples[3], image_id="copy", uri=str(tmp_path / "copy.png"), **fields)  # type: ignore[arg-type]
    Path(copy.uri).write_bytes(Path(samples[3].uri).read_bytes())
    rejections = [f for f in check([*samples, copy]).rejections if f.code == "doubled-image"]
    assert [f.sample.image_id for f in rejections if f.sample] == ["id3", "copy"]
    assert all(differs in f.reason for f in rejections)


@pytest.mark.parametrize("label", ["benign", None])
def test_copies_that_agree_are_counted_and_kept(tmp_path: Path, label: str | None) -> None:
    samples = fit_samples(tmp_path)
    copy = replace(samples[3], image_id="copy", uri=str(tmp_path / "copy.png"), label=label)  # type: ignore[arg-type]
    Path(copy.uri).write_bytes(Path(samples[3].uri).read_bytes())
    result = check([*samples, copy])
    assert result.rejections == ()
    assert result.surfaces[0].alike == 1


def test_a_group_in_two_splits_is_rejected_whole(tmp_path: Path) -> None:
    samples = spoil(fit_samples(tmp_path), 5, split="val")
    result = check(samples)
    assert {(f.sample.image_id, f.code) for f in result.rejections if f.sample} == {
        ("id4", "split-group"),
        ("id5", "split-group"),
    }
    assert "group lot2 has 1 in train, 1 in val" in result.rejections[0].reason
    # Images of two sources that have the same path there, each a group of its own as `ingest` names it, are no lot.
    namesakes = [
        Sample(
            name, draw(tmp_path / name / "steel" / "1.png", k), None, surface="steel", split=split, group="steel/1.png"
        )
        for k, (name, split) in enumerate((("march", "train"), ("april", "val")), start=20)
    ]
    assert check([*fit_samples(tmp_path), *namesakes]).rejections == ()
    # Names of groups count within their surface.
    assert "split-group" not in {code for _, code in found(spoil(samples, 5, split="val", surface="wood"))}


def test_a_surface_with_too_few_readable_images_is_one_finding(tmp_path: Path) -> None:
    samples = fit_samples(tmp_path)
    for k in (2, 3):
        Path(samples[k].uri).write_bytes(b"")
    assert found(samples) == {("id2", "empty"), ("id3", "empty"), ("steel", "too-few-images")}
    (few,) = [f for f in check(samples).rejections if f.code == "too-few-images"]
    assert few.describe() == "steel: 4 readable training and 2 validation images; at least 5 and 1 are needed"
    # A surface that is kept for tests alone, as an unseen one is, is not trained.
    assert found([replace(s, split="test") for s in fit_samples(tmp_path)]) == set()


def test_rows_without_surface_or_split_are_rejected_and_a_row_may_have_several_faults(tmp_path: Path) -> None:
    samples = spoil(fit_samples(tmp_path), 9, surface=None, split=None)
    Path(samples[9].uri).write_bytes(b"")
    result = check(samples)
    assert [f.code for f in result.rejections] == ["no-surface", "no-split", "empty"]
    assert [(row.surface, row.rejected) for row in result.surfaces] == [("(no surface)", 1), ("steel", 0)]


def test_findings_are_written_whole_in_both_forms(tmp_path: Path) -> None:
    samples = spoil(fit_samples(tmp_path), 5, split="val")
    findings = [*check(samples).rejections, Finding("steel", samples[1], "suspect", 'rank 1, "odd"', 2.5)]
    rows = json.loads(validation.findings_as(findings, "json"))
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert [row["score"] for row in rows] == [None, None, 2.5]
    text = validation.findings_as(findings, "csv").decode()
    assert [row["reason"] for row in csv.DictReader(io.StringIO(text))] == [f.reason for f in findings]
    assert {row["code"] for row in rows} <= set(CODES)
    with pytest.raises(ConfigError, match=r"expected a name in .csv or .json"):
        validation.check_form("found.xlsx")


def test_the_command_prints_writes_and_ends_with_1_where_rows_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = str(tmp_path / "m.parquet"), str(tmp_path / "found.csv")
    samples = fit_samples(tmp_path)
    lake.write_manifest(samples_to_table(samples), manifest)
    assert cli.main(["datasets", "validate", "--manifest", manifest]) == 0
    Path(samples[3].uri).write_bytes(b"")
    words = ["datasets", "validate", "--manifest", manifest, "--out", out]
    assert cli.main(words) == 1
    assert f"empty: {samples[3].uri}: the file has 0 bytes" in capsys.readouterr().out
    assert [row["image_id"] for row in csv.DictReader(io.StringIO(Path(out).read_text()))] == ["id3"]
    assert cli.main([*words[:-1], "found.xlsx"]) == 2


def test_the_command_takes_the_limits_and_depth_of_the_training_settings(tmp_path: Path) -> None:
    manifest, settings = str(tmp_path / "m.parquet"), tmp_path / "train.yaml"
    lake.write_manifest(samples_to_table(fit_samples(tmp_path)), manifest)
    settings.write_text("image: {min_side_px: 64}\n")
    assert cli.main(["datasets", "validate", "--manifest", manifest, "--config", str(settings)]) == 1
