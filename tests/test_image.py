import contextlib
import io
import subprocess
import sys
import threading
import time
import tracemalloc

import cv2
import hostile_images
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PilImage
from PIL import ImageOps

from sbdzsl import image as image_module
from sbdzsl.config import ImageSettings
from sbdzsl.errors import ImageError
from sbdzsl.image import decode
from tests import hostile

FILES = hostile.draw()
# Pillow cuts 16-bit RGB to 8 bits and refuses long texts.
PILLOW_CANNOT = {"16-bit-rgb.png", "16-bit-rgb.tif", "5-megabytes-of-text.png"}
READABLE = [(name, data) for name, data, expected in FILES if expected[0] == "ok" and name not in PILLOW_CANNOT]
ANY_SIZE = ImageSettings(min_side_px=1)

shapes = st.tuples(st.integers(1, 33), st.integers(1, 33))


def code_of(data: bytes, options: ImageSettings = ImageSettings(), bit_depth: int | None = None) -> tuple[str, str]:  # noqa: B008
    with pytest.raises(ImageError) as caught:
        decode(data, options, bit_depth)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(("name", "data", "expected"), FILES, ids=[name for name, _, _ in FILES])
def test_hostile_file(name, data, expected):
    if isinstance(expected, str):
        code, message = code_of(data)
        assert code == expected
        assert message
    else:
        image = decode(data)
        assert ("ok", image.height, image.width) == expected
        assert image.grey().shape == expected[1:]


def test_a_mutated_file_is_an_image_or_an_image_error():
    # One of these is a TIFF whose second page is damaged: counting its pages fails.
    for _, data in hostile_images.mutated(400, 1, size=64):
        with contextlib.suppress(ImageError):
            decode(data).grey()


def test_a_damaged_page_after_the_first_is_an_image_error():
    good = hostile.saved(hostile.texture(), "TIFF")
    start = int.from_bytes(good[4:8], "little")
    entries = int.from_bytes(good[start : start + 2], "little")
    link = start + 2 + 12 * entries
    # The second directory holds one tag, which is not the width.
    second = b"\1\0" + (257).to_bytes(2, "little") + b"\4\0\1\0\0\0\x30\0\0\0" + bytes(4)
    two = good[:link] + len(good).to_bytes(4, "little") + good[link + 4 :] + second
    code, message = code_of(two)
    assert code == "unreadable"
    assert "page after the first" in message


def test_hostile_files_are_written_and_the_same_each_time(tmp_path):
    again = hostile.draw(tmp_path)
    assert [name for name, _, _ in again] == sorted({n for n, _, _ in FILES}, key=[n for n, _, _ in FILES].index)
    assert again == FILES
    assert all((tmp_path / name).read_bytes() == data for name, data, _ in again)


@pytest.mark.parametrize(("name", "data"), READABLE, ids=[name for name, _ in READABLE])
def test_pixels_agree_with_a_second_decoder(name, data):
    ours = decode(data).pixels
    with PilImage.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode == "F" or upright.mode.startswith("I;16"):
            theirs = np.asarray(upright)
        elif upright.mode == "RGBA":
            theirs = np.asarray(upright)[..., :3]
        else:
            theirs = np.asarray(upright.convert("RGB" if ours.ndim == 3 else "L"))
    assert ours.shape == theirs.shape
    tolerance = 2 if name.endswith(".jpg") else 0
    assert np.abs(ours.astype(np.float64) - theirs).max() <= tolerance


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint16, shapes), st.sampled_from([".png", ".tiff"]))
def test_16_bit_grey_is_exact(pixels, suffix):
    image = decode(hostile.encoded(pixels, suffix), ANY_SIZE)
    assert image.pixels.dtype == np.uint16
    assert np.array_equal(image.pixels, pixels)
    assert (image.white, image.bit_depth) == (65535.0, 16)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([np.uint8, np.uint16]), shapes, st.integers(0, 2**32 - 1), st.sampled_from([".png", ".tiff"]))
def test_rgb_is_exact_and_in_order(dtype, shape, seed, suffix):
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (*shape, 3), dtype, endpoint=True)
    image = decode(hostile.encoded(pixels, suffix), ANY_SIZE)
    assert image.pixels.dtype == dtype
    assert np.array_equal(image.pixels, pixels)


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, shapes), st.sampled_from(["PNG", "BMP", "TIFF"]))
def test_8_bit_grey_is_exact(pixels, kind):
    image = decode(hostile.saved(pixels, kind), ANY_SIZE)
    assert image.format == kind.lower()
    assert np.array_equal(image.pixels, pixels)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, shapes, elements=st.floats(0, 1, width=32)))
