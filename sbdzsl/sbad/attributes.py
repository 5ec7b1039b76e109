"""Attributes of surfaces: the table a person edits (paper, Table 1), and rows measured from images.

An attribute has a value in [0, 1] for each surface: 0 not at all, 1 fully. The row of a surface is its real class
embedding (CE). The embedded table has the 29 attributes of Table 1; users may give other names and another number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl.errors import DataError

#: The attributes of Table 1 that describe the surface itself; the other 22 describe its typical defect.
SURFACE_ATTRIBUTES = (
    "background: white",
    "background: black",
    "texture: grainy",
    "texture: smooth",
    "texture: regular pattern",
    "texture: irregular pattern",
    "texture: strip",
)

# Shares of the image that one defect covers: from here on it counts as medium, as large.
_MEDIUM_AREA, _LARGE_AREA = 0.005, 0.05
# A defect this many times as long as wide is a strip; a strip this many times as long as thick is slender.
_STRIP_RATIO, _SLENDER_RATIO = 4.0, 8.0


@dataclass(frozen=True, slots=True)
class AttributeTable:
    """Real class embeddings: `rows` maps a surface to its values, in the order of `names`, each in [0, 1]."""

    names: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]

    @property
    def surfaces(self) -> tuple[str, ...]:
        """The surfaces that have a row."""
        return tuple(self.rows)

    def matrix(self, surfaces: Sequence[str]) -> NDArray[np.float32]:
        """The rows of `surfaces`, [K, A] float32. Raises `DataError` (`bad-attributes`) where one is missing."""
        missing = [surface for surface in surfaces if surface not in self.rows]
        if missing:
            raise DataError(
                "bad-attributes",
                f"found no row for {', '.join(map(repr, missing))}, expected one for each surface; "
                "add the rows to the attribute table, or let them be measured from images",
            )
        return np.array([self.rows[surface] for surface in surfaces], dtype=np.float32)

    def with_row(self, surface: str, values: Mapping[str, float]) -> AttributeTable:
        """The table with one row added or replaced. Raises `DataError` (`bad-attributes`) for other names or values."""
        if set(values) != set(self.names):
            differing = ", ".join(sorted(set(values) ^ set(self.names)))
            raise DataError("bad-attributes", f"row {surface!r}: not in both row and table: {differing}")
        row = tuple(_value(str(values[name]), f"row {surface!r}, attribute {name!r}") for name in self.names)
        return AttributeTable(self.names, {**self.rows, surface: row})


def standard_attributes() -> AttributeTable:
    """The embedded table: the 29 attributes of Table 1 for public and drawn surfaces (sources: README.md)."""
    text = resources.files("sbdzsl.sbad").joinpath("attributes.csv").read_text(encoding="utf-8")
    return parse_attributes(text, "attributes.csv")


def parse_attributes(text: str, source: str) -> AttributeTable:
    """Read a table from CSV text: the header `surface,<attribute>,...`, then one row a surface.

    Raises `DataError` (`bad-attributes`) that names `source`, line, column, what was found and what was expected.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    header = [cell.strip() for cell in next(reader, [])]
    names = header[1:]
    if not names or header[0] != "surface" or "" in names or len(set(names)) < len(names):
        raise DataError(
            "bad-attributes",
            f"{source}: line 1: found {','.join(header)[:80]!r}, "
            "expected 'surface' and then the attribute names, all different and none empty",
        )
    rows: dict[str, tuple[float, ...]] = {}
    for cells in reader:
        place = f"{source}: line {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError("bad-attributes", f"{place}: found {len(cells)} columns, expected {len(header)}")
        surface = cells[0].strip()
        if not surface or surface in rows:
            raise DataError(
                "bad-attributes", f"{place}: column 1: found {surface!r}, expected the name of a surface not yet listed"
            )
        rows[surface] = tuple(
            _value(cell, f"{place}: column {column} ({name})")
            for column, (cell, name) in enumerate(zip(cells[1:], names, strict=True), start=2)
        )
    if not rows:
        raise DataError("bad-attributes", f"{source}: found no row below the header, expected one for each surface")
    return AttributeTable(tuple(names), rows)


def _value(cell: str, place: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise DataError("bad-attributes", f"{place}: found {cell.strip()!r}, expected a number from 0 to 1")
    return value


def measure_attributes(
    images: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_] | None]
) -> dict[str, float]:
    """Values of the 29 standard attributes, measured on images of one surface: a stand-in for a row nobody wrote.

    `images` are [H, W] float32 in [0, 1]; `masks`, one for each, are [H, W] bool, True on defects, or None. Surface
    values are means over the images; defect values are means over the images whose mask marks a defect, all 0 where
    none does. The reasons are 0: no image shows them. Weak masks (ellipses) make every defect look like a stain.
    Values are rounded to 0.01.
    """
    if not images or len(images) != len(masks):
        raise ValueError(f"{len(images)} images and {len(masks)} masks: expected the same number, at least one")
    surfaces = [_surface_values(image) for image in images]
    defects = [
        _defect_values(image, mask)
        for image, mask in zip(images, masks, strict=True)
        if mask is not None and mask.any()
    ]
    values = dict.fromkeys(standard_attributes().names, 0.0)
    for kind in (surfaces, defects):
        if kind:
            values |= {name: round(float(np.mean([row[name] for row in kind])), 2) for name in kind[0]}
    return values


