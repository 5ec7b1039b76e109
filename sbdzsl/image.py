"""Bytes of one file -> `Image`: pixels as stored, what stands for white, orientation applied, and every limit.

The header is read first, by the short readers below: they look at a few hundred bytes, so that a claim of 20000 x 20000
costs microseconds and no memory. (Pillow's headers were tried: they cannot open float RGB or large-text files that are
valid, and warn through process-wide state that threads share.) OpenCV then decodes: 16-bit and float exactly, EXIF
orientation applied for all five formats as long as the flag is not `IMREAD_UNCHANGED`. Where OpenCV changes values
(see `_pixels`) they are put right. A file that ends early, an animation and a second page are errors, never a verdict.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps, TiffImagePlugin

from sbdzsl.config import ImageSettings
from sbdzsl.errors import ImageError

# A bad file is an ImageError; OpenCV's own lines on stderr would repeat it without the name of the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_DEFAULTS = ImageSettings()
_READ_FLAGS = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One decoded image, upright.

    `pixels` is [H, W] grey or [H, W, 3] RGB; uint8, uint16 or float32, values as stored. Alpha is dropped: the colour
    under it is kept, nothing is blended. `white` is the value that stands for white: 255; 2**bit_depth - 1; the stated
    percentile of this image; or 1.0 for float. `bit_depth` counts significant bits, 8 to 16, or 32 for float. `format`
    is one of png, jpeg, bmp, tiff, webp, found from the content. `digest` is the SHA-256 of the bytes in hex.
    """

    pixels: NDArray[Any]
    white: float
    bit_depth: int
    format: str
    digest: str

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return int(self.pixels.shape[1])

    def grey(self) -> NDArray[np.float32]:
        """[H, W] float32, value / white: black 0, white 1, not clipped.

        RGB becomes luma by ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B, on the values as stored.
        """
        grey = self.pixels
        if grey.ndim == 3:
            grey = cv2.cvtColor(grey.astype(np.float32), cv2.COLOR_RGB2GRAY)
        return np.divide(grey, np.float32(self.white), dtype=np.float32)


