"""Pictures that show why: the image, what lies above the threshold in colour, the places, and a strip of words.

One palette, `PALETTE`: yellow just above the threshold, red far above it; high is hot. The scale is fixed in logits
above the threshold and never stretched to the image at hand, so that the same colour means the same thing on every
picture, and an image with nothing above the threshold stays grey. Picture pixels keep their source coordinates:
the picture is the top left part of the result, and the strip of words stands below it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Literal

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sbdzsl.verdict import Region

#: Name of the colour map, as in matplotlib: yellow (just above the threshold) to red.
PALETTE = "autumn_r"
#: Logits above the threshold at which the palette ends; everything hotter has its last colour.
FULL_SCALE_LOGITS = 6.0

_HEAT_OPACITY = 0.55
_MIN_WIDTH_PX = 200
_MAX_CAPTION_LINES = 4
_STRIP, _INK, _DIM = (24, 24, 24), (240, 240, 240), (176, 176, 176)
_MARK_COLOURS = {"defect": (229, 72, 77), "unseen": (245, 190, 60)}

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One picture of the report's gallery: encoded bytes, and words that the row does not hold, such as its size."""

    data: bytes
    media_type: Literal["image/png", "image/jpeg"]
    caption: tuple[str, ...] = ()


def draw_overlay(
    grey: NDArray[np.float32],
    heat: NDArray[np.float32] | None,
    map_threshold: float,
    regions: Sequence[Region],
    verdict: str,
    caption: str,
) -> NDArray[np.uint8]:
    """Draw one judged image.

    `grey` is [H, W] in [0, 1]; `heat` is [H, W] map logits, or None where there is no map (then there is no legend);
    `map_threshold` is a logit: only `heat` above it is coloured. `regions` are boxes in source pixels. Returns RGB
    [H', W', 3]: the picture at [:H, :W], below it a strip with verdict, caption and legend; W' is W, but at least
    200 px. Raises `ValueError` where the shapes differ.
    """
    if heat is not None and heat.shape != grey.shape:
        raise ValueError(f"the map is {heat.shape}, the image {grey.shape}: the map has to be in source pixels")
    tone = np.rint(np.clip(np.nan_to_num(grey), 0.0, 1.0) * 255).astype(np.uint8)
    picture = np.repeat(tone[:, :, None], 3, axis=2)
    if heat is not None:
        _colour(picture, heat, map_threshold)
    for region in regions:
        _box(picture, region)
    strip = _strip(max(grey.shape[1], _MIN_WIDTH_PX), verdict, caption, map_threshold if heat is not None else None)
    padding = strip.shape[1] - picture.shape[1]
    return np.vstack([np.pad(picture, ((0, 0), (0, padding), (0, 0)), constant_values=_STRIP[0]), strip])


def encode_png(rgb: NDArray[np.uint8]) -> bytes:
    """RGB [H, W, 3] as PNG, without loss; the same pixels give the same bytes."""
    return _encode(".png", rgb, [])


def encode_thumbnail(rgb: NDArray[np.uint8], max_width_px: int = 480, max_height_px: int = 960) -> bytes:
    """RGB [H, W, 3] as JPEG, shrunk by area until it fits; never enlarged."""
    height, width = rgb.shape[:2]
    scale = min(1.0, max_width_px / width, max_height_px / height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = rgb if scale == 1.0 else np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return _encode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 82])


