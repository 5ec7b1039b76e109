"""Masks of each kind against a slow definition of it; codes in files of many images."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sbdzsl import lake
from sbdzsl.datasets import annotation_files
from sbdzsl.datasets.annotation_files import reference
from sbdzsl.datasets.masks import draw_boxes, draw_polygons, draw_runs, read_mask
from sbdzsl.datasets.sample import Sample, load_mask
from sbdzsl.errors import DataError

SHAPE = (11, 14)

some_masks = hnp.arrays(np.bool_, SHAPE)
coordinates = st.floats(-4, 18, width=16)
boxes = st.tuples(coordinates, coordinates, st.floats(0, 12, width=16), st.floats(0, 12, width=16))


def text(numbers: object) -> str:
    return " ".join(f"{number!r}" for number in np.ravel(numbers).tolist())  # type: ignore[call-overload]


def runs_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """Start (from 1) and length of each run down the columns, pixel by pixel."""
    runs: list[tuple[int, int]] = []
    for place, value in enumerate(mask.T.reshape(-1), 1):
        if value and runs and sum(runs[-1]) == place:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif value:
            runs.append((place, 1))
    return runs


def counts_of(mask: np.ndarray) -> list[int]:
    """COCO's counts: pixels of 0, of 1, of 0, ... down the columns, the first may be 0."""
    counts, current = [0], False
    for value in mask.T.reshape(-1):
        if value != current:
            counts.append(0)
            current = bool(value)
        counts[-1] += 1
    return counts


def is_inside(x: float, y: float, vertices: list[tuple[float, float]]) -> bool:
    """Even-odd rule: a ray to the left crosses an odd number of edges."""
    crossed = 0
    for (x0, y0), (x1, y1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            crossed += 1
    return crossed % 2 == 1


def slow_polygon(vertices: list[tuple[float, float]]) -> np.ndarray:
    return np.array([[is_inside(x + 0.5, y + 0.5, vertices) for x in range(SHAPE[1])] for y in range(SHAPE[0])])


@given(some_masks)
def test_runs_are_the_pixels_they_list(mask: np.ndarray) -> None:
    runs = runs_of(mask)
    if runs:
        assert np.array_equal(draw_runs(text(runs), SHAPE), mask)
    assert np.array_equal(draw_runs({"size": list(SHAPE), "counts": counts_of(mask)}, SHAPE), mask)


def test_compressed_counts_are_those_of_pycocotools() -> None:
    # Encoded by pycocotools 2.0: a corner pixel, a block, a block in the other corner without its last pixel.
    mask = np.zeros((20, 24), np.bool_)
    mask[0, 0] = mask[5:9, 6:12] = mask[15:, 20:] = True
    mask[19, 23] = False
    code = {"size": [20, 24], "counts": "01l33dL000000000Z51eJ0000OB"}
    assert np.array_equal(draw_runs(code, (20, 24)), mask)


@settings(max_examples=300)
@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=7))
def test_a_polygon_holds_the_pixels_whose_centres_are_inside(vertices: list[tuple[float, float]]) -> None:
    expected = slow_polygon(vertices)
    found = draw_polygons(text(vertices), SHAPE)
    if expected.any():
        assert np.array_equal(found, expected)
    assert np.array_equal(found, draw_polygons([np.ravel(vertices).tolist()], SHAPE))


@given(st.lists(boxes, min_size=1, max_size=3))
def test_a_box_holds_the_pixels_whose_centres_are_inside(parts: list[tuple[float, float, float, float]]) -> None:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    each = [(columns >= x) & (columns < x + width) & (rows >= y) & (rows < y + height) for x, y, width, height in parts]
    if all(one.any() for one in each):
        assert np.array_equal(draw_boxes(";".join(map(text, parts)), SHAPE), np.any(each, axis=0))


def test_whole_numbers_bound_a_box_like_a_slice_and_parts_join() -> None:
    expected = np.zeros(SHAPE, np.bool_)
    expected[2:5, 3:9] = expected[7, 12] = True
    assert np.array_equal(draw_boxes("3 2 6 3; 12 7 1 1", SHAPE), expected)
    assert np.array_equal(draw_polygons("3 2 9 2 9 5 3 5; 12 7 13 7 13 8 12 8", SHAPE), expected)


def test_a_hair_crack_does_not_vanish_between_the_centres() -> None:
    found = draw_polygons("2 3.1 10 3.1 10 3.2 2 3.2", SHAPE)
    assert np.argwhere(found).tolist() == [[3, column] for column in range(2, 11)]