def test_float_is_exact(pixels):
    image = decode(hostile.encoded(pixels, ".tiff"), ANY_SIZE)
    assert np.array_equal(image.pixels, pixels)
    assert (image.white, image.bit_depth) == (1.0, 32)
    assert np.array_equal(image.grey(), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_orientation_of_deep_images(orientation, dtype):
    pixels = hostile.texture(dtype)
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    upright = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], pixels.T, np.rot90(pixels, -1)]
    upright += [pixels[::-1, ::-1].T, np.rot90(pixels)]
    for kind in ("PNG", "TIFF") if dtype == np.uint16 else ("TIFF",):
        data = hostile.saved(pixels, kind, exif=exif)
        assert np.array_equal(decode(data).pixels, upright[orientation - 1])


def packed_tiff(bits):
    stored = hostile.texture(np.uint16) >> (16 - bits)
    row_bits = np.unpackbits(stored.astype(">u2").view(np.uint8).reshape(*stored.shape, 2), axis=-1)[..., 16 - bits :]
    return hostile.tiff(np.packbits(row_bits.reshape(len(stored), -1), axis=1).tobytes(), bits), stored


def test_packed_12_bit_samples_come_as_stored():
    data, stored = packed_tiff(12)
    image = decode(data)
    assert np.array_equal(image.pixels, stored)
    assert (image.white, image.bit_depth) == (4095, 12)
    assert code_of(data, bit_depth=16)[0] == "depth-mismatch"


@pytest.mark.parametrize("bits", [10, 14])
def test_other_packed_samples_are_refused(bits):
    code, message = code_of(packed_tiff(bits)[0])
    assert code == "unsupported-format"
    assert "packed" in message


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_whose_zero_is_white(dtype):
    stored = hostile.texture(dtype)
    bits = stored.itemsize * 8
    data = hostile.tiff(stored.tobytes(), bits, photometric=0, kind=3 if bits == 32 else 1)
    top = 1 if bits == 32 else np.iinfo(dtype).max
    assert np.array_equal(decode(data).pixels, (top - stored).astype(dtype))


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_dropped_and_the_colour_kept(dtype, extra):
    stored = hostile.texture(dtype, 4)
    data = hostile.tiff(stored.tobytes(), stored.itemsize * 8, 4, photometric=2, extra=extra)
    assert np.array_equal(decode(data).pixels, stored[..., :3])


def test_grey_with_alpha_is_grey():
    stored = hostile.texture(np.uint8, 2)
    assert np.array_equal(decode(hostile.saved(PilImage.fromarray(stored, "LA"), "PNG")).pixels, stored[..., 0])


def test_lab_tiff_is_refused():
    picture = PilImage.fromarray(hostile.texture(channels=3)).convert("LAB")
    code, message = code_of(hostile.saved(picture, "TIFF"))
    assert code == "unsupported-format"
    assert "LAB" in message


def test_several_frames_are_counted_in_the_message():
    by_name = {name: data for name, data, _ in FILES}
    for name, frames in {"animated.png": 2, "animated.webp": 3, "three-pages.tif": 3}.items():
        assert f"{frames} frames" in code_of(by_name[name])[1]


def test_big_and_big_endian_tiff():
    data = hostile.saved(hostile.texture(), "TIFF", big_tiff=True)
    assert data[:4] == b"II+\0"
    assert np.array_equal(decode(data).pixels, hostile.texture())
    stored = hostile.texture(np.uint16)
    data = hostile.saved(PilImage.frombytes("I;16B", stored.shape[::-1], stored.astype(">u2").tobytes()), "TIFF")
    assert data[:2] == b"MM"
    assert np.array_equal(decode(data).pixels, stored)


