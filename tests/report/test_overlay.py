"""Overlays: grey where nothing is wrong, hot at the right place, the same bytes each time."""

from __future__ import annotations

import io
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sbdzsl.report.overlay import FULL_SCALE_LOGITS, PALETTE, draw_overlay, encode_png, encode_thumbnail, heat_colours
from sbdzsl.verdict import Region


def _grey(height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((height, width), dtype=np.float32)


def _coloured(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.ptp(rgb.astype(np.int16), axis=2) > 0


def _draw(grey: NDArray[np.float32], heat: NDArray[np.float32] | None, **changes: object) -> NDArray[np.uint8]:
    values: dict[str, object] = {"map_threshold": 0.5, "regions": (), "verdict": "defect", "caption": "a part"}
    return draw_overlay(grey, heat, **(values | changes))  # type: ignore[arg-type]


def test_a_good_image_has_no_coloured_pixel() -> None:
    grey = _grey(200, 200)
    # Close below the threshold: a scale stretched to this image would make it glow.
    heat = np.linspace(-8, 0.5, grey.size, dtype=np.float32).reshape(grey.shape)
    picture = _draw(grey, heat, verdict="good")[:200, :200]
    assert not _coloured(picture).any()
    np.testing.assert_array_equal(picture[..., 0], np.rint(grey * 255))


@pytest.mark.parametrize(("height", "width"), [(200, 200), (1250, 500), (90, 60)])
@pytest.mark.parametrize("rows", [slice(0, 8), slice(-8, None)])
@pytest.mark.parametrize("columns", [slice(0, 6), slice(-6, None)])
def test_a_hot_spot_appears_in_its_corner_and_nowhere_else(
    height: int, width: int, rows: slice, columns: slice
) -> None:
    heat = np.full((height, width), -4, np.float32)
    heat[rows, columns] = 4
    picture = _draw(_grey(height, width), heat)[:height, :width]
    np.testing.assert_array_equal(_coloured(picture), heat > 0.5)


def test_the_scale_is_fixed_and_high_is_hot() -> None:
    grey = np.full((4, 9), 0.5, np.float32)
    heat = np.broadcast_to(np.linspace(0.6, 9, 9, dtype=np.float32), grey.shape)
    alone, beside = _draw(grey, heat)[0, 2], _draw(grey, np.where(heat > 5, -1, heat).astype(np.float32))[0, 2]
    np.testing.assert_array_equal(alone, beside)
    green = heat_colours(np.linspace(0, FULL_SCALE_LOGITS, 20, dtype=np.float32))[:, 1].astype(int)
    assert all(cooler > hotter for cooler, hotter in pairwise(green))
    ends = heat_colours(np.array([-1, FULL_SCALE_LOGITS + 5], np.float32))
    expected = np.rint(matplotlib.colormaps[PALETTE]([0.0, 1.0])[:, :3] * 255)
    np.testing.assert_array_equal(ends, expected)


def test_a_box_frames_its_region_and_covers_none_of_it() -> None:
    region = Region(x=30, y=40, width=20, height=10, area_px=150, score=3.0)
    grey = np.full((100, 120), 0.5, np.float32)
    picture = _draw(grey, None, regions=[region])[:100, :120, 0]
    assert (picture[40:50, 30:50] == 128).all()
    assert (picture[39, 29:51] == 255).all()
    assert (picture[40:50, 50] == 255).all()
    assert (picture[38, 28:52] == 0).all()


def test_a_region_at_the_border_stays_inside_the_picture() -> None:
    region = Region(x=0, y=0, width=120, height=100, area_px=12_000, score=3.0)
    picture = _draw(np.full((100, 120), 0.5, np.float32), None, regions=[region])[:100, :120]
    assert (picture == 128).all()


def test_the_words_stand_below_and_fit_the_width() -> None:
    long = "s3://lake/" + "very_long_name_" * 30
    for height, width in ((200, 200), (1250, 500), (50, 30)):
        grey = _grey(height, width)
        plain, worded = _draw(grey, grey, caption=""), _draw(grey, grey, caption=long)
        assert plain.shape[1] == worded.shape[1] == max(width, 200)
        assert worded.shape[0] > plain.shape[0] > height
        # Nothing is cut off at the right: the last columns of the strip are empty but for the legend's margin.
        assert np.ptp(worded[height:, -2:]) == 0


def test_the_verdict_is_told_by_word_and_shape() -> None:
    grey = _grey(60, 200)
    strips = {verdict: _draw(grey, None, verdict=verdict)[60:] for verdict in ("good", "defect", "unseen")}
    assert not _coloured(strips["good"]).any()
    shapes = {verdict: strip.max(axis=2).tobytes() for verdict, strip in strips.items()}
    assert len(set(shapes.values())) == 3


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="source pixels"):
        _draw(_grey(20, 20), _grey(10, 10))


def test_same_image_same_bytes_and_png_loses_nothing() -> None:
    grey = _grey(80, 240)
    first, second = (_draw(grey, grey * 9, regions=[Region(3, 4, 9, 9, 50, 2.0)]) for _ in range(2))
    assert encode_png(first) == encode_png(second)
    assert encode_thumbnail(first) == encode_thumbnail(second)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(first)))), first)


@pytest.mark.parametrize(
    ("shape", "size"), [((1000, 2000), (480, 240)), ((2000, 500), (240, 960)), ((50, 60), (60, 50))]
)
def test_a_thumbnail_fits_and_is_never_enlarged(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(encode_thumbnail(np.zeros((*shape, 3), np.uint8))))
    assert (image.format, image.size) == ("JPEG", size)
