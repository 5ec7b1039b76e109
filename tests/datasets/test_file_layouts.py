"""The readers of layouts whose labels stand in one file, or whose split is official, on tiny sets drawn in them."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest

from sbdzsl import lake
from sbdzsl.datasets import ADAPTERS, ingest
from sbdzsl.datasets.sample import Sample, load_mask, samples_to_table
from sbdzsl.errors import DataError
from tests.datasets.test_adapters import GREY, SPOT, labels, named, put, write

SHAPE = GREY.shape


def mask_of(sample: Sample) -> np.ndarray:
    mask = load_mask(sample, SHAPE)
    assert mask is not None
    return mask


def refused(adapter: str, source: Path, message: str, code: str = "bad-manifest") -> None:
    with pytest.raises(DataError, match=message) as caught:
        ADAPTERS[adapter](str(source), None)
    assert caught.value.code == code


class TestKolektor2:
    def tree(self, root: Path) -> None:
        for split, first in (("train", 10000), ("test", 20000)):
            for k in range(first, first + 10):
                put(root, f"{split}/{k}.png", np.dstack([GREY] * 3))
                put(root, f"{split}/{k}_GT.png", SPOT if k < first + 3 else SPOT * 0)

    def test_the_official_test_set_is_kept_and_a_copy_of_a_mask_is_no_image(self, tmp_path: Path) -> None:
        self.tree(tmp_path)
        put(tmp_path, "train/10001_GT (copy).png", SPOT)
        found = ingest("kolektorsdd2", str(tmp_path))
        assert labels(found.samples) == {("kolektorsdd2", "defect"): 6, ("kolektorsdd2", "benign"): 14}
        assert {("/test/" in s.uri) == (s.split == "test") for s in found.samples} == {True}
        assert Counter(s.split for s in found.samples)["val"] == 2
        assert len({s.group for s in found.samples}) == 20
        assert named(found.samples, "20000.png").group == "test/20000.png"
        assert "official test set" in found.notes[0]
        assert np.array_equal(mask_of(named(found.samples, "20000.png")), SPOT > 0)
        assert {s.surface for s in ADAPTERS["kolektorsdd2"](str(tmp_path), "line 2")} == {"line 2"}

    def test_an_image_without_mask_is_named(self, tmp_path: Path) -> None:
        self.tree(tmp_path)
        (tmp_path / "test/20005_GT.png").unlink()
        refused("kolektorsdd2", tmp_path, "test/20005.png has no 20005_GT.png", "bad-layout")


#: Columns count from the left, 20 pixels each: rows 0 to 4 of column 0; row 2 of column 1; rows 18 and 19 of column 3.
RUNS = {1: "1 5", 2: "23 1", 3: "79 2"}


def steel(root: Path, rows: list[tuple[str, int, str]], images: str = "abcdef", old_form: bool = False) -> None:
    for name in images:
        put(root, f"train_images/{name}.jpg")
    put(root, "test_images/z.jpg")
    lines = [f"{name}.jpg_{k},{code}" if old_form else f"{name}.jpg,{k},{code}" for name, k, code in rows]
    header = "ImageId_ClassId,EncodedPixels" if old_form else "ImageId,ClassId,EncodedPixels"
    write(root, "train.csv", "\n".join([header, *lines]) + "\n")


ROWS = [("a", 1, RUNS[1]), ("a", 3, RUNS[3]), ("b", 3, RUNS[3]), ("c", 2, RUNS[2])]


class TestSeverstal:
    def trees(self, root: Path) -> list[Path]:
        """The same labels in both forms of the table."""
        steel(root / "new", ROWS)
        known = {(name, k): code for name, k, code in ROWS}
        every = [(name, k, known.get((name, k), "")) for name in "abcdef" for k in range(1, 5)]
        steel(root / "old", every, old_form=True)
        return [root / "new", root / "old"]

    def test_every_class_is_a_defect_and_an_image_keeps_all_of_its_classes(self, tmp_path: Path) -> None:
        for source in self.trees(tmp_path):
            samples = ingest("severstal", str(source)).samples
            assert labels(samples) == {("severstal", "defect"): 3, ("severstal", "benign"): 3}
            found = np.argwhere(mask_of(named(samples, "a.jpg"))).tolist()
            assert found == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [18, 3], [19, 3]]
            assert np.argwhere(mask_of(named(samples, "c.jpg"))).tolist() == [[2, 1]]
            assert not mask_of(named(samples, "f.jpg")).any()
            assert {s.split for s in samples} == {"train", "val", "test"}

    @pytest.mark.parametrize("surface", ["severstal_class3", "STEEL Class3", "strip_class_3"])
    def test_a_surface_named_by_a_class_is_that_class_against_no_defect(self, tmp_path: Path, surface: str) -> None:
        for source in self.trees(tmp_path):
            samples = ADAPTERS["severstal"](str(source), surface)
            assert {Path(s.uri).stem: s.label for s in samples} == dict.fromkeys("ab", "defect") | dict.fromkeys(
                "def", "benign"
            )
            assert np.argwhere(mask_of(named(samples, "a.jpg"))).tolist() == [[18, 3], [19, 3]]
            assert {s.surface for s in samples} == {surface}

    def test_any_other_name_is_of_all_classes(self, tmp_path: Path) -> None:
        steel(tmp_path, ROWS)
        assert labels(ADAPTERS["severstal"](str(tmp_path), "strip")) == {("strip", "defect"): 3, ("strip", "benign"): 3}

    def test_masks_survive_a_manifest_on_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        steel(tmp_path / "set #1", ROWS)
        monkeypatch.chdir(tmp_path)
        samples = ingest("severstal", "set #1").samples
        lake.write_manifest(samples_to_table(samples), "m.parquet")
        monkeypatch.chdir("/")
        rows = lake.read_manifest(str(tmp_path / "m.parquet")).to_pylist()
        assert mask_of(named([Sample(**row) for row in rows], "b.jpg")).sum() == 2

    def test_contradictions_are_named(self, tmp_path: Path) -> None:
        steel(tmp_path / "1", [*ROWS, ("y", 1, RUNS[1])])
        refused("severstal", tmp_path / "1", r"names 1 images that are not in train_images/, such as y.jpg")
        steel(tmp_path / "2", [("a", k, "") for k in range(1, 5)], images="ab", old_form=True)
        refused("severstal", tmp_path / "2", r"not 1 of them, such as b.jpg")
        steel(tmp_path / "3", [])
        write(tmp_path / "3", "train.csv", "ImageId,EncodedPixels\na.jpg,1 2\n")
        refused("severstal", tmp_path / "3", "expected the columns ImageId, ClassId")
        refused("severstal", tmp_path / "3" / "train_images", "0 train.csv", "bad-layout")
        steel(tmp_path / "4", [("a", 1, "480 2")])
        (sample, *_) = ADAPTERS["severstal"](str(tmp_path / "4"), None)
        with pytest.raises(DataError, match="run 480 2 leaves an image of 24x20"):
            load_mask(sample, SHAPE)


def coco(images: list[tuple[int, str]], annotations: list[dict[str, Any]]) -> str:
    return json.dumps(
        {
            "images": [{"id": k, "file_name": name, "width": SHAPE[1], "height": SHAPE[0]} for k, name in images],
            "annotations": [{"id": k, "category_id": 1, **one} for k, one in enumerate(annotations)],
            "categories": [{"id": 1, "name": "scratch"}],
        }
    )


#: SPOT in each way that COCO writes a mask: rows 5 to 8, columns 6 to 11 of 20x24.
SPOTS: dict[str, dict[str, Any]] = {
    "box": {"bbox": [6, 5, 6, 4]},
    "empty segmentation": {"bbox": [6, 5, 6, 4], "segmentation": []},
    "polygon": {"bbox": [6, 5, 6, 4], "segmentation": [[6, 5, 12, 5, 12, 9, 6, 9]]},
    "two polygons": {"segmentation": [[6, 5, 9, 5, 9, 9, 6, 9], [9, 5, 12, 5, 12, 9, 9, 9]]},
    "counts": {
        "iscrowd": 1,
        "segmentation": {"size": [20, 24], "counts": [125, 4, 16, 4, 16, 4, 16, 4, 16, 4, 16, 4, 251]},
    },
    # Encoded by pycocotools 2.0.
    "compressed": {"iscrowd": 1, "segmentation": {"size": [20, 24], "counts": "m34`0000000000[7"}},
}


class TestCoco:
    @pytest.mark.parametrize("form", SPOTS)
    def test_each_form_of_a_mask_is_the_same_mask(self, tmp_path: Path, form: str) -> None:
        for name in ("images/a.png", "images/b.png"):
            put(tmp_path, name)
        write(
            tmp_path,
            "annotations/instances_default.json",
            coco([(3, "a.png"), (4, "b.png")], [{"image_id": 3, **SPOTS[form]}]),
        )
        write(tmp_path, "annotations/notes.json", "[]")
        for source in (tmp_path, tmp_path / "annotations/instances_default.json"):
            samples = ADAPTERS["coco"](str(source), "panel")
            assert labels(samples) == {("panel", "defect"): 1, ("panel", "benign"): 1}
            assert np.array_equal(mask_of(named(samples, "a.png")), SPOT > 0)
            assert not mask_of(named(samples, "b.png")).any()

    def test_annotations_of_one_image_join(self, tmp_path: Path) -> None:
        put(tmp_path, "a.png")
        both = [{"image_id": 1, **SPOTS["polygon"]}, {"image_id": 1, "bbox": [0, 0, 2, 1]}]
        write(tmp_path, "all.json", coco([(1, "a.png")], both))
        (sample,) = ADAPTERS["coco"](str(tmp_path), None)
        assert (sample.surface, sample.mask_kind) == (tmp_path.name, "box")
        assert mask_of(sample).sum() == (SPOT > 0).sum() + 2

    def test_a_file_a_split_keeps_the_splits(self, tmp_path: Path) -> None:
        for split, name in (("train", "a.jpg"), ("valid", "a.jpg"), ("test", "b.jpg")):
            put(tmp_path, f"{split}/{name}", GREY + len(split))
            write(tmp_path, f"{split}/_annotations.coco.json", coco([(0, name)], []))
        found = ingest("coco", str(tmp_path))
        assert {s.uri.split("/")[-2]: s.split for s in found.samples} == {
            "train": "train",
            "valid": "val",
            "test": "test",
        }
        assert "as its source names them" in found.notes[0]

    def test_contradictions_are_named(self, tmp_path: Path) -> None:
        for name in ("1/x/a.png", "1/y/a.png", "2/a.png"):
            put(tmp_path, name)
        write(tmp_path, "1/all.json", coco([(1, "a.png")], []))
        refused("coco", tmp_path / "1", "2 files are the image 'a.png'")
        write(tmp_path, "1/all.json", coco([(1, "x/a.png"), (2, "z.png")], []))
        refused("coco", tmp_path / "1", "0 files are the image 'z.png'")
        write(tmp_path, "2/all.json", coco([(1, "a.png")], [{"image_id": 2, "bbox": [1, 1, 2, 2]}]))
        refused("coco", tmp_path / "2", "annotation 0 is of image 2, not listed")
        write(tmp_path, "2/all.json", coco([(1, "a.png")], [{"image_id": 1}]))
        refused("coco", tmp_path / "2/all.json", "not COCO's JSON .* 'bbox'")
        write(tmp_path, "2/all.json", coco([(1, "a.png"), (2, "a.png")], []))
        refused("coco", tmp_path / "2", "a.png is listed twice")
        write(tmp_path, "2/all.json", "{}")
        refused("coco", tmp_path / "2", "no COCO file", "bad-layout")


TABLE = """\
uri,surface,label,group,split,mask_kind,mask,mask_uri,bit_depth
img/a.png,steel,Good,lot1,train,,,,
img/b.png,steel,NOK,lot2,train,rle,1 5 23 1,,
img/c.png,steel,bad,lot3,val,box,6 5 6 4,,
img/d.png,steel,defect,lot4,test,polygon,6 5 12 5 12 9 6 9;0 0 2 0 2 1 0 1,,
img/e.png,steel,defect,lot5,test,,,masks/e.png,12
img/f.png,wood,,,,,,,
"""


class TestTable:
    def tree(self, root: Path) -> None:
        for name in "abcdef":
            put(root, f"img/{name}.png")
        put(root, "masks/e.png", SPOT)

    def check(self, source: Path) -> None:
        found = ingest("table", str(source))
        samples = found.samples
        assert labels(samples) == {("steel", "benign"): 1, ("steel", "defect"): 4, ("wood", None): 1}
        assert [s.split for s in samples] == ["train", "train", "val", "test", "test", "train"]
        assert [s.group for s in samples] == ["lot1", "lot2", "lot3", "lot4", "lot5", "img/f.png"]
        assert [s.mask_kind for s in samples] == [None, "rle", "box", "polygon", "pixels", None]
        assert mask_of(samples[1]).sum() == 6
        assert np.array_equal(mask_of(samples[2]), SPOT > 0)
        assert mask_of(samples[3]).sum() == (SPOT > 0).sum() + 2
        assert np.array_equal(mask_of(samples[4]), SPOT > 0)
        assert samples[4].bit_depth == 12
        assert {s.surface for s in ADAPTERS["table"](str(source), "wood")} == {"wood"}

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_csv_with_any_separator_and_parquet_are_the_same_table(self, tmp_path: Path, separator: str) -> None:
        self.tree(tmp_path)
        rows = pl.read_csv(TABLE.encode())
        rows.write_csv(tmp_path / "parts.csv", separator=separator, include_bom=True)
        rows.write_parquet(tmp_path / "parts.parquet")
        self.check(tmp_path / "parts.csv")
        self.check(tmp_path / "parts.parquet")

    def test_only_uri_is_needed_and_a_manifest_is_a_table(self, tmp_path: Path) -> None:
        self.tree(tmp_path)
        elsewhere = tmp_path / "lists" / "line4.csv"
        write(tmp_path, "lists/line4.csv", f"uri\n../img/a.png\n{tmp_path}/img/b.png\n")
        samples = ingest("table", str(elsewhere)).samples
        assert labels(samples) == {("line4", None): 2}
        lake.write_manifest(samples_to_table(samples), str(tmp_path / "m.parquet"))
        again = ingest("table", str(tmp_path / "m.parquet")).samples
        assert again == samples

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "uri,weight\nimg/a.png,3",
                "unknown columns weight; the columns are image_id, uri, .*, mask, of which uri",
            ),
            ("label\ngood", "no column uri"),
            ("uri", "no rows"),
            ("uri,label\nimg/a.png,fine", "row 1: label is 'fine'; expected one of benign, good, ok"),
            ("uri,label\nimg/a.png,ok\n,ok", "row 2 has no uri"),
            ("uri\nimg/a.png\nimg/x.png\nimg/y.png", "2 of 3 images are not there, such as .*img/x.png"),
            ("uri\nimg/a.png\nimg/a.png", "1 images stand in several rows"),
            ("uri,split\nimg/a.png,dev", "split is 'dev'"),
            ("uri,split\nimg/a.png,train\nimg/b.png,", "has a split in some of its rows"),
            ("uri,split,group\nimg/a.png,train,7\nimg/b.png,test,7", "group '7' of surface 't' is in 2 splits"),
            ("uri,bit_depth\nimg/a.png,deep", "bit_depth is 'deep'"),
            ("uri,mask_kind\nimg/a.png,circle", "mask_kind is 'circle'"),
            ("uri,mask_kind,mask\nimg/a.png,pixels,1 2", "a code in `mask` with mask_kind 'pixels'"),
            ("uri,mask_kind,mask,mask_uri\nimg/a.png,box,1 1 2 2,m.png", "and no mask_uri"),
            ('uri,label\n"img/a.png,ok', "not a CSV or Parquet table"),
        ],
    )
    def test_what_cannot_be_is_refused_by_row_or_name(self, tmp_path: Path, text: str, message: str) -> None:
        self.tree(tmp_path)
        write(tmp_path, "t.csv", text + "\n")
        refused("table", tmp_path / "t.csv", message)

    def test_a_folder_or_another_file_is_no_table(self, tmp_path: Path) -> None:
        refused("table", tmp_path, "expected a table", "bad-layout")
        write(tmp_path, "t.parquet", "uri\n")
        refused("table", tmp_path / "t.parquet", "not a CSV or Parquet table")

    def test_a_damaged_code_in_a_row_names_table_and_image(self, tmp_path: Path) -> None:
        self.tree(tmp_path)
        write(tmp_path, "t.csv", "uri,label,mask_kind,mask\nimg/a.png,bad,box,1 2 3\n")
        (sample,) = ADAPTERS["table"](str(tmp_path / "t.csv"), None)
        with pytest.raises(DataError, match=r"t.csv#img%2Fa.png: found 1 2 3; expected numbers in groups of x y"):
            load_mask(sample, SHAPE)

    def test_ten_thousand_rows_take_seconds(self, tmp_path: Path) -> None:
        data = bytes(cv2.imencode(".png", GREY)[1])
        (tmp_path / "img").mkdir()
        lines = ["uri,label,group,mask_kind,mask"]
        for k in range(10_000):
            (tmp_path / f"img/{k}.png").write_bytes(data)
            lines.append(f"img/{k}.png,{'bad' if k % 2 else 'good'},lot{k // 10},{'box,6 5 6 4' if k % 2 else ','}")
        write(tmp_path, "parts.csv", "\n".join(lines))
        started = time.process_time()
        samples = ingest("table", str(tmp_path / "parts.csv")).samples
        ingested = time.process_time()
        assert sum(bool(mask_of(sample).any()) for sample in samples) == 5_000
        assert ingested - started < 5
        assert time.process_time() - ingested < 5
