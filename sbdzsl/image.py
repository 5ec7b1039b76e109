"""Bytes of one file -> `Image`: pixels as stored, what stands for white, orientation applied, and every limit.

Pillow reads the header, so that a claim of 20000 x 20000 pixels costs microseconds and no memory; OpenCV decodes: it
keeps 16 bits and floats exact, applies the EXIF orientation for all five formats (as long as the flag is not
`IMREAD_UNCHANGED`) and gives no pixels at all for a file that ends early. Where it changes values (see `_pixels`) they
are put right. An animation and a second page are errors: judging the first alone would lose the others.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps, TiffImagePlugin

from sbdzsl.config import ImageSettings
from sbdzsl.errors import ImageError

# A bad file is an ImageError; OpenCV's own lines on stderr would repeat it without the name of the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# The limit of `ImageSettings` is checked as soon as a header is read; Pillow's own would forbid raising it.
PIL.Image.MAX_IMAGE_PIXELS = None

_DEFAULTS = ImageSettings()
_READ_FLAGS = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR

_SIGNATURES = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff",
    "bmp": b"BM",
    "webp": b"RIFF",
    "tiff": b"II*\0",
    "tiff, big-endian": b"MM\0*",
}

_JPEG_END = b"\xff\xd9"

#: Pixels that `Image.appearance` holds as floats at once, whatever the size of the image.
_STRIP_PIXELS = 2**20

#: Pillow's names of what a file may store; a Lab image, for one, has no white as grey and RGB have.
_MODES = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "F", "I", "I;12", "I;16", "I;16B"}
)

#: TIFF 6.0, section 8, and the values of them that matter here.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _EXTRA_SAMPLES = 258, 262, 338
_WHITE_IS_ZERO, _STRAIGHT_ALPHA = 0, 2


@dataclass(frozen=True, slots=True)
class Appearance:
    """What light and lens do to an image, whatever it shows: both of the grey image (black 0, white 1), native pixels.

    `brightness` is the mean. `sharpness` is the variance of the Laplacian (Pech-Pacheco et al. 2000): blur lowers it,
    noise raises it, and it grows with the square of the contrast, so that a change of light moves it as well.
    """

    brightness: float
    sharpness: float


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
        rows = max(1, _STRIP_PIXELS // self.width)
        if self.pixels.ndim == 2 or self.height <= rows:
            return _grey(self.pixels, self.white)
        # In strips: three planes of floats would take twelve times the memory of the file's pixels in grey.
        grey = np.empty(self.pixels.shape[:2], np.float32)
        for top in range(0, self.height, rows):
            grey[top : top + rows] = _grey(self.pixels[top : top + rows], self.white)
        return grey

    def appearance(self) -> Appearance:
        """Brightness and sharpness, measured in strips of rows: a large image takes no second copy of itself."""
        rows = max(1, _STRIP_PIXELS // self.width)
        total = laplacian = squares = 0.0
        for top in range(0, self.height, rows):
            bottom, above = min(top + rows, self.height), min(top, 1)
            strip = _grey(self.pixels[top - above : bottom + 1], self.white)
            own = slice(above, above + bottom - top)
            total += cv2.sumElems(strip[own])[0]
            # A neighbour beyond the border is the pixel itself: the border of the image is no edge.
            edges = cv2.Laplacian(strip, cv2.CV_32F, ksize=1, borderType=cv2.BORDER_REPLICATE)[own]
            laplacian += cv2.sumElems(edges)[0]
            squares += cv2.norm(edges, cv2.NORM_L2SQR)
        number = self.height * self.width
        return Appearance(total / number, max(squares / number - (laplacian / number) ** 2, 0.0))


def _grey(pixels: NDArray[Any], white: float) -> NDArray[np.float32]:
    grey = pixels.astype(np.float32)
    if grey.ndim == 3:
        grey = np.asarray(cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY), np.float32)
    # In place and not while converting: NumPy would do that in small pieces, at three times the cost.
    grey /= np.float32(white)
    return grey


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
    pixels, bits = _pixels(data, header)
    declared = settings.bit_depth if bit_depth is None else bit_depth
    white, depth = _white(pixels, bits, declared, settings.white_percentile)
    return Image(pixels, white, depth, _format(header), hashlib.sha256(data).hexdigest())


def decoded_bytes(data: bytes) -> int:
    """Bytes of memory that the pixels of a file will take, as its header says; 0 where it has none that can be read."""
    try:
        header = _read_header(data)
    except ImageError:
        return 0
    sample = 2 if "16" in header.mode else {"I": 4, "F": 4}.get(header.mode, 1)
    return int(header.width * header.height * len(header.getbands()) * sample)


def _read_header(data: bytes) -> PIL.Image.Image:
    """Open the file without decoding it; its format is found from the content, never from a name."""
    try:
        return PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "TIFF", "WEBP"))
    except Exception as error:  # noqa: BLE001  Pillow raises a dozen kinds for damaged headers
        raise _bad_header(data, error) from None


def _bad_header(data: bytes, error: Exception) -> ImageError:
    kind = next((kind for kind, mark in _SIGNATURES.items() if mark.startswith(data[: len(mark)])), None)
    if kind is None or (kind == "webp" and len(data) > 12 and data[8:12] != b"WEBP"):
        return _unsupported(f"bytes that start with {data[:16]!r}")
    if "truncated" in str(error).lower() or _ends_in_header(data, kind):
        return _truncated(data, kind)
    if kind.startswith("tiff"):
        return _unsupported("a TIFF of a kind that Pillow does not know, such as one with packed 10-bit samples")
    return ImageError("unreadable", f"{kind} file: {error}; copy it again from its source")


def _unsupported(found: str) -> ImageError:
    return ImageError(
        "unsupported-format", f"found {found}; expected one grey or RGB PNG, JPEG, BMP, TIFF or WebP image"
    )


def _ends_in_header(data: bytes, kind: str) -> bool:
    """Whether a file that cannot be read ends before what its own first bytes promise."""
    if len(data) < 64:
        return True  # no image is that small
    if kind == "jpeg":
        return _JPEG_END not in data
    if kind == "webp":
        return 8 + int(struct.unpack_from("<I", data, 4)[0]) > len(data)
    if kind.startswith("tiff"):
        order = "<" if data.startswith(b"II") else ">"
        directory = int(struct.unpack_from(order + "I", data, 4)[0])
        if directory + 2 > len(data):
            return True
        return directory + 2 + 12 * int(struct.unpack_from(order + "H", data, directory)[0]) > len(data)
    return False


def _truncated(data: bytes, kind: str) -> ImageError:
    return ImageError("truncated", f"{kind} file ends early, after {len(data)} bytes; copy it again from its source")


def _check_header(header: PIL.Image.Image, settings: ImageSettings) -> None:
    width, height = header.size
    size = f"{width} x {height} pixels"
    if max(width, height) > settings.max_side_px:
        raise ImageError("too-large", f"{size}; the limit max_side_px is {settings.max_side_px}")
    if width * height > settings.max_pixels:
        raise ImageError("too-large", f"{size}; the limit max_pixels is {settings.max_pixels}")
    if min(width, height) < settings.min_side_px:
        raise ImageError("too-small", f"{size}; the limit min_side_px is {settings.min_side_px}")
    if header.mode not in _MODES:
        raise _unsupported(f"{_format(header)} samples of kind {header.mode}")
    frames = _num_frames(header)
    if frames != 1:
        raise _unsupported(f"{frames} frames or pages in one {_format(header)} file")


def _num_frames(header: PIL.Image.Image) -> int:
    """Frames or pages of the file; Pillow goes through all of them."""
    try:
        return int(getattr(header, "n_frames", 1))
    except Exception as error:  # noqa: BLE001  as in `_read_header`: the first page is sound, one after it is not
        raise ImageError(
            "unreadable", f"{_format(header)} file: a page after the first is damaged: {error}; copy it again"
        ) from None


def _format(header: PIL.Image.Image) -> str:
    return str(header.format).lower()


def _pixels(data: bytes, header: PIL.Image.Image) -> tuple[NDArray[Any], int]:
    """Pixels, and bits a sample (8, 10, 12, 14, 16; 32 for float). What OpenCV would change is put right."""
    tags = header.tag_v2 if isinstance(header, TiffImagePlugin.TiffImageFile) else {}
    stored_bits = tags.get(_BITS_PER_SAMPLE, (None,))[0]
    if header.mode == "RGBA" and stored_bits == 8 and _STRAIGHT_ALPHA in tags.get(_EXTRA_SAMPLES, ()):
        # OpenCV multiplies the colour by alpha here, also with `IMREAD_UNCHANGED`; Pillow does not.
        return _by_pillow(header)[..., :3].copy(), 8
    pixels = _by_opencv(data)
    if pixels is None:
        raise _bad_pixels(data, header)
    if header.format == "JPEG" and _is_cut_before_its_end(data, pixels):
        raise _truncated(data, "jpeg")
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    if pixels.dtype not in (np.uint8, np.uint16, np.float32) or pixels.ndim not in (2, 3):
        raise _unsupported(f"{_format(header)} samples of type {pixels.dtype}")
    bits = {"u": 8 * pixels.itemsize, "f": 32}[pixels.dtype.kind]
    if bits == 16 and stored_bits is not None and 8 < stored_bits < bits:
        bits = stored_bits
        pixels >>= 16 - bits  # OpenCV moves packed samples to the top of 16 bits
    if bits > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        pixels = (1 if bits == 32 else 2**bits - 1) - pixels
    if pixels.ndim == 3:
        pixels = pixels[..., 0].copy() if header.mode == "LA" else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return pixels, bits


def _by_opencv(data: bytes) -> NDArray[Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS)
    except cv2.error:
        return None


def _by_pillow(header: PIL.Image.Image) -> NDArray[np.uint8]:
    try:
        return np.array(ImageOps.exif_transpose(header))
    except Exception as error:  # noqa: BLE001  Pillow raises a dozen kinds for damaged files
        raise ImageError("unreadable", f"{_format(header)} file: the pixels cannot be decoded: {error}") from None


def _bad_pixels(data: bytes, header: PIL.Image.Image) -> ImageError:
    """Why there are no pixels: OpenCV does not say, so Pillow is asked."""
    ends_early = header.format == "PNG" and b"IEND" not in data[-64:] and b"IEND" not in data
    try:
        header.load()
    except Exception as error:  # noqa: BLE001  as above
        ends_early = ends_early or "truncated" in str(error).lower()
    if ends_early or _ends_in_header(data, _format(header)):
        return _truncated(data, _format(header))
    return ImageError("unreadable", f"{_format(header)} file: it has a header but its pixels cannot be decoded")


def _is_cut_before_its_end(data: bytes, pixels: NDArray[Any]) -> bool:
    """Whether a JPEG stops before its last block though an end marker follows, as some writers close a cut file.

    libjpeg then fills the rest with mid grey (128) and only prints a warning. Filled corners give it away; to be sure,
    bytes are put before the marker: a complete scan ignores them, a cut one goes on decoding and changes. A cut
    progressive JPEG loses sharpness instead and is not found; nor are bytes damaged in place, for JPEG has no checksum.
    """
    end = data.rfind(_JPEG_END)
    if end < 0:
        return True
    corners = (pixels[y, x] for y in (slice(2), slice(-2, None)) for x in (slice(2), slice(-2, None)))
    if not any((corner == 128).all() for corner in corners):
        return False
    longer = _by_opencv(data[:end] + b"\x5a\x3c\xa5\x0f" * 256 + data[end:])
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
