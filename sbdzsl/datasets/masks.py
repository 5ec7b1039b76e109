"""Masks of five kinds -> where the defect is, bool [H, W].

    pixels    an image of the size of its own; a pixel is defect above half of the scale
    ellipse   as pixels; a weak region drawn around the defect, as DAGM's
    rle       runs `start length ...`, pixels counted from 1 down the columns (Severstal), or COCO's counts
    box       `x y width height`, several separated by `;` (regions of verdicts are written so), or Pascal VOC XML
    polygon   `x y x y x y ...`, several separated by `;`

Lengths are pixels, the origin is the upper left corner of the upper left pixel. A pixel belongs to a polygon or a box
if its centre does; one too thin to hold any centre gets the pixels that its outline runs through, so that a hair crack
does not vanish. What lies outside the image is cut off. Runs, boxes and polygons are files of their own or stand in a
file of many (`annotation_files`).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl import image, lake
from sbdzsl.config import ImageSettings
from sbdzsl.datasets import annotation_files
from sbdzsl.errors import DataError, ImageError

Mask = NDArray[np.bool_]
Size = tuple[int, int]

_READERS = 16


def read_mask(uri: str, kind: str | None, shape: Size) -> Mask:
    """The mask at `uri`, bool [H, W]: of the size that the file states, of `shape` (H, W) where it states none.

    Raises `DataError` bad-mask for what cannot be read as `kind` (None: pixels), `LakeError`.
    """
    annotation = annotation_files.find(uri)
    if annotation is None:
        return _read_file(uri, kind, shape)
    mask = np.zeros(annotation.size or shape, np.bool_)
    for one_kind, code in annotation.codes:
        mask |= _drawn(one_kind, code, mask.shape, uri)
    return mask


def _read_file(uri: str, kind: str | None, shape: Size) -> Mask:
    data = lake.read_bytes(uri)
    if kind not in DRAWERS:
        return _above_half_scale(mask_values(data, uri))
    if kind == "box" and data.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"):
        return _filled_voc(data, uri, shape)
    try:
        return _drawn(kind, data.decode("ascii"), shape, uri)
    except UnicodeDecodeError:
        raise DataError("bad-mask", f"{uri}: expected a text file with numbers") from None


def mask_values(data: bytes, uri: str) -> NDArray[Any]:
    """A mask image as stored, [H, W], the largest channel of a colour image. Raises `DataError` bad-mask."""
    try:
        pixels = image.decode(data, ImageSettings(min_side_px=1)).pixels
    except ImageError as error:
        raise DataError("bad-mask", f"{uri}: {error.code}: {error.message}") from None
    return pixels.max(axis=2) if pixels.ndim == 3 else pixels


def any_above_zero(uris: Sequence[str]) -> list[bool]:
    """Whether each mask image holds any value above 0: what labels images where nothing else does."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda uri: bool(mask_values(lake.read_bytes(uri), uri).max() > 0), uris))


def _above_half_scale(values: NDArray[Any]) -> Mask:
    is_binary = values.dtype.kind == "f" or values.max() <= 1
    scale = 1 if is_binary else int(np.iinfo(values.dtype).max)
    return np.asarray(values > scale / 2)


