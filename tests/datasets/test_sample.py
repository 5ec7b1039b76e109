"""Samples: table round trip, splits without leaks, masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbdzsl import lake
from sbdzsl.datasets.sample import (
    Sample,
    SplitRow,
    assign_splits,
    group_of,
    load_mask,
    missing_good,
    samples_from_table,
    samples_to_table,
    split_table,
)
from sbdzsl.errors import ConfigError, DataError


def make(surface: str | None, group: str | None, label: str | None, number: int) -> Sample:
    return Sample(f"id{number}", f"/lake/{number}.png", surface=surface, group=group, label=label)  # type: ignore[arg-type]


def parts(surface: str, num_groups: int, num_defective: int, per_group: int = 3) -> list[Sample]:
    """Groups of images; the first `num_defective` groups hold one defect each."""
    return [
        make(surface, f"part{g}", "defect" if g < num_defective and k == 0 else "benign", 1000 * g + k)
        for g in range(num_groups)
        for k in range(per_group)
    ]


some_samples = st.lists(
    st.tuples(
        st.sampled_from(["steel", "leather", None]),
        st.sampled_from([None, *"abcdefgh"]),
        st.sampled_from(["benign", "defect", None]),
    ),
    max_size=60,
).map(lambda rows: [make(*row, number) for number, row in enumerate(rows)])


def test_a_manifest_of_samples_reads_back_as_the_same_samples() -> None:
    samples = [
        make("steel", "p1", "benign", 1),
        replace(make("steel", None, "defect", 2), mask_uri="/m.png", mask_kind="pixels", split="val", bit_depth=12),
        make(None, None, None, 3),
    ]
    table = samples_to_table(samples)
    assert table.schema.equals(lake.MANIFEST_SCHEMA)
    assert samples_from_table(table) == samples


def test_samples_survive_a_manifest_on_disk(tmp_path: Path) -> None:
    samples = assign_splits(parts("steel", 5, 2), seed=0)
    lake.write_manifest(samples_to_table(samples), str(tmp_path / "manifest.parquet"))
    assert samples_from_table(lake.read_manifest(str(tmp_path / "manifest.parquet"))) == samples


@settings(max_examples=150, deadline=None)
@given(some_samples, st.integers(0, 3), st.randoms(use_true_random=False))
def test_splits_keep_groups_whole_and_do_not_depend_on_the_order(samples: list[Sample], seed: int, random) -> None:  # type: ignore[no-untyped-def]
    split = assign_splits(samples, seed)
    assert [replace(s, split=None) for s in split] == samples
    by_group: dict[tuple[str, str], set[str | None]] = {}
    for sample in split:
        by_group.setdefault(group_of(sample), set()).add(sample.split)
    assert all(len(splits) == 1 and splits <= {"train", "val", "test"} for splits in by_group.values())
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert {s.image_id: s.split for s in assign_splits(shuffled, seed)} == {s.image_id: s.split for s in split}


@settings(max_examples=150, deadline=None)
@given(some_samples, st.integers(0, 3))
def test_a_surface_of_three_groups_has_all_three_splits(samples: list[Sample], seed: int) -> None:
    split = assign_splits(samples, seed)
    for surface in {s.surface for s in samples}:
        own = [s for s in split if s.surface == surface]
        num_groups = len({group_of(s) for s in own})
        found = {s.split for s in own}
        assert found == {"train", "val", "test"} if num_groups >= 3 else "train" in found


@settings(max_examples=100, deadline=None)
@given(some_samples, st.integers(2, 4), st.integers(0, 3))
def test_folds_share_out_all_groups_once(samples: list[Sample], folds: int, seed: int) -> None:
    few = min(
        (len({group_of(s) for s in samples if s.surface == name}) for name in {s.surface for s in samples}),
        default=folds,
    )
    if few < folds:
        with pytest.raises(DataError, match="groups for") as caught:
            assign_splits(samples, seed, fold=0, folds=folds)
        assert caught.value.code == "too-few-images"
        return
    tests = [
        {s.image_id for s in assign_splits(samples, seed, fold=k, folds=folds) if s.split == "test"}
        for k in range(folds)
    ]
    assert all(tests) or not samples
    assert sum(len(test) for test in tests) == len(samples)
    assert set().union(*tests) == {s.image_id for s in samples}


def test_every_split_and_fold_gets_its_share_of_the_defects() -> None:
    samples = parts("steel", 50, 10)
    rows = split_table(assign_splits(samples, seed=4))
    assert [(row.split, row.groups, row.defect) for row in rows] == [("train", 30, 6), ("val", 10, 2), ("test", 10, 2)]
    for fold in range(5):
        rows = split_table(assign_splits(samples, seed=4, fold=fold, folds=5))
        assert [(row.split, row.groups, row.defect) for row in rows] == [
            ("train", 32, 6),
            ("val", 8, 2),
            ("test", 10, 2),
        ]


@pytest.mark.parametrize(
    ("num_defective", "expected"), [(1, {"train"}), (2, {"train", "test"}), (3, {"train", "val", "test"})]
)
def test_few_defective_groups_go_to_train_then_test_then_val(num_defective: int, expected: set[str]) -> None:
    split = assign_splits(parts("steel", 20, num_defective), seed=0)
    assert {s.split for s in split if s.label == "defect"} == expected


def test_shares_are_of_images_so_one_large_group_does_not_fill_test() -> None:
    samples = [*parts("steel", 20, 0, per_group=1), *(make("steel", "huge", "benign", 9000 + k) for k in range(30))]
    for seed in range(5):
        rows = {row.split: row for row in split_table(assign_splits(samples, seed))}
        assert rows["test"].benign == 10
        assert rows["val"].benign == 10


def test_surfaces_without_benign_and_without_labels_are_split_too() -> None:
    samples = [make("neu", None, "defect", k) for k in range(10)] + [
        make("kth", None, None, 100 + k) for k in range(10)
    ]
    assert split_table(assign_splits(samples, seed=0)) == [
        SplitRow("kth", "train", 6, 0, 0, 6),
        SplitRow("kth", "val", 2, 0, 0, 2),
        SplitRow("kth", "test", 2, 0, 0, 2),
        SplitRow("neu", "train", 6, 0, 6, 0),
        SplitRow("neu", "val", 2, 0, 2, 0),
        SplitRow("neu", "test", 2, 0, 2, 0),
    ]


@pytest.mark.parametrize(("lots", "said"), [(1, ["val"]), (2, ["val"]), (3, []), (0, [])])
def test_a_surface_whose_lots_are_too_few_is_named(lots: int, said: list[str]) -> None:
    samples = [make("steel", f"lot{k % lots}" if lots else None, "benign", k) for k in range(12)]
    # Neither a surface of defects alone nor one without labels is meant for a detector.
    samples += [make("neu", None, "defect", 100), make("kth", None, None, 101)]
    told = list(missing_good(split_table(assign_splits(samples, seed=0))))
    assert [line.split(",")[0] for line in told] == [f"steel: none of 12 good images is in {split}" for split in said]
    assert not list(missing_good(split_table(samples)))


def test_another_seed_is_another_split() -> None:
    samples = parts("steel", 50, 10)
    assert assign_splits(samples, seed=0) != assign_splits(samples, seed=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"val_share": 0.5, "test_share": 0.5},
        {"val_share": -0.1},
        {"fold": 1},
        {"fold": 3, "folds": 3},
        {"fold": 0, "folds": 1},
    ],
)
def test_shares_and_folds_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"shares|counted from 0|give both"):
        assign_splits(parts("steel", 5, 1), 0, **arguments)  # type: ignore[arg-type]


def masked(path: Path, kind: str = "pixels", label: str = "defect") -> Sample:
    return Sample("a", "/a.png", label=label, mask_uri=str(path), mask_kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "dtype", "suffix"),
    [
        ((0, 127, 128, 255), np.uint8, ".png"),
        ((0, 32767, 32768, 65535), np.uint16, ".png"),
        ((0, 100, 200, 255), np.uint8, ".bmp"),
    ],
)
def test_a_mask_pixel_is_defect_above_half_of_the_scale(
    tmp_path: Path, values: tuple[int, ...], dtype: type, suffix: str
) -> None:
    path = tmp_path / f"mask{suffix}"
    cv2.imwrite(str(path), np.array([values] * 2, dtype))
    found = load_mask(masked(path), (2, 4))
    assert found is not None
    assert found.dtype == np.bool_
    assert found.tolist() == [[False, False, True, True]] * 2


def test_masks_of_0_and_1_are_read_on_their_own_scale(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), np.array([[0, 1, 1]], np.uint8))
    found = load_mask(masked(path), (1, 3))
    assert found is not None
    assert found.tolist() == [[False, True, True]]


def test_a_shrunk_mask_keeps_the_area_of_its_defect(tmp_path: Path) -> None:
    full = np.zeros((64, 64), np.uint8)
    cv2.circle(full, (30, 30), 16, 255, -1)
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), cv2.resize(full, (40, 40), interpolation=cv2.INTER_AREA))
    found = load_mask(masked(path), (40, 40))
    assert found is not None
    assert found.mean() == pytest.approx((full > 0).mean(), rel=0.03)


def test_what_is_not_known_is_none_and_benign_is_empty(tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    cv2.imwrite(str(black), np.zeros((4, 5), np.uint8))
    assert load_mask(masked(black), (4, 5)) is None
    assert load_mask(make("steel", None, "defect", 1), (4, 5)) is None
    assert load_mask(make("steel", None, None, 1), (4, 5)) is None
    for benign in (make("steel", None, "benign", 1), masked(black, label="benign")):
        found = load_mask(benign, (4, 5))
        assert found is not None
        assert found.shape == (4, 5)
        assert not found.any()


def test_masks_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), np.full((4, 5), 255, np.uint8))
    with pytest.raises(DataError, match=r"5x4 px, but .* has 4x5"):
        load_mask(masked(path), (5, 4))
    with pytest.raises(DataError, match="20 defect pixels, but"):
        load_mask(masked(path, label="benign"), (4, 5))
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="unsupported-format") as caught:
        load_mask(masked(path), (4, 5))
    assert caught.value.code == "bad-mask"


BOX = "<annotation><size><width>6</width><height>4</height></size><object><bndbox>{}</bndbox></object></annotation>"
CORNERS = "<xmin>2</xmin><ymin>1</ymin><xmax>4</xmax><ymax>2</ymax>"


def test_boxes_are_filled_with_both_corners_counted_from_1(tmp_path: Path) -> None:
    path = tmp_path / "boxes.xml"
    path.write_text(BOX.format(CORNERS))
    found = load_mask(masked(path, "box"), (4, 6))
    assert found is not None
    assert np.argwhere(found).tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]]
    with pytest.raises(DataError, match="6x4 px"):
        load_mask(masked(path, "box"), (6, 4))


@pytest.mark.parametrize("text", ["<annotation>", "<annotation/>", BOX.format("<xmin>2</xmin>")])
def test_a_damaged_box_file_is_a_bad_mask(tmp_path: Path, text: str) -> None:
    path = tmp_path / "boxes.xml"
    path.write_text(text)
    with pytest.raises(DataError, match="not a Pascal VOC file"):
        load_mask(masked(path, "box"), (4, 6))


def test_run_lengths_go_down_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "runs.txt"
    path.write_text("2 3 8 1")
    found = load_mask(masked(path, "rle"), (3, 4))
    assert found is not None
    assert np.argwhere(found.T).tolist() == [[0, 1], [0, 2], [1, 0], [2, 1]]
    for text in ("2 3 8", "a b", "12 2", "0 1"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"groups of start length|leaves an image"):
            load_mask(masked(path, "rle"), (3, 4))