@settings(max_examples=60, deadline=None)
@given(some_masks, st.sampled_from([(np.uint8, 1), (np.uint8, 255), (np.uint16, 1), (np.uint16, 65535)]))
def test_pixel_masks_of_any_scale_are_the_same_mask(
    tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray, scale: tuple[type, int]
) -> None:
    path = str(tmp_path_factory.mktemp("masks") / "m.png")
    cv2.imwrite(path, mask.astype(scale[0]) * scale[0](scale[1]))
    assert np.array_equal(read_mask(path, "pixels", SHAPE), mask)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, (24, 28)), st.sampled_from([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
def test_a_soft_mask_is_defect_above_half_of_the_scale(
    tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray, rule: int
) -> None:
    path = str(tmp_path_factory.mktemp("masks") / "m.png")
    soft = cv2.resize(mask.astype(np.uint8) * 255, (17, 13), interpolation=rule)
    cv2.imwrite(path, soft)
    expected = soft > 127 if soft.max() > 1 else soft > 0
    assert np.array_equal(read_mask(path, "pixels", (13, 17)), expected)


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("rle", "1 2 3", "groups of start length"),
        ("rle", "150 9", "leaves an image of 14x11"),
        ("box", "1 2 3", "groups of x y width height"),
        ("box", "1 2 -3 4", "a box of -3x4"),
        ("box", "1 2 3 4;", "groups of x y width height"),
        ("polygon", "1 1 2 2", "a polygon of 2 points"),
        ("polygon", "1 1 2 2 nan 3", "groups of x y"),
        ("polygon", "", "groups of x y"),
    ],
)
def test_a_damaged_code_says_what_was_found_and_expected(tmp_path: Path, kind: str, code: str, message: str) -> None:
    path = tmp_path / "mask.txt"
    path.write_text(code)
    with pytest.raises(DataError, match=message) as caught:
        read_mask(str(path), kind, SHAPE)
    assert caught.value.code == "bad-mask"


@pytest.mark.parametrize(
    "code",
    [
        {"size": [14, 11], "counts": [154]},
        {"size": [11, 14], "counts": [100]},
        {"size": [11, 14], "counts": [-1, 155]},
        {"size": [11, 14], "counts": "o"},
        {"size": [11, 14], "counts": "a b"},
        {"counts": [154]},
    ],
)
def test_damaged_counts_are_refused(tmp_path: Path, code: dict[str, object]) -> None:
    path = tmp_path / "a.json"
    document = {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "segmentation": code}]}
    path.write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        read_mask(reference(str(path), "1"), "rle", SHAPE)
    assert caught.value.code == "bad-mask"


def table(path: Path, rows: int) -> None:
    lines = [f"parts/{k:05}#.png,box,{k % 8} 2 3 4" for k in range(rows)]
    path.write_text("\n".join(["uri,mask_kind,mask", *lines]))


def test_a_file_of_many_masks_is_parsed_once_and_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "line #3, lot 7.csv"
    table(path, 10_000)
    samples = [
        Sample(
            str(k), f"/{k}.png", label="defect", mask_uri=reference(str(path), f"parts/{k:05}#.png"), mask_kind="box"
        )
        for k in range(10_000)
    ]
    with mock.patch.object(lake, "read_bytes", wraps=lake.read_bytes) as read:
        for k, sample in enumerate(samples):
            mask = load_mask(sample, SHAPE)
            assert mask is not None
            assert mask[2:6, k % 8 : k % 8 + 3].all()
            assert mask.sum() == 12
        assert read.call_count == 1
        table(path, 5)
        assert load_mask(samples[4], SHAPE) is not None
        with pytest.raises(DataError, match=r"nothing there is called 'parts/00009#.png'"):
            load_mask(samples[9], SHAPE)
        assert read.call_count == 2


def test_a_hash_in_a_name_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "Größe #3.csv#x"
    path.mkdir()
    target = path / "m #1.png"
    cv2.imwrite(str(target), np.full(SHAPE, 255, np.uint8))
    assert annotation_files.find(str(target)) is None
    assert read_mask(str(target), "pixels", SHAPE).all()


def test_a_mask_of_another_size_than_the_file_states_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    images = [{"id": 7, "file_name": "a.png", "height": 11, "width": 14}]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 7, "bbox": [1, 1, 2, 2]}]}))
    sample = Sample("a", "/a.png", label="defect", mask_uri=reference(str(path), "7"), mask_kind="box")
    assert load_mask(sample, SHAPE) is not None
    with pytest.raises(DataError, match=r"14x11 px, but the image /a.png has 11x14"):
        load_mask(sample, (14, 11))
