"""Files that attackers and bad disks make, by the hundred: mutations of sound images, and bombs.

All are drawn from a seed. `tests/hostile.py` holds the few dozen whose exact verdict is known; here it is only known
that each must give one row.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from sbdzsl.datasets.synthetic import draw_image

SUFFIXES = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}


def mutated(count: int, seed: int, size: int = 128) -> Iterator[tuple[str, bytes]]:
    """`count` files, each a drawn image in one of five formats that bit flips, a cut or a wrong name befell."""
    rng = random.Random(seed)
    sound = [
        (suffix, _saved(Image.fromarray(draw_image(surface, index, size, seed).pixels), kind))
        for index, surface in enumerate(("brushed_steel", "cast_iron", "sandpaper", "leather"))
        for kind, suffix in SUFFIXES.items()
    ]
    for number in range(count):
        suffix, data = rng.choice(sound)
        how = rng.choice(("flip-1", "flip-20", "flip-head", "cut", "zeros", "doubled", "name"))
        blob = bytearray(data)
        if how.startswith("flip"):
            reach = 64 if how == "flip-head" else len(blob)
            for _ in range(1 if how == "flip-1" else 20):
                blob[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del blob[rng.randrange(len(blob)) :]
        elif how == "zeros":
            start = rng.randrange(len(blob))
            blob[start : start + 512] = bytes(len(blob[start : start + 512]))
        elif how == "doubled":
            start = rng.randrange(len(blob))
            blob[start:start] = blob[start : start + 256]
        else:
            suffix = rng.choice([other for other in SUFFIXES.values() if other != suffix])
        yield f"{number:04d}-{how}.{suffix}", bytes(blob)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Twenty small files that claim or unpack to much, or send a reader round in circles."""
    yield "claims-4e18-pixels.png", _png(2**31 - 1, 2**31 - 1, b"\0" * 100)
    yield "claims-100-megapixels.png", _png(10_000, 10_000, b"\0" * 100)
    yield "unpacks-to-100-megapixels.png", _saved(Image.new("L", (10_000, 10_000), 120), "PNG")
    yield "unpacks-beyond-its-claim.png", _png(64, 64, bytes(300_000_000))
    text = b"notes\0\1\0\0\0" + zlib.compress(bytes(200_000_000), 9)
    yield "unpacks-200-megabytes-of-text.png", _png(64, 64, _rows(64), extra=_chunk(b"iTXt", text))
    profile = b"icc\0\0" + zlib.compress(bytes(200_000_000), 9)
    yield "unpacks-200-megabytes-of-profile.png", _png(64, 64, _rows(64), extra=_chunk(b"iCCP", profile))
    yield "has-200000-empty-chunks.png", _png(64, 64, _rows(64), extra=_chunk(b"teSt", b"") * 200_000)
    yield (
        "claims-a-chunk-of-2-gigabytes.png",
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR" + b"\0" * 99,
    )
    jpeg = _saved(Image.new("L", (64, 64), 90), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    yield "claims-65500-squared.jpg", jpeg[:at] + struct.pack(">HH", 65_500, 65_500) + jpeg[at + 4 :]
    yield "claims-100-megapixels.jpg", jpeg[:at] + struct.pack(">HH", 10_000, 10_000) + jpeg[at + 4 :]
    yield "unpacks-to-100-megapixels.jpg", _saved(Image.new("L", (10_000, 10_000), 120), "JPEG", quality=1)
    scans = _saved(Image.fromarray(np.tile(np.arange(0, 256, 4, np.uint8), (64, 1))), "JPEG", progressive=True)
    first = scans.index(b"\xff\xda")
    second = scans.index(b"\xff\xda", first + 2)
    yield "has-20000-scans.jpg", scans[:first] + scans[first:second] * 20_000 + scans[second:]
    yield "points-at-itself.tif", _tiff(64, 64, bytes(4096), next_at=8)
    yield "has-20000-directories.tif", _chain_of_directories(20_000)
    yield "holds-itself.tif", _tiff(64, 64, bytes(4096), more={330: 8})
    yield "claims-4e9-squared.tif", _tiff(2**32 - 1, 2**32 - 1, bytes(100))
    yield "claims-4e9-strips.tif", _tiff(64, 64, bytes(4096), count_of_strips=2**32 - 1)
    yield (
        "unpacks-to-100-megapixels.tif",
        _saved(Image.new("L", (10_000, 10_000), 120), "TIFF", compression="tiff_adobe_deflate"),
    )
    yield "unpacks-to-100-megapixels.webp", _saved(Image.new("RGB", (10_000, 10_000), (9, 9, 9)), "WEBP", lossless=True)
    header = struct.pack("<IHHIIiiHHIIiiII", 2**31 - 1, 0, 0, 1078, 40, 30_000, 30_000, 1, 8, 1, 0, 0, 0, 0, 0)
    yield "claims-900-megapixels.bmp", b"BM" + header + bytes(2000)


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _rows(side: int) -> bytes:
    return (b"\0" + bytes(range(100, 100 + side))) * side


def _png(width: int, height: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + _chunk(b"IEND", b"")


def _tiff(
    width: int,
    height: int,
    pixels: bytes,
    next_at: int = 0,
    more: dict[int, int] | None = None,
    count_of_strips: int = 1,
) -> bytes:
    """A little-endian TIFF of one uncompressed strip, whose directory stands first, at byte 8."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: height, 279: len(pixels)} | (more or {})
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = start
    entries = b"".join(
        struct.pack("<HHII", tag, 4, count_of_strips if tag in (273, 279) else 1, value)
        for tag, value in sorted(tags.items())
    )
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_at) + pixels


def _chain_of_directories(count: int) -> bytes:
    """A TIFF whose directories, one tag each, lead from one to the next."""
    size = 2 + 12 + 4
    links = [8 + size * (number + 1) if number + 1 < count else 0 for number in range(count)]
    entry = struct.pack("<HHII", 256, 4, 1, 64)
    return b"II*\0\x08\0\0\0" + b"".join(b"\1\0" + entry + struct.pack("<I", link) for link in links)
