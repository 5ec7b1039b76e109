"""Draws files that cameras, copies and attackers produce, each with what decoding it under default settings must give.

`draw(folder)` writes them and returns `(name, data, expected)`; `expected` is the code of an `ImageError`, or
`("ok", height, width)` after orientation. Every drawn picture is `HEIGHT` x `WIDTH` unless its name says otherwise.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 72
OK = ("ok", HEIGHT, WIDTH)
TURNED = ("ok", WIDTH, HEIGHT)

Expected = str | tuple[str, int, int]
HostileFile = tuple[str, bytes, Expected]


def texture(dtype: Any = np.uint8, channels: int = 1, seed: int = 0) -> np.ndarray:
    """[H, W] or [H, W, channels]: a wavy surface with noise, over the whole range of an integer `dtype`, or [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = 0.5 + 0.2 * np.sin(x / 5) + 0.2 * np.cos(y / 4)
    values = np.clip(waves[..., None] + rng.normal(0, 0.08, (HEIGHT, WIDTH, channels)), 0, 1)
    if np.issubdtype(dtype, np.integer):
        values = np.rint(values * np.iinfo(dtype).max)
    values = values.astype(dtype)
    return values[..., 0] if channels == 1 else values


def saved(picture: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """Bytes of the picture as Pillow writes them."""
    stream = io.BytesIO()
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(stream, kind, **options)
    return stream.getvalue()


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    """Bytes as OpenCV writes them; `pixels` is grey or RGB, also 16 bits and float."""
    bgr = pixels if pixels.ndim == 2 else pixels[..., ::-1]
    done, buffer = cv2.imencode(suffix, bgr)
    assert done
    return buffer.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, rows: bytes, bits: int = 8, colour: int = 0, extra: bytes = b"", lace: int = 0
) -> bytes:
    """A PNG built chunk by chunk; `rows` are raw scanlines, each after its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, lace)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def interlaced_png(grey: np.ndarray) -> bytes:
    """An Adam7 PNG of [H, W] uint8."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in grey[y::dy, x::dx])
    return png(grey.shape[1], grey.shape[0], rows, lace=1)


def tiff(
    pixels: bytes, bits: int, samples: int = 1, photometric: int = 1, kind: int = 1, extra: int | None = None
) -> bytes:
    """An uncompressed little-endian TIFF of one strip; `kind` is the sample format (1 unsigned, 2 signed, 3 float)."""
    tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: photometric, 273: 8, 277: samples, 278: HEIGHT}
    tags |= {279: len(pixels), 339: kind} | ({} if extra is None else {338: extra})
    start = 8 + len(pixels) + len(pixels) % 2
    arrays_at = start + 2 + 12 * len(tags) + 4
    entries, arrays = b"", b""
    for tag, value in sorted(tags.items()):
        if tag in (258, 339) and samples > 2:
            entries += struct.pack("<HHII", tag, 3, samples, arrays_at + len(arrays))
            arrays += struct.pack(f"<{samples}H", *[value] * samples)
        elif tag in (258, 339) and samples == 2:
            entries += struct.pack("<HHIHH", tag, 3, 2, value, value)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, value)
    body = pixels + b"\0" * (len(pixels) % 2) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", start) + body + arrays


