from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sbdzsl.errors import ImageError
from sbdzsl.image import Image
from sbdzsl.sbdd.engine import TorchEngine
from sbdzsl.sbdd.fit import fit_detector
from sbdzsl.sbdd.lite import SegDecLite
from sbdzsl.sbdd.predict import Detector, ready
from sbdzsl.sbdd.reference import SegDecReference
from sbdzsl.sbdd.segdec import SegDec
from sbdzsl.sbdd.tiling import RESERVE_MB, TILE_SIDES, Footprint, choose_tile, judge_tiled, measure_footprint
from tests.sbdd.surfaces import TINY, surface, surfaces
from tests.sbdd.test_lite import trained_looking

#: What tiled and whole may differ by, in logits: rounding.
BOUND = 1e-4


def reference() -> SegDec:
    torch.manual_seed(0)
    return ready(SegDecReference(0.05).folded(), "cpu")


@pytest.fixture(scope="module")
def lite() -> SegDec:
    return ready(trained_looking(width=0.5).folded(), "cpu")


@pytest.fixture(scope="module")
def fitted() -> Iterator[Detector]:
    """A detector that finds the bright blobs of the drawn surfaces."""
    settings = TINY.model_copy(update={"scale": 1.0})
    return fit_detector(surfaces(0, 30, 15), surfaces(100, 20, 8), settings, seed=0).detector


@pytest.mark.parametrize("shape", [(512, 512), (505, 777), (1000, 301), (129, 640), (16, 300)])
@pytest.mark.parametrize("tile", [128, 256])
def test_tiled_and_whole_agree(lite: SegDec, shape: tuple[int, int], tile: int) -> None:
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    engine = TorchEngine(lite)
    decision, logits = engine.judge(image)
    tiled_decision, tiled_logits = judge_tiled(engine, lite, image, tile)
    assert tiled_logits.shape == logits.shape
    assert tiled_decision == pytest.approx(decision, abs=BOUND)
    np.testing.assert_allclose(tiled_logits, logits, rtol=0, atol=BOUND)


def test_a_cell_looks_as_far_as_the_halo_says_and_no_farther(lite: SegDec) -> None:
    assert SegDecLite.HALO is not None
    image = np.random.default_rng(0).random((512, 512), dtype=np.float32)
    encoding, cell = TorchEngine(lite).encode(image), np.s_[:, 32, 32]  # pixels 256..263 of rows and columns
    for distance, differs in ((1, True), (36, True), (SegDecLite.HALO + 1, False)):
        for y, x in ((256 - distance, 256), (263 + distance, 256), (256, 256 - distance), (256, 263 + distance)):
            changed = image.copy()
            changed[y, x] = 1 - changed[y, x]
            assert np.array_equal(TorchEngine(lite).encode(changed)[cell], encoding[cell]) != differs, (distance, y, x)


def test_without_its_halo_a_tile_differs(lite: SegDec, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).random((512, 512), dtype=np.float32)
    engine = TorchEngine(lite)
    monkeypatch.setattr(SegDecLite, "HALO", 0)
    assert abs(judge_tiled(engine, lite, image, 128)[1] - engine.judge(image)[1]).max() > 10 * BOUND


def test_the_largest_tile_that_fits_is_taken(lite: SegDec) -> None:
    footprint = Footprint(encode=40, encoding=2, conclude=12)
    size = (8000, 8000)  # whole 2,560 MB; in tiles 768 MB, and 13 (side 384), 16 (512 + 128) or 53 MB (1024 + 128)
    assert choose_tile(lite, footprint, size, None) is None
    assert choose_tile(lite, footprint, size, 2560 + RESERVE_MB) is None
    assert choose_tile(lite, footprint, size, 2559 + RESERVE_MB) == TILE_SIDES[0]
    assert choose_tile(lite, footprint, size, 768 + 17 + RESERVE_MB) == 512
    assert choose_tile(lite, footprint, (100, 100), 130) is None
    with pytest.raises(ImageError, match=r"8000 x 8000 .* 902 MB in tiles; max_memory_mb is 895") as caught:
        choose_tile(lite, footprint, size, 767 + RESERVE_MB)
    assert caught.value.code == "too-large"


