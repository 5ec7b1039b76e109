from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder, crop_boxes


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(load_backbone(), RouterSettings(crop_px=64, max_crops=2))


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


def test_mean_and_log_std_over_all_crops(embedder: Embedder) -> None:
    import torch

    image = texture(64, 128)
    features = embedder.embed(image)
    assert features.shape == (608,)
    assert features.dtype == np.float32
    crops = torch.from_numpy(np.stack([image[None, :, :64], image[None, :, 64:]]))
    maps = [stage.double() for stage in embedder.backbone(crops)]
    mean = torch.cat([stage.mean((0, 2, 3)) for stage in maps])
    std = torch.cat([stage.std((0, 2, 3), correction=0) for stage in maps])
    np.testing.assert_allclose(features[:304], mean, atol=1e-4)
    np.testing.assert_allclose(features[304:], (std + 0.01).log(), atol=1e-4)


def test_same_bits_whatever_ran_before(embedder: Embedder) -> None:
    image = texture(100, 70)
    before = embedder.embed(image)
    embedder.embed(texture(64, 64, seed=1))
    embedder.embed(texture(30, 200, seed=2))
    again = embedder.embed(np.asfortranarray(image))
    assert before.tobytes() == again.tobytes()
    assert before.tobytes() == Embedder(load_backbone(), embedder.settings).embed(image).tobytes()


@pytest.mark.parametrize("shape", [(16, 16), (17, 300), (65, 64)])
def test_any_size_gives_finite_features(embedder: Embedder, shape: tuple[int, int]) -> None:
    assert np.isfinite(embedder.embed(np.zeros(shape, dtype=np.float32))).all()


@pytest.mark.parametrize(
    ("shape", "max_crops", "expected"),
    [
        ((256, 256), 4, [(0, 0, 256, 256)]),
        ((300, 256), 4, [(22, 0, 256, 256)]),
        ((100, 40), 4, [(0, 0, 100, 40)]),
        ((512, 512), 2, [(0, 128, 256, 256), (256, 0, 256, 256)]),
        ((1024, 200), 2, [(128, 0, 256, 200), (640, 0, 256, 200)]),
    ],
)
def test_crops(shape: tuple[int, int], max_crops: int, expected: list[tuple[int, int, int, int]]) -> None:
    assert crop_boxes(*shape, RouterSettings(crop_px=256, max_crops=max_crops)) == expected


def test_crops_of_a_large_image_stay_inside_and_differ() -> None:
    boxes = crop_boxes(1100, 2300, RouterSettings(crop_px=256, max_crops=16))
    assert len(set(boxes)) == 16
    assert all(0 <= top <= 1100 - h and 0 <= left <= 2300 - w for top, left, h, w in boxes)


def test_cache_is_keyed_by_image_backbone_and_crops(embedder: Embedder, tmp_path: Path) -> None:
    image = texture(64, 64)
    features = embedder.embed_cached(image, "digest-1", tmp_path)
    assert embedder.embed_cached(image, "digest-1", tmp_path).tobytes() == features.tobytes()
    # The entry is really read: another image under the same digest gives the stored numbers.
    assert embedder.embed_cached(texture(64, 64, seed=9), "digest-1", tmp_path).tobytes() == features.tobytes()
    other = Embedder(load_backbone(), RouterSettings(crop_px=64, max_crops=1))
    embedder.embed_cached(image, "digest-2", tmp_path)
    other.embed_cached(image, "digest-1", tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all(path.suffix == ".npy" for path in files)


def test_damaged_cache_entry_is_computed_anew(embedder: Embedder, tmp_path: Path) -> None:
    image = texture(64, 64)
    features = embedder.embed_cached(image, "digest", tmp_path)
    (entry,) = tmp_path.rglob("*.npy")
    entry.write_bytes(entry.read_bytes()[:200])
    assert embedder.embed_cached(image, "digest", tmp_path).tobytes() == features.tobytes()
    assert np.load(entry).tobytes() == features.tobytes()
