import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from sbdzsl import image, lake
from sbdzsl.cluster import reading
from sbdzsl.cluster.ledger import ImageRef
from sbdzsl.cluster.reading import read_ahead
from sbdzsl.config import ImageSettings

SETTINGS = ImageSettings()
SIDE = 100


@pytest.fixture
def images(tmp_path: Path) -> list[ImageRef]:
    """Forty grey images; the fifth is no image, the seventh is not there."""
    refs = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), np.full((SIDE, SIDE), number, np.uint8))
        refs.append(ImageRef(f"id{number}", str(path), path.stat().st_size, None, None))
    (tmp_path / "5.png").write_bytes(b"no image")
    (tmp_path / "7.png").unlink()
    return refs


def shades(images: list[ImageRef], **options: object) -> dict[int, int | str]:
    """Number of each image that came, with its grey value or its error."""
    arguments = {"settings": SETTINGS, "readers": 3, "timeout_s": 20} | options
    found: dict[int, int | str] = {}
    for number, loaded in read_ahead(images, **arguments):  # type: ignore[arg-type]
        assert number not in found
        assert loaded.image_id == f"id{number}"
        found[number] = int(loaded.image.pixels[0, 0]) if loaded.image else loaded.error.code  # type: ignore[union-attr]
    return found


EXPECTED = {number: number for number in range(40)} | {5: "unsupported-format", 7: "not-found"}


@pytest.mark.parametrize("readers", [1, 3, 60])
def test_each_image_comes_once(images: list[ImageRef], readers: int) -> None:
    assert shades(images, readers=readers) == EXPECTED
    assert shades([], readers=readers) == {}


def test_pixels_ahead_stay_within_their_ceiling(images: list[ImageRef], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIXEL_BYTES", 3 * SIDE * SIDE)
    decoded, most = 0, 0
    real = image.decode

    def counting(*arguments: object) -> image.Image:
        nonlocal decoded
        decoded += 1
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(image, "decode", counting)
    for taken, _ in enumerate(read_ahead(images, SETTINGS, 8, 20), start=1):
        time.sleep(0.005)
        most = max(most, decoded - taken)
    assert 1 <= most <= 4  # three, and the one that is being judged; broken ones take no room


def test_an_image_above_the_ceiling_gets_in_alone(images: list[ImageRef], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIXEL_BYTES", 10)
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 10)
    assert shades(images) == EXPECTED


def test_a_store_that_hangs_makes_errors_and_the_rest_is_read(
    images: list[ImageRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, release = lake.read_together, threading.Event()

    def hanging(uris: list[str], max_bytes: int | None) -> object:
        if uris[0].endswith(("/3.png", "/11.png", "/12.png")):
            release.wait(30)
        return real(uris, max_bytes)

    monkeypatch.setattr(lake, "read_together", hanging)
    found = shades(images, readers=2, timeout_s=0.5)
    release.set()
    assert found == EXPECTED | {3: "unreachable", 11: "unreachable", 12: "unreachable"}


def test_a_mistake_in_a_thread_is_raised_where_it_is_seen(
    images: list[ImageRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(lake, "read_together", broken)
    with pytest.raises(ZeroDivisionError):
        shades(images)


def test_whoever_stops_early_leaves_no_thread(images: list[ImageRef], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIXEL_BYTES", 2 * SIDE * SIDE)
    before = threading.active_count()
    ahead: Iterator[object] = read_ahead(images, SETTINGS, 4, 20)
    next(ahead)
    assert threading.active_count() > before
    ahead.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_what_pixels_take_is_read_from_the_header() -> None:
    def encoded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
        return cv2.imencode(suffix, pixels)[1].tobytes()

    assert image.decoded_bytes(encoded(np.zeros((30, 50), np.uint8))) == 1500
    assert image.decoded_bytes(encoded(np.zeros((30, 50, 3), np.uint8))) == 4500
    assert image.decoded_bytes(encoded(np.zeros((30, 50), np.uint16))) == 3000
    assert image.decoded_bytes(encoded(np.zeros((30, 50), np.float32), ".tiff")) == 6000
    assert image.decoded_bytes(b"no image") == image.decoded_bytes(b"") == 0