def oriented(kind: str, orientation: int, **options: Any) -> bytes:
    """A grey picture with an EXIF orientation, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(texture(), kind, exif=exif, **options)


def animated_png() -> bytes:
    frames = [Image.fromarray(texture(seed=seed)) for seed in (1, 2)]
    return saved(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=100)


def _cut() -> Iterator[HostileFile]:
    grey, colour = texture(), texture(channels=3)
    whole = {
        "png": saved(grey, "PNG"),
        "jpg": saved(grey, "JPEG", quality=95),
        "progressive.jpg": saved(colour, "JPEG", progressive=True),
        "tif": saved(grey, "TIFF"),
        "lzw.tif": saved(grey, "TIFF", compression="tiff_lzw"),
        "bmp": saved(grey, "BMP"),
        "webp": saved(colour, "WEBP"),
    }
    for suffix, data in whole.items():
        for share in (1, 35, 80, 97):
            yield f"cut-at-{share}-percent.{suffix}", data[: max(2, len(data) * share // 100)], "truncated"
    jpeg = whole["jpg"]
    yield "cut-without-end-marker.jpg", jpeg[:-2], "truncated"
    yield "cut-then-padded-with-zeros.jpg", jpeg[: len(jpeg) * 3 // 5] + bytes(10_000), "truncated"
    yield "cut-then-closed.jpg", jpeg[: len(jpeg) * 3 // 5] + b"\xff\xd9", "truncated"
    yield "cut-without-iend.png", whole["png"][:-12], "truncated"
    yield "too-few-rows.png", png(WIDTH, HEIGHT, (b"\0" + bytes(WIDTH)) * (HEIGHT // 2)), "unreadable"
    yield "all-zero-bytes.png", bytes(4096), "unsupported-format"


def _not_images() -> Iterator[HostileFile]:
    rng = np.random.default_rng(3)
    yield "empty.png", b"", "empty"
    yield "text.png", b"camera offline since 06:12\n", "unsupported-format"
    yield "login-page.jpg", b"<!doctype html><html><body>Please log in</body></html>", "unsupported-format"
    yield "signature-then-noise.png", b"\x89PNG\r\n\x1a\n" + rng.bytes(2000), "unreadable"
    yield "signature-then-noise.jpg", b"\xff\xd8\xff\xe0" + bytes(rng.integers(0, 255, 2000, np.uint8)), "truncated"
    flipped = bytearray(saved(texture(), "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    yield "flipped-bits.png", bytes(flipped), "unreadable"
    yield "sound.webp", b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + bytes(28), "unsupported-format"


def _several_frames() -> Iterator[HostileFile]:
    frames = [Image.fromarray(texture(seed=seed)) for seed in (1, 2, 3)]
    yield "still.gif", saved(frames[0], "GIF"), "unsupported-format"
    yield "animated.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "unsupported-format"
    yield "animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "unsupported-format"
    yield "animated.png", animated_png(), "unsupported-format"
    yield "three-pages.tif", saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "unsupported-format"


def _sizes() -> Iterator[HostileFile]:
    yield "20000x20000.png", png(20_000, 20_000, b"\0" * 100), "too-large"
    yield "claims-4-billion.png", png(2**31 - 1, 2**31 - 1, b"\0" * 100), "too-large"
    jpeg = saved(texture(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    yield "claims-65500x65500.jpg", jpeg[:at] + struct.pack(">HH", 65_500, 65_500) + jpeg[at + 4 :], "too-large"
    bmp = saved(texture(), "BMP")
    yield "claims-2-billion.bmp", bmp[:18] + struct.pack("<ii", 2**31 - 1, -(2**31)) + bmp[26:], "too-large"
    yield "no-width.bmp", bmp[:18] + struct.pack("<ii", 0, 10) + bmp[26:], "unreadable"
    yield "one-pixel.png", png(1, 1, b"\0\x80"), "too-small"
    yield "one-row.png", png(500, 1, b"\0" + bytes(500)), "too-small"


def _depths_and_modes() -> Iterator[HostileFile]:
    grey, colour = texture(), texture(channels=3)
    rgb = Image.fromarray(colour)
    alpha = Image.fromarray(np.dstack([colour, texture(seed=9)]), "RGBA")
    yield "16-bit.png", encoded(texture(np.uint16), ".png"), OK
    yield "12-bit-in-16.png", encoded(texture(np.uint16) >> 4, ".png"), OK
    yield "16-bit-rgb.png", encoded(texture(np.uint16, 3), ".png"), OK
    yield "16-bit.tif", encoded(texture(np.uint16), ".tiff"), OK
    yield "16-bit-rgb.tif", encoded(texture(np.uint16, 3), ".tiff"), OK
    yield "float.tif", encoded(texture(np.float32), ".tiff"), OK
    yield "float-above-1.tif", encoded(texture(np.float32) * 300, ".tiff"), "depth-mismatch"
    yield "float-nan.tif", encoded(np.where(texture() > 200, np.float32("nan"), np.float32(0.5)), ".tiff"), "unreadable"
    yield "signed.tif", tiff((texture(np.uint16) >> 1).tobytes(), 16, kind=2), "unsupported-format"
    yield "16-bit-grey-alpha.tif", tiff(texture(np.uint16, 2).tobytes(), 16, 2, extra=2), "unsupported-format"
    yield "cmyk.jpg", saved(rgb.convert("CMYK"), "JPEG"), OK
    yield "palette.png", saved(rgb.convert("P"), "PNG"), OK
    yield "1-bit.png", saved(Image.fromarray(grey).convert("1"), "PNG"), OK
    yield "grey-alpha.png", saved(alpha.convert("LA"), "PNG"), OK
    for kind, suffix in (("PNG", "png"), ("TIFF", "tif"), ("WEBP", "webp"), ("BMP", "bmp")):
        yield f"rgb-alpha.{suffix}", saved(alpha, kind), OK
    yield "grey.bmp", saved(grey, "BMP"), OK
    yield "interlaced.png", interlaced_png(grey), OK
    yield "progressive.jpg", saved(colour, "JPEG", progressive=True), OK
    yield "trailing-garbage.jpg", saved(grey, "JPEG") + b"\0\1garbage" * 50, OK
    yield "trailing-garbage.png", saved(grey, "PNG") + b"garbage", OK
    yield "flat-mid-grey.jpg", saved(np.full((HEIGHT, WIDTH), 128, np.uint8), "JPEG"), OK
    text = chunk(b"iTXt", b"notes\0\1\0\0\0" + zlib.compress(b"x" * 5_000_000))
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    yield "5-megabytes-of-text.png", png(WIDTH, HEIGHT, rows, extra=text), "unreadable"


def _orientations() -> Iterator[HostileFile]:
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "jpg": ("JPEG", {}),
        "png": ("PNG", {}),
        "tif": ("TIFF", {}),
        "webp": ("WEBP", {"lossless": True}),
    }
    for suffix, (kind, options) in kinds.items():
        for orientation in range(1, 9):
            expected = TURNED if orientation >= 5 else OK
            yield f"orientation-{orientation}.{suffix}", oriented(kind, orientation, **options), expected


def draw(folder: Path | None = None) -> list[HostileFile]:
    """All files, in a fixed order and with the same bytes each time; written into `folder` if one is given."""
    parts = (_cut, _not_images, _several_frames, _sizes, _depths_and_modes, _orientations)
    files = [file for part in parts for file in part()]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data, _ in files:
            (folder / name).write_bytes(data)
    return files
