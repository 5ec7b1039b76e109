"""The readers of all layouts, on tiny trees of their own and on the shared data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from sbdzsl import image, lake
from sbdzsl.datasets import ADAPTERS, ingest, magnetic_tile
from sbdzsl.datasets.sample import Sample, group_of, load_mask, samples_from_table, samples_to_table, split_table
from sbdzsl.errors import ConfigError, DataError, LakeError

GREY = np.full((20, 24), 90, np.uint8)
SPOT = np.zeros((20, 24), np.uint8)
SPOT[5:9, 6:12] = 255


def put(root: Path, path: str, pixels: np.ndarray = GREY) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), pixels)


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def labels(samples: Sequence[Sample]) -> Counter[tuple[str | None, str | None]]:
    return Counter((sample.surface, sample.label) for sample in samples)


def named(samples: Sequence[Sample], end: str) -> Sample:
    return next(sample for sample in samples if sample.uri.endswith(end))


def dagm_half(root: Path, half: str, num_benign: int, num_defects: int, table: bool = True, first: int = 1) -> None:
    rows = ["1"]
    for k in range(first, first + num_benign + num_defects):
        defective = k < first + num_defects
        put(root, f"{half}/{k:04d}.PNG")
        if defective:
            put(root, f"{half}/Label/{k:04d}_label.PNG", SPOT)
        rows.append(f"{k:04d}\t{int(defective)}\t{k:04d}.PNG\t0\t{f'{k:04d}_label.PNG' if defective else '0'}\t")
    if table:
        write(root, f"{half}/Label/Labels.txt", "\n".join(rows) + "\n")


class TestDagm:
    def test_a_complete_class_keeps_its_official_split(self, tmp_path: Path) -> None:
        dagm_half(tmp_path / "Class3", "Train", 15, 5)
        dagm_half(tmp_path / "Class3", "Test", 20, 4, first=100)
        found = ingest("dagm", str(tmp_path), seed=1)
        samples, notes = found.samples, found.notes
        assert labels(samples) == {("dagm_class3", "benign"): 35, ("dagm_class3", "defect"): 9}
        assert {("/Test/" in sample.uri) == (sample.split == "test") for sample in samples} == {True}
        assert [(row.split, row.benign, row.defect) for row in split_table(samples)] == [
            ("train", 12, 4),
            ("val", 3, 1),
            ("test", 20, 4),
        ]
        assert len(notes) == 1
        assert "official test set" in notes[0]
        defect = named(samples, "Class3/Test/0100.PNG")
        assert defect.mask_kind == "ellipse"
        mask = load_mask(defect, (20, 24))
        assert mask is not None
        assert np.array_equal(mask, SPOT > 0)

    def test_a_fold_or_an_incomplete_train_takes_a_split_of_its_own(self, tmp_path: Path) -> None:
        dagm_half(tmp_path / "Class3", "Train", 15, 5)
        dagm_half(tmp_path / "Class3", "Test", 20, 4, first=100)
        dagm_half(tmp_path / "Class4", "Train", 10, 4)
        dagm_half(tmp_path / "Class4", "Test", 20, 4, first=100)
        found = {name: ingest("dagm", str(tmp_path), name) for name in ("Class3", "Class4")}
        by_surface = {name: {s.split for s in one.samples if "/Test/" in s.uri} for name, one in found.items()}
        assert by_surface == {"Class3": {"test"}, "Class4": {"train", "val", "test"}}
        assert "split of our own" in found["Class4"].notes[0]
        folded = ingest("dagm", str(tmp_path), "class3", fold=0, folds=3)
        assert {s.split for s in folded.samples if "/Train/" in s.uri} == {"train", "val", "test"}
        assert "fold 0 of 3" in folded.notes[0]

    def test_label_files_decide_where_there_is_no_table(self, tmp_path: Path) -> None:
        dagm_half(tmp_path, "Test", 3, 2, table=False)
        (tmp_path / "Test/Label/0001_label.PNG").rename(tmp_path / "Test/Label/0001_LABEL.png")
        samples = ADAPTERS["dagm"](str(tmp_path), "panel")
        assert labels(samples) == {("panel", "benign"): 3, ("panel", "defect"): 2}

    def test_the_source_may_be_one_class_and_any_folder_name_will_do(self, tmp_path: Path) -> None:
        dagm_half(tmp_path / "Brushed_Steel", "Test", 2, 1)
        dagm_half(tmp_path / "Class10", "Test", 2, 1)
        (tmp_path / "lists").mkdir()
        (tmp_path / "lists/Class9.txt").write_text("0001.PNG")
        assert {s.surface for s in ADAPTERS["dagm"](str(tmp_path), None)} == {"brushed_steel", "dagm_class10"}
        assert {s.surface for s in ADAPTERS["dagm"](str(tmp_path / "Brushed_Steel"), None)} == {"brushed_steel"}
        assert {s.surface for s in ADAPTERS["dagm"](str(tmp_path), "DAGM_Class10")} == {"DAGM_Class10"}
        with pytest.raises(DataError, match="found brushed_steel, dagm_class10"):
            ADAPTERS["dagm"](str(tmp_path), "leather")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda root: (root / "Label/0001_label.PNG").unlink(), "0001.PNG as defective, but its label file"),
            (lambda root: put(root, "Label/0003_label.PNG", SPOT), "0003.PNG as benign, but a label file"),
            (lambda root: put(root, "0009.PNG"), "does not list 0009.PNG"),
            (lambda root: (root / "0003.PNG").unlink(), "lists 0003.PNG, which is not in"),
            (lambda root: put(root, "Label/0009_label.PNG", SPOT), "0009_LABEL is the label of no image"),
            (lambda root: write(root, "Label/Labels.txt", "1\n0001 1 0001.PNG\n"), "line 2 is '0001 1 0001.PNG'"),
            (lambda root: write(root, "Label/Labels.txt", "1\n0001\tx\t0001.PNG\n"), "line 2: defective is 'x'"),
        ],
    )
    def test_contradictions_name_the_file(self, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
        dagm_half(tmp_path, "Test", 3, 2)
        damage(tmp_path / "Test")
        with pytest.raises(DataError, match=message) as caught:
            ADAPTERS["dagm"](str(tmp_path), None)
        assert caught.value.code == "bad-manifest"


class TestKolektor:
    def test_any_value_above_0_is_a_defect_and_the_item_is_the_group(self, tmp_path: Path) -> None:
        for item, part, mask in (
            ("kos01", 0, SPOT),
            ("kos01", 1, SPOT * 0),
            ("kos14", 0, SPOT // 255),
            ("kos15", 0, SPOT * 0),
        ):
            put(tmp_path, f"{item}/Part{part}.jpg")
            put(tmp_path, f"{item}/Part{part}_label.bmp", mask)
        samples = ADAPTERS["kolektorsdd"](str(tmp_path), None)
        assert [(s.uri[-15:], s.label, s.group) for s in samples] == [
            ("kos01/Part0.jpg", "defect", "kos01"),
            ("kos01/Part1.jpg", "benign", "kos01"),
            ("kos14/Part0.jpg", "defect", "kos14"),
            ("kos15/Part0.jpg", "benign", "kos15"),
        ]
        for sample in samples:
            mask = load_mask(sample, (20, 24))
            assert mask is not None
            assert mask.any() == (sample.label == "defect")
        write(tmp_path, "index.csv", "item,part\n")
        rebuilt = ADAPTERS["kolektorsdd"](str(tmp_path), "commutator")
        assert {s.group for s in rebuilt} == {"kos01", "kos14+kos15"}
        assert {s.surface for s in rebuilt} == {"commutator"}

    def test_an_image_without_mask_is_named(self, tmp_path: Path) -> None:
        put(tmp_path, "kos01/Part0.jpg")
        with pytest.raises(DataError, match=r"kos01/Part0.jpg has no Part0_label.bmp"):
            ADAPTERS["kolektorsdd"](str(tmp_path), None)


class TestMagneticTile:
    def tree(self, root: Path) -> None:
        for kind, name, mask in (
            ("Free", "exp1_num_100", SPOT * 0),
            ("Free", "exp2_num_299", SPOT * 0),
            ("Uneven", "exp1_num_499", SPOT * 0),
            ("Crack", "exp3_num_90", SPOT),
        ):
            put(root, f"MT_{kind}/Imgs/{name}.jpg")
            put(root, f"MT_{kind}/Imgs/{name}.png", mask)

    def test_the_folder_decides_the_label_and_the_frame_the_group(self, tmp_path: Path) -> None:
        self.tree(tmp_path)
        samples = ADAPTERS["magnetic_tile"](str(tmp_path), None)
        assert labels(samples) == {("magnetic_tile", "benign"): 2, ("magnetic_tile", "defect"): 2}
        assert {s.uri[-7:-4]: s.group for s in samples} == {"_90": "0", "100": "0", "299": "0", "499": "1"}
        assert load_mask(named(samples, "num_499.jpg"), (20, 24)) is None
        assert load_mask(named(samples, "num_90.jpg"), (20, 24)) is not None

    def test_an_index_gives_the_groups(self, tmp_path: Path) -> None:
        self.tree(tmp_path)
        rows = [
            "class,image,group",
            "MT_Free,exp1_num_100.jpg,7",
            "MT_Free,exp2_num_299.jpg,8",
            "MT_Uneven,exp1_num_499.jpg,8",
        ]
        write(tmp_path, "index.csv", "\n".join([*rows, "MT_Crack,exp3_num_90.jpg,9"]))
        samples = ADAPTERS["magnetic_tile"](str(tmp_path), None)
        assert {s.uri[-7:-4]: s.group for s in samples} == {"_90": "9", "100": "7", "299": "8", "499": "8"}
        write(tmp_path, "index.csv", "\n".join(rows))
        with pytest.raises(DataError, match=r"no group for MT_Crack/Imgs/exp3_num_90.jpg"):
            ADAPTERS["magnetic_tile"](str(tmp_path), None)


class TestNeu:
    def test_all_images_are_defective_with_boxes(self, tmp_path: Path) -> None:
        put(tmp_path, "IMAGES/crazing_1.jpg")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax></bndbox>"
        size = "<size><width>24</width><height>20</height></size>"
        write(tmp_path, "ANNOTATIONS/crazing_1.xml", f"<annotation>{size}<object>{box}</object></annotation>")
        (sample,) = ADAPTERS["neu"](str(tmp_path), None)
        assert (sample.surface, sample.label, sample.mask_kind) == ("neu", "defect", "box")
        mask = load_mask(sample, (20, 24))
        assert mask is not None
        assert mask.sum() == 6
        put(tmp_path, "IMAGES/crazing_2.jpg")
        with pytest.raises(DataError, match=r"crazing_2.jpg has no ANNOTATIONS/crazing_2.xml"):
            ADAPTERS["neu"](str(tmp_path), None)


class TestFolder:
    def test_labels_masks_and_lots(self, tmp_path: Path) -> None:
        for path in (
            "steel/good/lot1/a.png",
            "steel/good/lot2/a.png",
            "steel/NOK/lot1/b.jpg",
            "steel/NOK/c.png",
            "wood/x.bmp",
        ):
            put(tmp_path, path)
        for path in ("steel/masks/lot1/b.png", "steel/NOK/c_mask.png"):
            put(tmp_path, path, SPOT)
        write(tmp_path, "steel/notes.txt", "no image")
        write(tmp_path, "wood/.hidden.png", "")
        samples = ADAPTERS["folder"](str(tmp_path), None)
        assert [(s.uri.removeprefix(lake.absolute_url(str(tmp_path))), s.label, s.group) for s in samples] == [
            ("/steel/NOK/c.png", "defect", None),
            ("/steel/NOK/lot1/b.jpg", "defect", "lot1"),
            ("/steel/good/lot1/a.png", "benign", "lot1"),
            ("/steel/good/lot2/a.png", "benign", "lot2"),
            ("/wood/x.bmp", None, None),
        ]
        assert labels(samples) == {("steel", "defect"): 2, ("steel", "benign"): 2, ("wood", None): 1}
        for end in ("c.png", "b.jpg"):
            mask = load_mask(named(samples, end), (20, 24))
            assert mask is not None
            assert np.array_equal(mask, SPOT > 0)

    @pytest.mark.parametrize("paths", [("a.png", "b.png"), ("benign/a.png", "defect/b.png")])
    def test_the_source_may_be_one_surface(self, tmp_path: Path, paths: tuple[str, ...]) -> None:
        for path in paths:
            put(tmp_path / "Line 4", path)
        assert {s.surface for s in ADAPTERS["folder"](str(tmp_path / "Line 4"), None)} == {"Line 4"}
        assert {s.surface for s in ADAPTERS["folder"](str(tmp_path / "Line 4"), "steel")} == {"steel"}

    def test_one_of_several_surfaces_can_be_named_in_any_case(self, tmp_path: Path) -> None:
        for path in ("Steel/a.png", "Wood/b.png"):
            put(tmp_path, path)
        assert labels(ADAPTERS["folder"](str(tmp_path), "steel")) == {("steel", None): 1}
        with pytest.raises(DataError, match="0 surfaces match 'cork'; found Steel, Wood"):
            ADAPTERS["folder"](str(tmp_path), "cork")

    def test_a_name_that_ends_like_a_mask_is_an_image_where_no_image_is_beside_it(self, tmp_path: Path) -> None:
        put(tmp_path, "steel/benign/face_mask.png")
        assert labels(ADAPTERS["folder"](str(tmp_path), None)) == {("steel", "benign"): 1}

    @pytest.mark.parametrize(
        ("paths", "code", "message"),
        [
            (("readme.txt",), "bad-layout", "no images"),
            (("a.png", "steel/b.png"), "bad-layout", "and folders of surfaces too"),
            (("bottle/test/good/a.png",), "bad-layout", "two levels or more down"),
            (("steel/a.png", "steel/masks/a.png"), "bad-layout", "no image there has a label"),
            (("steel/bad/a.png", "steel/masks/b.png"), "bad-mask", "masks/b.png belongs to 0 images"),
            (("s/bad/1/a.png", "s/bad/2/a.png", "s/masks/a.png"), "bad-mask", "masks/a.png belongs to 0 images"),
            (("s/bad/a.png", "s/bad/a.jpg", "s/masks/a.png"), "bad-mask", "masks/a.png belongs to 2 images"),
            (("s/bad/a.png", "s/bad/a_mask.png", "s/masks/a.png"), "bad-mask", "belongs to 1 images"),
        ],
    )
    def test_what_cannot_be_read_says_what_was_found_and_expected(
        self, tmp_path: Path, paths: tuple[str, ...], code: str, message: str
    ) -> None:
        for path in paths:
            put(tmp_path, path) if path.endswith(("png", "jpg")) else write(tmp_path, path, "text")
        with pytest.raises(DataError, match=message) as caught:
            ADAPTERS["folder"](str(tmp_path), None)
        assert caught.value.code == code
        if code == "bad-layout":
            assert "<surface>/benign/*.png" in caught.value.message


@pytest.mark.parametrize("adapter", ["dagm", "kolektorsdd", "magnetic_tile", "neu"])
def test_a_tree_of_another_layout_is_shown_beside_the_expected_one(tmp_path: Path, adapter: str) -> None:
    put(tmp_path, "other/a.png")
    with pytest.raises(DataError, match=r"found:\n  other/a.png\nexpected:\n  ") as caught:
        ADAPTERS[adapter](str(tmp_path), None)
    assert caught.value.code == "bad-layout"


def test_ingest_refuses_an_unknown_layout_and_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown layout 'mvtec'; expected one of dagm, kolektorsdd"):
        ingest("mvtec", str(tmp_path))
    with pytest.raises(LakeError):
        ingest("folder", str(tmp_path / "nowhere"))
    put(tmp_path, "one.png")
    with pytest.raises(DataError, match="is a file; expected a folder"):
        ingest("folder", str(tmp_path / "one.png"))


@pytest.mark.parametrize("name", ["100%20 sure", "Größe #3"])
def test_names_that_a_url_would_have_to_escape_are_read(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name}/defect/a b.png")
    put(tmp_path, f"{name}/masks/a b.png", SPOT)
    (sample,) = ingest("folder", str(tmp_path))
    assert sample.surface == name
    assert load_mask(sample, (20, 24)) is not None


def test_a_source_may_be_any_store() -> None:
    data = bytes(cv2.imencode(".png", GREY)[1])
    for path in ("steel/good/a.png", "steel/bad/b.png", "steel/bad/b_mask.png"):
        lake.write_bytes(f"memory://adapters/{path}", data)
    samples = ingest("folder", "memory://adapters")
    assert labels(samples) == {("steel", "benign"): 1, ("steel", "defect"): 1}
    assert samples[0].mask_uri == "memory://adapters/steel/bad/b_mask.png"


# Counts of the README files of the shared data.
SHARED = {
    "dagm": (
        "DAGM2007",
        {
            ("dagm_class1", "benign"): 68,
            ("dagm_class1", "defect"): 57,
            ("dagm_class2", "benign"): 2,
            ("dagm_class2", "defect"): 3,
        },
    ),
    "kolektorsdd": ("KolektorSDD", {("kolektorsdd", "benign"): 333, ("kolektorsdd", "defect"): 50}),
    "magnetic_tile": ("MagneticTile", {("magnetic_tile", "benign"): 630, ("magnetic_tile", "defect"): 392}),
    "neu": ("NEU-DET", {("neu", "defect"): 240}),
}


def shared(name: str) -> Path:
    folder = Path(os.environ.get("SBDZSL_SHARED", "../shared")) / "data" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set SBDZSL_SHARED to the folder that holds data/{name}")
    return folder


@pytest.mark.shared
@pytest.mark.parametrize("adapter", SHARED)
def test_shared_data_is_read_whole_and_split_without_leaks(adapter: str) -> None:
    name, expected = SHARED[adapter]
    samples = ingest(adapter, str(shared(name))).samples
    assert labels(samples) == expected
    assert len({sample.image_id for sample in samples}) == len(samples)
    splits = {group_of(sample): set() for sample in samples}
    for sample in samples:
        splits[group_of(sample)].add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    for row in split_table(samples):
        assert row.defect > 0
    assert samples_from_table(samples_to_table(samples)) == samples


@pytest.mark.shared
@pytest.mark.parametrize(("name", "num_surfaces", "num_images"), [("KTH-TIPS", 7, 567), ("Leather27", 14, 560)])
def test_shared_materials_are_surfaces_without_labels(name: str, num_surfaces: int, num_images: int) -> None:
    samples = ingest("folder", str(shared(name))).samples
    assert len(samples) == num_images
    assert len({sample.surface for sample in samples}) == num_surfaces
    assert {sample.label for sample in samples} == {None}
    assert {row.split for row in split_table(samples)} == {"train", "val", "test"}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("adapter", "num_without_mask"), [("dagm", 0), ("kolektorsdd", 0), ("magnetic_tile", 4), ("neu", 0)]
)
def test_shared_masks_fit_their_images(adapter: str, num_without_mask: int) -> None:
    defects = [s for s in ADAPTERS[adapter](str(shared(SHARED[adapter][0])), None) if s.label == "defect"]
    empty = 0
    for sample in defects:
        decoded = image.decode(lake.read_bytes(sample.uri))
        empty += load_mask(sample, (decoded.height, decoded.width)) is None
    assert empty == num_without_mask


@pytest.mark.shared
def test_rebuilt_frame_groups_of_the_part_never_join_what_the_whole_set_keeps_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shared("MagneticTile")
    listed = {s.image_id: s.group for s in ADAPTERS["magnetic_tile"](str(folder), None)}
    monkeypatch.setattr(magnetic_tile, "read_index", lambda entries: None)
    rebuilt = {s.image_id: s.group for s in ADAPTERS["magnetic_tile"](str(folder), None)}
    assert len({(rebuilt[key], listed[key]) for key in rebuilt}) == len(set(rebuilt.values()))
    assert len(set(rebuilt.values())) > 50