def heat_colours(logits_above: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours [..., 3] of the fixed scale for logits above the threshold: 0 is its first colour, `FULL_SCALE_LOGITS`
    and more its last."""
    place = np.clip(logits_above / FULL_SCALE_LOGITS, 0.0, 1.0)
    return _palette()[np.rint(place * 255).astype(np.intp)]


@lru_cache(maxsize=1)
def _palette() -> NDArray[np.uint8]:
    return np.rint(matplotlib.colormaps[PALETTE](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


def _colour(picture: NDArray[np.uint8], heat: NDArray[np.float32], map_threshold: float) -> None:
    hot = heat > map_threshold
    colour = heat_colours(heat[hot] - np.float32(map_threshold))
    picture[hot] = np.rint((1 - _HEAT_OPACITY) * picture[hot] + _HEAT_OPACITY * colour).astype(np.uint8)


def _box(picture: NDArray[np.uint8], region: Region) -> None:
    """A white frame around the region with a black one around that: seen on any ground, and it hides no defect."""
    line = max(1, round(max(picture.shape[:2]) / 400))
    for offset, tone in ((2 * line, 0), (line, 255)):
        left, top = region.x - offset, region.y - offset
        right, bottom = region.x + region.width + offset, region.y + region.height + offset
        for rows, columns in (
            ((top, top + line), (left, right)),
            ((bottom - line, bottom), (left, right)),
            ((top, bottom), (left, left + line)),
            ((top, bottom), (right - line, right)),
        ):
            picture[max(rows[0], 0) : max(rows[1], 0), max(columns[0], 0) : max(columns[1], 0)] = tone


def _strip(width: int, verdict: str, caption: str, map_threshold: float | None) -> NDArray[np.uint8]:
    """The words below the picture [h, width, 3]; all sizes follow from the width."""
    size = max(11, round(width / 30))
    pad = size // 2
    font = _font("DejaVuSans.ttf", size)
    head = _font("DejaVuSans-Bold.ttf", size)
    lines = _wrap(caption, font, width - 2 * pad)
    line_height = round(size * 1.35)
    legend = 0 if map_threshold is None else round(2.6 * size)
    height = 2 * pad + line_height * (1 + len(lines)) + legend
    canvas = Image.new("RGB", (width, height), _STRIP)
    draw = ImageDraw.Draw(canvas)
    _mark(draw, pad, pad + size // 8, size, verdict)
    draw.text((pad + round(1.4 * size), pad), verdict.upper(), font=head, fill=_INK)
    for number, line in enumerate(lines, start=1):
        draw.text((pad, pad + number * line_height), line, font=font, fill=_INK)
    if map_threshold is not None:
        _legend(canvas, draw, pad, height - pad // 2 - legend + size // 2, size, map_threshold)
    return np.asarray(canvas, dtype=np.uint8)


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, size: int, verdict: str) -> None:
    """The verdict as a shape beside its word: a filled square, a triangle, else an empty square without colour."""
    line = max(1, size // 10)
    if verdict == "defect":
        draw.rectangle((x, y, x + size, y + size), fill=_MARK_COLOURS["defect"])
    elif verdict == "unseen":
        draw.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=_MARK_COLOURS["unseen"])
    else:
        draw.rectangle((x, y, x + size, y + size), outline=_DIM, width=line)


def _legend(canvas: Image.Image, draw: ImageDraw.ImageDraw, pad: int, y: int, size: int, map_threshold: float) -> None:
    """The colour scale with its ends: the threshold, and where the colours end, in logits."""
    font = _font("DejaVuSans.ttf", max(10, round(size * 0.8)))
    width = canvas.width - 2 * pad
    scale = heat_colours(np.linspace(0, FULL_SCALE_LOGITS, width, dtype=np.float32))
    bar = np.broadcast_to(scale, (max(4, size // 2), width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (pad, y))
    below = y + bar.shape[0] + size // 6
    end = f"≥ {map_threshold + FULL_SCALE_LOGITS:.1f} logits"
    draw.text((pad, below), f"above {map_threshold:.1f}", font=font, fill=_DIM)
    draw.text((pad + width - font.getlength(end), below), end, font=font, fill=_DIM)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width` px, broken at spaces where possible, within words where not; the end is cut."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < _MAX_CAPTION_LINES:
        fits = max(1, bisect_right(range(1, len(rest) + 1), width, key=lambda end: ceil(font.getlength(rest[:end]))))
        if fits < len(rest) and " " in rest[: fits + 1]:
            fits = rest.rindex(" ", 0, fits + 1)
        lines.append(rest[:fits])
        rest = rest[fits:].lstrip()
    if rest:
        lines[-1] = lines[-1][:-1] + "…"
    return lines


@lru_cache(maxsize=32)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib, so that pictures do not depend on the machine."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _encode(suffix: str, rgb: NDArray[np.uint8], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, np.ascontiguousarray(rgb[:, :, ::-1]), options)
    if not done:
        raise ValueError(f"OpenCV could not encode an array of shape {rgb.shape} as {suffix}")
    return data.tobytes()