class TestDepth:
    twelve = hostile.texture(np.uint16) >> 4
    data = hostile.encoded(twelve, ".png")

    def test_the_argument_wins_over_the_settings(self):
        assert decode(self.data, ImageSettings(bit_depth=16)).white == 65535
        image = decode(self.data, ImageSettings(bit_depth=16), bit_depth=12)
        assert (image.white, image.bit_depth) == (4095, 12)
        np.testing.assert_allclose(image.grey(), self.twelve / 4095, rtol=1e-6)

    def test_a_value_above_the_declared_depth_is_never_clipped(self):
        just_fits, too_high = self.twelve.copy(), self.twelve.copy()
        just_fits[3, 4], too_high[3, 4] = 4095, 4096
        assert decode(hostile.encoded(just_fits, ".png"), bit_depth=12).grey().max() == 1
        code, message = code_of(hostile.encoded(too_high, ".png"), bit_depth=12)
        assert code == "depth-mismatch"
        assert "4096" in message
        assert "4095" in message

    def test_left_aligned_samples_are_recognised(self):
        code, message = code_of(hostile.encoded(self.twelve << 4, ".png"), bit_depth=12)
        assert code == "depth-mismatch"
        assert "left-aligned" in message

    @pytest.mark.parametrize("depth", [7, 17, 32])
    def test_an_impossible_depth_is_a_row_not_a_crash(self, depth):
        assert code_of(self.data, bit_depth=depth)[0] == "depth-mismatch"

    def test_an_8_bit_file_is_8_bits_whatever_is_declared(self):
        image = decode(hostile.saved(hostile.texture(), "PNG"), ImageSettings(bit_depth=12), bit_depth=10)
        assert (image.white, image.bit_depth) == (255, 8)

    def test_the_percentile_counts_only_where_no_depth_is_declared(self):
        options = ImageSettings(white_percentile=99)
        white = decode(self.data, options).white
        assert np.mean(self.twelve <= white) >= 0.99
        assert np.mean(self.twelve < white) < 0.99
        assert decode(self.data, options, bit_depth=12).white == 4095
        assert decode(hostile.saved(hostile.texture(), "PNG"), options).white == 255
        assert decode(hostile.encoded(np.zeros((20, 20), np.uint16), ".png"), options).white == 1

    def test_float_outside_0_to_1_needs_a_percentile(self):
        data = hostile.encoded(hostile.texture(np.float32) * 300, ".tiff")
        assert code_of(data)[0] == "depth-mismatch"
        assert decode(data, ImageSettings(white_percentile=100)).grey().max() == 1
        black = hostile.encoded(np.zeros((20, 20), np.float32), ".tiff")
        assert code_of(black, ImageSettings(white_percentile=100))[0] == "depth-mismatch"

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_float_that_is_not_finite_is_unreadable_under_any_settings(self, value):
        data = hostile.encoded(np.full((20, 20), value, np.float32), ".tiff")
        assert code_of(data, ImageSettings(white_percentile=99))[0] == "unreadable"


class TestGrey:
    def test_luma_is_bt_601(self):
        pixels = hostile.texture(channels=3)
        luma = decode(hostile.encoded(pixels, ".png")).grey()
        assert luma.dtype == np.float32
        np.testing.assert_allclose(luma, pixels @ [0.299, 0.587, 0.114] / 255, atol=1e-6)

    def test_white_is_one_and_black_is_zero(self):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[:8] = 255
        assert set(np.unique(decode(hostile.encoded(pixels, ".png")).grey())) == {0.0, 1.0}

    def test_above_white_is_not_clipped(self):
        pixels = hostile.texture(np.uint16)
        image = decode(hostile.encoded(pixels, ".png"), ImageSettings(white_percentile=60))
        assert image.grey().max() == np.float32(pixels.max()) / np.float32(image.white) > 1