def test_a_network_that_cannot_be_tiled_says_what_it_needs() -> None:
    network = reference()
    subject = Detector(TINY.model_copy(update={"network": "reference", "width": 0.05, "scale": 1.0}), network, 0.0)
    image = np.zeros((1600, 1600), np.float32)
    needed = subject.footprint.whole_mb(image.size)
    with pytest.raises(ImageError, match="cell of this network depends on the whole image; max_memory_mb is 192"):
        subject.detect(image, max_memory_mb=192)
    assert subject.detect(image, max_memory_mb=needed + 1).logits.shape == (200, 200)


def test_footprints_grow_with_the_width_and_count_image_and_encoding(lite: SegDec) -> None:
    narrow, wide = measure_footprint(lite), measure_footprint(ready(trained_looking(width=2.0).folded(), "cpu"))
    assert narrow.encode < wide.encode
    assert narrow.conclude < wide.conclude
    assert narrow.encoding == pytest.approx(4 * 16 / 64, rel=0.02)  # 16 channels of 4 bytes at stride 8
    assert narrow.conclude > 4 + narrow.encoding


def test_defects_in_corners_and_on_seams_are_found_in_tiles(fitted: Detector) -> None:
    shape = (1300, 1500)
    good = surface(7, False, shape).grey
    at_256 = Detector(fitted.settings, fitted.network, fitted.map_threshold)
    ceiling = at_256.footprint.tiled_mb(good.size, (256 + 128) ** 2) + 0.1
    assert choose_tile(at_256.network, at_256.footprint, shape, ceiling) == 256
    bottom, right = shape[0] - 10, shape[1] - 10
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    seams = [(251, 600), (700, 507), (507, 507), (1019, 1275)]
    quiet = at_256.detect(good, ceiling)
    for y, x in corners + seams:
        grey = good.copy()
        grey[y : y + 10, x : x + 10] += 0.4
        tiled, whole = at_256.detect(grey, ceiling), at_256.detect(grey, 1e6)
        assert tiled.score == pytest.approx(whole.score, abs=BOUND)
        assert tiled.score > quiet.score + 1
        region = tiled.regions(fitted.map_threshold)[0]
        assert region.x - 8 <= x <= x + 10 <= region.x + region.width + 8, (y, x)
        assert region.y - 8 <= y <= y + 10 <= region.y + region.height + 8, (y, x)


def test_a_shrunk_image_keeps_its_source_frame_in_tiles(fitted: Detector) -> None:
    settings = fitted.settings.model_copy(update={"scale": 0.5})
    halved = Detector(settings, fitted.network, fitted.map_threshold)
    grey = surface(7, False, (2001, 1401)).grey
    grey[1970:2001, 1370:1401] += 0.4
    ceiling = halved.footprint.tiled_mb(1000 * 700, (256 + 128) ** 2) + 0.1
    tiled, whole = halved.detect(grey, ceiling), halved.detect(grey, 1e6)
    assert tiled.score == pytest.approx(whole.score, abs=BOUND)
    region = tiled.regions(fitted.map_threshold)[0]
    assert (region.x + region.width, region.y + region.height) == (1401, 2001)
    assert tiled.heat().shape == grey.shape


def test_every_depth_gives_the_same_score_up_to_its_steps(fitted: Detector) -> None:
    grey = surface(3, True).grey
    scores = {}
    for bits in (8, 12, 16):
        steps = 2**bits - 1
        pixels = np.rint(grey * steps).astype(np.uint8 if bits == 8 else np.uint16)
        scores[bits] = fitted.detect(Image(pixels, float(steps), bits, "tiff", "").grey()).score
    exact = fitted.detect(Image(grey, 1.0, 32, "tiff", "").grey()).score
    for bits, tolerance in ((8, 0.1), (12, 0.01), (16, 0.001)):
        assert scores[bits] == pytest.approx(exact, abs=tolerance), bits
    assert len(set(scores.values())) == 3  # none was cut to 8 bits