def _surface_values(image: NDArray[np.float32]) -> dict[str, float]:
    """Brightness, grain, regularity and direction of one image; slow changes of light are taken out first."""
    flat = image - cv2.GaussianBlur(image, (0, 0), 16)
    contrast = float(flat.std())
    # Grain is what a blur of one pixel removes; a smooth surface has hardly any contrast at all.
    fine = float((image - cv2.GaussianBlur(image, (0, 0), 1)).std())
    smooth = float(np.clip(1 - contrast / 0.08, 0, 1))
    regular = _regularity(flat)
    return dict(
        zip(
            SURFACE_ATTRIBUTES,
            (
                float(image.mean()),
                1 - float(image.mean()),
                float(np.clip(fine / max(contrast, 1e-3) * 1.5 - 0.3, 0, 1)) * (1 - smooth),
                smooth,
                regular,
                (1 - regular) * (1 - smooth),
                _anisotropy(flat),
            ),
            strict=True,
        )
    )


def _regularity(flat: NDArray[np.float32]) -> float:
    """0 for noise, towards 1 for a pattern that repeats: the highest autocorrelation beyond its central peak."""
    side = min(256, *flat.shape)
    window = np.hanning(side)[:, None] * np.hanning(side)[None, :]
    power = np.abs(np.fft.fft2(flat[:side, :side] * window)) ** 2
    lags = np.fft.fftshift(np.fft.ifft2(power).real) / max(float(power.mean()), 1e-12)
    weights = np.fft.fftshift(np.fft.ifft2(np.abs(np.fft.fft2(window)) ** 2).real)
    correlation = lags / np.maximum(weights / weights.max(), 0.05)
    centre, reach = side // 2, max(side // 4, 2)
    near = correlation[centre - reach : centre + reach + 1, centre - reach : centre + reach + 1]
    # A repeat is a local maximum after a dip, so that mere smoothness (a wide central peak) does not count.
    peaks = (near >= cv2.dilate(near, np.ones((5, 5)))) & (near > 0)
    y, x = np.nonzero(peaks)
    best = 0.0
    for row, column in zip(y, x, strict=True):
        line = _values_between(near, (reach, reach), (int(row), int(column)))
        if len(line) > 2:
            best = max(best, min(float(near[row, column]), float(near[row, column] - line.min())))
    return float(np.clip(1.5 * best, 0, 1))


def _values_between(values: NDArray[np.float64], start: tuple[int, int], end: tuple[int, int]) -> NDArray[np.float64]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1])) + 1
    rows = np.linspace(start[0], end[0], steps).round().astype(int)
    return values[rows, np.linspace(start[1], end[1], steps).round().astype(int)]


def _anisotropy(flat: NDArray[np.float32]) -> float:
    """0 for no direction, 1 for parallel strips: coherence of the structure tensor over the whole image, stretched.

    Below 0.25 is what a light from one side gives to any relief; corduroy and brushed metal have 0.6 and more.
    """
    smoothed = cv2.GaussianBlur(flat, (0, 0), 1)
    dy, dx = np.gradient(smoothed)
    xx, yy, xy = float((dx * dx).mean()), float((dy * dy).mean()), float((dx * dy).mean())
    coherence = float(np.hypot(xx - yy, 2 * xy)) / max(xx + yy, 1e-12)
    return float(np.clip((coherence - 0.25) / 0.5, 0, 1))


def _defect_values(image: NDArray[np.float32], mask: NDArray[np.bool_]) -> dict[str, float]:
    """Colour, area, shape and distribution of the defects of one image: 1 for what fits, 0 for the rest."""
    marked = mask.astype(np.uint8)
    ring = cv2.dilate(marked, np.ones((15, 15), np.uint8)).astype(bool) & ~mask
    brighter = not ring.any() or float(image[mask].mean()) >= float(image[ring].mean())
    count, labels, stats, _ = cv2.connectedComponentsWithStats(marked, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = np.asarray(labels == 1 + int(areas.argmax()), dtype=np.uint8)
    share = float(areas.max()) / mask.size
    shape, length = _shape_of(largest, count - 1, share)
    shapes = [name for name in standard_attributes().names if name.startswith("defect shape: ")]
    return {
        "defect colour: white": float(brighter),
        "defect colour: black": float(not brighter),
        "defect area: large": float(share >= _LARGE_AREA),
        "defect area: medium": float(_MEDIUM_AREA <= share < _LARGE_AREA),
        "defect area: small": float(share < _MEDIUM_AREA),
        "defect distribution: concentration": float(areas.max() >= 0.8 * areas.sum()),
        "defect distribution: continuity": float(length >= 0.1 * np.hypot(*mask.shape) and count == 2),
    } | {name: float(name == f"defect shape: {shape}") for name in shapes}


def _shape_of(component: NDArray[np.uint8], count: int, share: float) -> tuple[str, float]:
    """The word of Table 1 for the largest defect of `count`, and its length in pixels."""
    y, x = np.nonzero(component)
    _, sides, _ = cv2.minAreaRect(np.stack([x, y], axis=1).astype(np.float32))
    long, short = max(sides) + 1, min(sides) + 1  # corners are pixel centres
    thickness = 2 * float(cv2.distanceTransform(np.pad(component, 1), cv2.DIST_L2, 5).max())
    length = max(long, len(x) / thickness)  # a bent line is longer than the rectangle around it
    if count >= 3:
        return "irregular sparse dots", length
    if length >= _STRIP_RATIO * thickness:
        if length < _SLENDER_RATIO * thickness:
            return "irregular long strip", length
        straight = long >= _STRIP_RATIO * short and len(x) >= 0.5 * long * short
        return ("regular straight slender strip" if straight else "irregular slender strip"), length
    if share >= _MEDIUM_AREA:
        return "irregular ellipse stain", length
    return ("small dot" if share < _MEDIUM_AREA / 5 else "irregular small bump"), length