class TestLimits:
    def test_each_limit_names_itself(self):
        data = hostile.saved(hostile.texture(), "PNG")
        assert decode(data, ImageSettings(max_bytes=len(data), max_side_px=72, max_pixels=48 * 72, min_side_px=48))
        for limit, value, code in [
            ("max_bytes", len(data) - 1, "too-large"),
            ("max_side_px", 71, "too-large"),
            ("max_pixels", 48 * 72 - 1, "too-large"),
            ("min_side_px", 49, "too-small"),
        ]:
            found, message = code_of(data, ImageSettings(**{limit: value}))
            assert found == code
            assert limit in message

    @pytest.mark.parametrize("name", [n for n, _, e in FILES if e == "too-large"])
    def test_a_claim_of_a_huge_size_is_refused_from_the_header(self, name, monkeypatch):
        monkeypatch.setattr(image_module.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
        data = {n: d for n, d, _ in FILES}[name]
        tracemalloc.start()
        started = time.perf_counter()
        code_of(data)
        seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000
        assert seconds < 0.05

    def test_a_chain_of_hostile_pages_ends(self):
        directory = (256).to_bytes(2, "little") + bytes(256 * 12)
        pages = b"".join(directory + (8 + (i + 1) * 3078).to_bytes(4, "little") for i in range(3000))
        started = time.perf_counter()
        code_of(b"II*\0" + (8).to_bytes(4, "little") + pages + bytes(3078))
        assert time.perf_counter() - started < 2

    def test_a_tiff_whose_pages_form_a_ring_ends(self):
        data = bytearray(hostile.tiff(hostile.texture().tobytes(), 8))
        data[-4:] = data[4:8]
        assert decode(bytes(data)).height == hostile.HEIGHT


GOOD = [data for name, data, expected in FILES if expected == hostile.OK and "orientation" not in name]


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_damage_gives_an_image_or_an_image_error(good, draw):
    damaged = bytearray(good)
    for _ in range(draw.draw(st.integers(1, 4))):
        # Half of the damage goes where the headers are.
        end = draw.draw(st.sampled_from([min(64, len(good)), len(good)]))
        damaged[draw.draw(st.integers(0, end - 1))] = draw.draw(st.integers(0, 255))
    try:
        image = decode(bytes(damaged), ImageSettings(max_pixels=1_000_000))
    except ImageError:
        return
    assert np.isfinite(image.grey()).all()


WHOLE = {name: data for name, data, _ in FILES if name in {"grey.bmp", "16-bit.png", "float.tif", "orientation-1.webp"}}
WHOLE |= {
    "grey.jpg": hostile.saved(hostile.texture(), "JPEG"),
    "rgb.tif": hostile.encoded(hostile.texture(channels=3), ".tiff"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_never_decodes(name):
    data = WHOLE[name]
    for cut in range(1, len(data), max(1, len(data) // 150)):
        assert code_of(data[:cut])[0] == "truncated"


def test_digest_is_of_the_bytes():
    first, second = hostile.saved(hostile.texture(), "PNG"), hostile.saved(hostile.texture(), "BMP")
    assert decode(first).digest == decode(first).digest != decode(second).digest
    assert len(decode(first).digest) == 64


def test_threads_decode_alike():
    wanted = {name: decode(data).pixels for name, data in READABLE}
    wrong: list[str] = []

    def work() -> None:
        wrong.extend(name for name, data in READABLE if not np.array_equal(decode(data).pixels, wanted[name]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_opencv_keeps_quiet_about_bad_files():
    script = (
        "from tests import hostile\nfrom sbdzsl.image import decode\nfrom sbdzsl.errors import ImageError\n"
        "for name, data, _ in hostile.draw():\n    try:\n        decode(data)\n    except ImageError:\n        pass\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    # libpng and libjpeg print a few lines of their own; OpenCV and Pillow must not.
    assert "WARN" not in done.stderr
    assert "ERROR" not in done.stderr


def encoded(pixels, suffix=".png"):
    return cv2.imencode(suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (40, 1), (3, 3), (64, 200), (64, 200, 3), (900, 1400), (700, 1600, 3)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_appearance_is_mean_and_variance_of_the_laplacian(shape, dtype):
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype)
    image = decode(encoded(pixels), ANY_SIZE)
    grey = image.grey().astype(np.float64)
    padded = np.pad(grey, 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    found = image.appearance()
    assert found.brightness == pytest.approx(grey.mean(), rel=1e-6)
    assert found.sharpness == pytest.approx(laplacian.var(), rel=1e-5, abs=1e-12)


def test_blur_lowers_sharpness_and_light_raises_brightness():
    pixels = np.random.default_rng(2).integers(40, 160, (128, 128), np.uint8)
    sharp, blurred, lit = (
        decode(encoded(one)).appearance()
        for one in (pixels, cv2.GaussianBlur(pixels, (0, 0), 1.0), (pixels + 40).astype(np.uint8))
    )
    assert blurred.sharpness < sharp.sharpness / 10
    assert blurred.brightness == pytest.approx(sharp.brightness, abs=0.01)
    assert lit.brightness == pytest.approx(sharp.brightness + 40 / 255, abs=1e-6)
    assert lit.sharpness == pytest.approx(sharp.sharpness, rel=1e-4)


def test_appearance_of_a_large_image_takes_little_memory():
    image = image_module.Image(np.zeros((4000, 5000), np.uint8), 255.0, 8, "png", "")
    tracemalloc.start()
    try:
        image.appearance()
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_grey_of_a_large_colour_image_is_made_in_strips_with_the_same_bits() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 700, 3), np.uint8)
    whole = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2GRAY) / np.float32(255)
    made = image_module.Image(pixels, 255.0, 8, "png", "")
    tracemalloc.start()
    grey = made.grey()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(grey, whole)
    assert peak < grey.nbytes + 20 * image_module._STRIP_PIXELS  # three planes of a strip as floats, and its grey