def decode(data: bytes, settings: ImageSettings = _DEFAULTS, bit_depth: int | None = None) -> Image:
    """Decode one image; all limits of `settings` are checked before any pixel is.

    `bit_depth` (from the manifest) wins over `settings.bit_depth`. A declared depth speaks of 16-bit containers: an
    8-bit file is 8 bits whatever is declared, a TIFF that packs 10, 12 or 14 bits states its own. With no depth
    declared, white is `settings.white_percentile` of the image (at least 1 for integers) if stated, else the
    container's full range. Float images are [0, 1] unless a percentile is stated.

    Raises `ImageError`: empty, unsupported-format, truncated, unreadable, too-large, too-small, depth-mismatch.
    """
    if not data:
        raise ImageError("empty", "the file has 0 bytes")
    if len(data) > settings.max_bytes:
        raise ImageError("too-large", f"{len(data)} bytes; the limit max_bytes is {settings.max_bytes}")
    header = _read_header(data)
    _check_header(header, settings)
    pixels = _pixels(data, header)
    declared = settings.bit_depth if bit_depth is None else bit_depth
    white, depth = _white(pixels, header.bits, declared, settings.white_percentile)
    return Image(pixels, white, depth, header.format, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class _Header:
    """What a file says of itself. `bits` per sample; `ends_early` if it promises more bytes than it has."""

    format: str
    width: int
    height: int
    bits: int
    frames: int = 1
    ends_early: bool = False
    end: int = 0  # JPEG: where the end-of-image marker stands
    is_grey_alpha: bool = False
    is_min_white: bool = False  # TIFF: 0 is white
    has_straight_alpha: bool = False  # TIFF: colour is not multiplied by alpha


def _truncated(data: bytes, kind: str) -> ImageError:
    return ImageError("truncated", f"{kind} file ends early, after {len(data)} bytes; copy it again from its source")


def _unsupported(found: str) -> ImageError:
    return ImageError("unsupported-format", f"found {found}; expected one PNG, JPEG, BMP, TIFF or WebP image")


def _read_header(data: bytes) -> _Header:
    """Find the format by its signature, never by a name, and read its header."""
    for kind, signature, read in _FORMATS:
        if data.startswith(signature):
            try:
                return read(data)
            except (struct.error, IndexError, OverflowError):
                raise _truncated(data, kind) from None
        if signature.startswith(data):
            raise _truncated(data, kind)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        raise _unsupported("a GIF")
    raise _unsupported(f"bytes that start with {data[:16]!r}")


def _check_header(header: _Header, settings: ImageSettings) -> None:
    width, height, size = header.width, header.height, f"{header.width} x {header.height} pixels"
    if width <= 0 or height <= 0:
        raise ImageError("unreadable", f"the header says {size}")
    if max(width, height) > settings.max_side_px:
        raise ImageError("too-large", f"{size}; the limit max_side_px is {settings.max_side_px}")
    if width * height > settings.max_pixels:
        raise ImageError("too-large", f"{size}; the limit max_pixels is {settings.max_pixels}")
    if min(width, height) < settings.min_side_px:
        raise ImageError("too-small", f"{size}; the limit min_side_px is {settings.min_side_px}")
    if header.frames != 1:
        raise _unsupported(f"{header.frames} frames or pages in one {header.format} file")
    if header.ends_early:
        raise ImageError("truncated", f"{header.format} file of {size} ends early; copy it again from its source")


def _png(data: bytes) -> _Header:
    """PNG specification, section 11: IHDR, then chunks up to IEND; acTL announces an animation."""
    first, width, height, bits, colour = struct.unpack_from(">4sIIBB", data, 12)
    if first != b"IHDR":
        raise ImageError("unreadable", "PNG signature without an IHDR chunk")
    frames, at, ended = 1, 33, False
    while not ended and at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL":
            frames = struct.unpack_from(">I", data, at + 8)[0]
        ended = kind == b"IEND"
        at += 12 + length
    return _Header(
        "png", width, height, max(bits, 8), frames, ends_early=not ended or at > len(data), is_grey_alpha=colour == 4
    )


def _jpeg(data: bytes) -> _Header:
    """ITU-T T.81, annex B: segments up to the first scan. In a scan 0xFF is stuffed, so FFD9 there is the end."""
    frame: tuple[int, int, int] | None = None
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise _truncated(data, "jpeg")
        while data[at] == 0xFF:
            at += 1
        marker, at = data[at], at + 1
        if marker == 0xDA:
            break
        if marker in (0x01, *range(0xD0, 0xD8)):
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack_from(">BHH", data, at + 2)
        at += struct.unpack_from(">H", data, at)[0]
    if frame is None:
        raise ImageError("unreadable", "JPEG scan without a frame header")
    bits, height, width = frame
    if bits != 8:
        raise _unsupported(f"a JPEG of {bits} bits a sample")
    end = data.find(b"\xff\xd9", at)
    return _Header("jpeg", width, height, bits, ends_early=end < 0, end=end)


def _bmp(data: bytes) -> _Header:
    """Bitmap file header, then the core (12 bytes, 16-bit sizes) or a later info header (negative height: top down)."""
    start, size = struct.unpack_from("<II", data, 10)
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", data, 18)
    compression = 0 if size == 12 else struct.unpack_from("<I", data, 30)[0]
    stored = 0 if compression in (1, 2) else (width * bits + 31) // 32 * 4 * abs(height)
    return _Header("bmp", width, abs(height), 8, ends_early=start + stored > len(data))


def _webp(data: bytes) -> _Header:
    """RFC 9649: RIFF container with a VP8X, VP8L or VP8 chunk first; ANMF chunks are frames."""
    frames, (size, riff_kind, kind) = 1, struct.unpack_from("<I4s4s", data, 4)
    if riff_kind != b"WEBP":
        raise _unsupported(f"a RIFF file of kind {riff_kind!r}")
    if kind == b"VP8X":
        flags, width, width_high, height, height_high = struct.unpack_from("<B3xHBHB", data, 20)
        width, height = 1 + width + (width_high << 16), 1 + height + (height_high << 16)
        if flags & 0x02:
            frames = data.count(b"ANMF")
    elif kind == b"VP8L":
        sides = struct.unpack_from("<I", data, 21)[0]
        width, height = 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return _Header("webp", width, height, 8, frames, ends_early=8 + size > len(data))


_TIFF_TYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_TIFF_TAGS = frozenset({254, 256, 257, 258, 262, 273, 279, 324, 325, 338, 339})
# Far above what cameras write, and low enough that a hostile chain of pages costs milliseconds.
_TIFF_MAX_PAGES, _TIFF_MAX_ENTRIES = 1000, 256


def _tiff_pages(data: bytes) -> Iterator[dict[int, NDArray[Any]]]:
    """The tags of each page that we use, as integer arrays [count]. TIFF 6.0, section 2, and BigTIFF."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    count_format, offset_format, entry_size = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    count_size, offset_size = struct.calcsize(order + count_format), struct.calcsize(order + offset_format)
    at = struct.unpack_from(order + offset_format, data, 8 if is_big else 4)[0]
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _TIFF_MAX_PAGES:
        seen.add(at)
        entries = struct.unpack_from(order + count_format, data, at)[0]
        page: dict[int, NDArray[Any]] = {}
        for index in range(min(entries, _TIFF_MAX_ENTRIES)):
            entry = at + count_size + index * entry_size
            tag, kind, count = struct.unpack_from(order + "HH" + offset_format, data, entry)
            if tag not in _TIFF_TAGS or kind not in _TIFF_TYPES or count == 0:
                continue
            dtype = np.dtype(order + _TIFF_TYPES[kind])
            where = entry + 4 + offset_size
            if count * dtype.itemsize > offset_size:
                where = struct.unpack_from(order + offset_format, data, where)[0]
            if where + count * dtype.itemsize > len(data):
                raise _truncated(data, "tiff")
            page[tag] = np.frombuffer(data, dtype, count, where)
        yield page
        at = struct.unpack_from(order + offset_format, data, at + count_size + entries * entry_size)[0]


def _tiff(data: bytes) -> _Header:
    pages = list(_tiff_pages(data))
    if not pages or not {256, 257} <= pages[0].keys():
        raise ImageError("unreadable", "TIFF without an image size")
    page = pages[0]
    width, height, bits, photometric, sample_format = (
        int(page[tag][0]) if tag in page else 1 for tag in (256, 257, 258, 262, 339)
    )
    extras = [p[254][0] & 5 if 254 in p else 0 for p in pages]  # thumbnails and masks are no pages of their own
    if extras[0]:
        raise _unsupported("a TIFF whose first page is a thumbnail or a mask, such as a raw camera file")
    allowed = {1: (1, 8, 10, 12, 14, 16), 3: (32, 64)}.get(sample_format, ())
    if bits not in allowed or photometric not in (0, 1, 2, 3, 5, 6):
        raise _unsupported(f"a TIFF of {bits} bits, sample format {sample_format}, photometric {photometric}")
    return _Header(
        "tiff",
        width,
        height,
        max(bits, 8) if sample_format == 1 else 32,
        extras.count(0),
        ends_early=_tiff_ends_early(page, len(data)),
        is_min_white=photometric == 0 and bits > 8,
        has_straight_alpha=photometric == 2 and bits == 8 and 338 in page and page[338][0] == 2,
    )


def _tiff_ends_early(page: dict[int, NDArray[Any]], size: int) -> bool:
    """Whether a strip (or tile) stands beyond the end of a file of `size` bytes."""
    for offsets, counts in ((273, 279), (324, 325)):
        if offsets in page and counts in page and len(page[offsets]) == len(page[counts]):
            return bool((page[offsets].astype(np.float64) + page[counts] > size).any())
    return False


_FORMATS: tuple[tuple[str, bytes, Callable[[bytes], _Header]], ...] = (
    ("png", b"\x89PNG\r\n\x1a\n", _png),
    ("jpeg", b"\xff\xd8\xff", _jpeg),
    ("bmp", b"BM", _bmp),
    ("webp", b"RIFF", _webp),
    ("tiff", b"II*\0", _tiff),
    ("tiff", b"MM\0*", _tiff),
    ("tiff", b"II+\0", _tiff),
    ("tiff", b"MM\0+", _tiff),
)


def _pixels(data: bytes, header: _Header) -> NDArray[Any]:
    """Decode, and put right what OpenCV would change: straight alpha, packed bits, 0-is-white, cuts to 8 bits."""
    if header.has_straight_alpha:
        return _straight_alpha_tiff(data)
    pixels = _opencv(data)
    if pixels is None:
        raise ImageError("unreadable", f"the {header.format} file has a header but its pixels cannot be decoded")
    if header.format == "jpeg" and _is_cut_before_its_end(data, header.end, pixels):
        raise ImageError("truncated", "the JPEG's data end before its pixels do; copy it again from its source")
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    expected = np.float32 if header.bits == 32 else np.uint16 if header.bits > 8 else np.uint8
    if pixels.dtype != expected or pixels.ndim not in (2, 3):
        raise _unsupported(f"a {header.format} of {header.bits} bits that decodes only to {pixels.dtype}")
    if header.bits in (10, 12, 14):
        pixels >>= 16 - header.bits  # OpenCV moves packed samples to the top of 16 bits
    if header.is_min_white:
        pixels = (1 if header.bits == 32 else 2**header.bits - 1) - pixels
    if pixels.ndim == 2:
        return pixels
    return pixels[..., 0].copy() if header.is_grey_alpha else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _opencv(data: bytes) -> NDArray[Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS)
    except cv2.error:
        return None


def _straight_alpha_tiff(data: bytes) -> NDArray[np.uint8]:
    """[H, W, 3]. OpenCV multiplies the colour by alpha here, also with `IMREAD_UNCHANGED`; Pillow does not."""
    try:
        with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image))[..., :3].copy()
    except Exception as error:  # noqa: BLE001  Pillow raises a dozen kinds for damaged files
        raise ImageError(
            "unreadable", f"the tiff file has a header but its pixels cannot be decoded: {error}"
        ) from None


def _is_cut_before_its_end(data: bytes, end: int, pixels: NDArray[Any]) -> bool:
    """Whether a JPEG stops before its last block though an end marker follows, as some writers close a cut file.

    libjpeg then fills the rest with mid grey (128) and only prints a warning. Filled corners give it away; to be sure,
    bytes are put before the marker: a complete scan ignores them, a cut one goes on decoding and changes. A cut
    progressive JPEG loses sharpness instead and is not found; nor are bytes damaged in place, for JPEG has no checksum.
    """
    corners = (pixels[y, x] for y in (slice(2), slice(-2, None)) for x in (slice(2), slice(-2, None)))
    if not any((corner == 128).all() for corner in corners):
        return False
    longer = _opencv(data[:end] + b"\x5a\x3c\xa5\x0f" * 256 + data[end:])
    return longer is None or not np.array_equal(longer, pixels)


def _white(pixels: NDArray[Any], bits: int, declared: int | None, percentile: float | None) -> tuple[float, int]:
    """The value of white and the significant bits, by the policy of `decode`. Raises `ImageError` depth-mismatch."""
    if bits == 8:
        return 255.0, 8
    if bits == 32:
        return _white_of_float(pixels, percentile), 32
    if declared is not None:
        _check_declared(pixels, bits, declared)
        return float(2**declared - 1), declared
    if bits == 16 and percentile is not None:
        return max(1.0, float(np.percentile(pixels, percentile, method="inverted_cdf"))), 16
    return float(2**bits - 1), bits


def _check_declared(pixels: NDArray[Any], bits: int, declared: int) -> None:
    if not 8 <= declared <= bits:
        raise ImageError("depth-mismatch", f"declared bit depth {declared}; expected 8 to {bits} for this file")
    highest = int(pixels.max())
    if highest < 2**declared:
        return
    shift = bits - declared
    hint = "correct the declared depth, or leave it out to use the full range"
    if not (pixels & (2**shift - 1)).any():
        hint = f"all values are multiples of {2**shift}: the samples are left-aligned, so leave the depth out"
    raise ImageError(
        "depth-mismatch", f"a pixel has the value {highest}; {declared} bits end at {2**declared - 1}; {hint}"
    )


def _white_of_float(pixels: NDArray[np.float32], percentile: float | None) -> float:
    if not np.isfinite(pixels).all():
        raise ImageError("unreadable", "a float image with values that are not finite (NaN or infinity)")
    if percentile is None:
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1:
            raise ImageError(
                "depth-mismatch", f"float values from {low:g} to {high:g}; expected 0 to 1, or set white_percentile"
            )
        return 1.0
    white = float(np.percentile(pixels, percentile, method="inverted_cdf"))
    if white <= 0:
        raise ImageError(
            "depth-mismatch", f"percentile {percentile:g} of the float image is {white:g}; expected above 0"
        )
    return white