def _filled_voc(data: bytes, uri: str, shape: Size) -> Mask:
    """Pascal VOC: corners are pixels counted from 1, both included."""
    try:
        root = ElementTree.fromstring(data)
        declared = int(root.findtext("size/height", "")), int(root.findtext("size/width", ""))
        corners = [
            [round(float(box.findtext(key, ""))) for key in ("xmin", "ymin", "xmax", "ymax")]
            for box in root.iter("bndbox")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError("bad-mask", f"{uri}: not a Pascal VOC file with size and bndbox ({error})") from None
    mask = np.zeros(declared if declared != (0, 0) else shape, np.bool_)
    for left, top, right, bottom in corners:
        mask[max(top - 1, 0) : bottom, max(left - 1, 0) : right] = True
    return mask


def _drawn(kind: str, code: Any, shape: Size, uri: str) -> Mask:
    if kind not in DRAWERS:
        raise DataError("bad-mask", f"{uri}: a code of kind {kind!r}; expected one of {', '.join(DRAWERS)}")
    try:
        return DRAWERS[kind](code, shape)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("bad-mask", f"{uri}: {error}") from None


def draw_runs(code: str | dict[str, Any], shape: Size) -> Mask:
    """Run lengths: text with pairs of start and length, or COCO's `{"size": [H, W], "counts": list or string}`.

    Both go down the columns. Raises `ValueError` for what is neither, or leaves the image.
    """
    flat = np.zeros(shape[0] * shape[1], np.bool_)
    if isinstance(code, str):
        for start, length in _numbers(code, "start length", np.int64).tolist():
            if start < 1 or length < 1 or start - 1 + length > flat.size:
                raise ValueError(f"run {start} {length} leaves an image of {shape[1]}x{shape[0]} px")
            flat[start - 1 : start - 1 + length] = True
        return flat.reshape(shape[1], shape[0]).T
    counts = code["counts"]
    counts = np.array(_decompressed(counts) if isinstance(counts, str) else counts, np.int64)
    if tuple(code["size"]) != shape or counts.sum() != flat.size or (counts < 0).any():
        raise ValueError(
            f"runs over {counts.sum()} px of a mask of height and width {code['size']}; "
            f"the image is {shape[1]}x{shape[0]} px"
        )
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(shape[1], shape[0]).T


def _decompressed(text: str) -> list[int]:
    """COCO's compressed counts: characters from `0` on hold 5 bits each, the lowest first, and a bit for `goes on`.

    From the fourth on, what is stored is the difference to the count before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} in compressed counts; expected characters from '0' to 'o'")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:  # the sign
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed counts end in the middle of a number")
    return counts


def draw_boxes(code: str | Sequence[float], shape: Size) -> Mask:
    """Boxes `x y width height`: text, several separated by `;`, or one as numbers."""
    mask = np.zeros(shape, np.bool_)
    for part in code.split(";") if isinstance(code, str) else [code]:
        for x, y, width, height in _numbers(part, "x y width height", np.float64).tolist():
            if width < 0 or height < 0:
                raise ValueError(f"a box of {width:g}x{height:g} px; expected x y width height")
            _fill(mask, np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]))
    return mask


def draw_polygons(code: str | Sequence[Sequence[float]], shape: Size) -> Mask:
    """Polygons `x y x y x y ...`: text, several separated by `;`, or a list of lists of numbers."""
    mask = np.zeros(shape, np.bool_)
    for part in code.split(";") if isinstance(code, str) else code:
        vertices = _numbers(part, "x y", np.float64)
        if len(vertices) < 3:
            raise ValueError(f"a polygon of {len(vertices)} points; expected three or more")
        _fill(mask, vertices)
    return mask


#: What draws a code of each kind: code, (H, W) -> bool [H, W]. They raise `ValueError`.
DRAWERS: dict[str, Callable[[Any, Size], Mask]] = {"rle": draw_runs, "box": draw_boxes, "polygon": draw_polygons}


def _numbers(code: str | Sequence[float], names: str, dtype: type) -> NDArray[Any]:
    """[n, names] numbers; `names` says what a group of them is, for the message."""
    try:
        numbers: NDArray[Any] = np.array(code.split() if isinstance(code, str) else code, dtype)
        if not numbers.size or not np.isfinite(numbers).all():
            raise ValueError("nothing, or not finite")
        return numbers.reshape(-1, len(names.split()))
    except ValueError:
        raise ValueError(f"found {code!s:.60}; expected numbers in groups of {names}") from None


def _fill(mask: Mask, vertices: NDArray[np.float64]) -> None:
    """Set the pixels whose centres are inside the polygon [n, 2] (x, y), by the even-odd rule."""
    height, width = mask.shape
    top = int(np.clip(np.floor(vertices[:, 1].min()), 0, height))
    bottom = int(np.clip(np.ceil(vertices[:, 1].max()), top, height))
    # An edge that crosses the line through a row's centres flips all pixels to the right of the crossing.
    flips = np.zeros((bottom - top, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        first, last = (int(np.clip(np.ceil(y - 0.5), top, bottom)) for y in sorted((y0, y1)))
        rows = np.arange(first, last)
        crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0) if len(rows) else np.empty(0)
        flips[rows - top, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)] += 1
    inside = np.cumsum(flips, axis=1)[:, :width] % 2 == 1
    if inside.any():
        mask[top:bottom] |= inside
        return
    outline = np.zeros(mask.shape, np.uint8)
    cv2.polylines(outline, [np.floor(vertices).astype(np.int32)], isClosed=True, color=1)
    mask |= outline.astype(np.bool_)
