"""The ten textures of the drawn lake, each one function that draws its surface with or without its own kind of defect.

A texture draws the same numbers from its generator whether there is a flaw or not, so that the defect is exactly what
changes. Near neighbours for the router: brushed_steel and rolled_copper, cast_iron and sandpaper, leather and
painted_panel. Defects are 10 to 60 px long, their contrast about the texture's own.

Lengths are pixels, `x` to the right and `y` down, grey values 0 (black) to 1 (white).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[Any]  # floating; OpenCV and numpy disagree on which


@dataclass(frozen=True, slots=True)
class Flaw:
    """Where and how a surface goes wrong: centre, `length` 0 (small) to 1, `angle`, `strength` about 1, `sign` +-1."""

    x: float
    y: float
    length: float
    angle: float
    strength: float
    sign: int
    seed: int

    @staticmethod
    def draw(rng: np.random.Generator, size: int) -> Flaw:
        """A flaw somewhere in an image of `size` px, away from its rim."""
        x, y = rng.uniform(0.1 * size, 0.9 * size, 2)
        return Flaw(
            x=float(x),
            y=float(y),
            length=float(rng.random()),
            angle=float(rng.uniform(0, math.pi)),
            strength=float(rng.uniform(0.8, 1.25)),
            sign=int(rng.choice([-1, 1])),
            seed=int(rng.integers(2**31)),
        )

    def span(self, shortest: float, longest: float) -> float:
        """A length in pixels between the two, by how large this flaw is."""
        return shortest + (longest - shortest) * self.length

    def ellipse(self, size: int, semi_x: float, semi_y: float, angle: float | None = None, edge: float = 1.5) -> Grey:
        """1 inside, 0 outside, falling off over about `edge` pixels; [size, size]."""
        x, y = grid(size)
        turn = self.angle if angle is None else angle
        along = (x - self.x) * math.cos(turn) + (y - self.y) * math.sin(turn)
        across = (y - self.y) * math.cos(turn) - (x - self.x) * math.sin(turn)
        radius = np.sqrt((along / semi_x) ** 2 + (across / semi_y) ** 2)
        return 1 / (1 + np.exp(np.clip((radius - 1) * min(semi_x, semi_y) / edge * 2, -30, 30)))

    def blob(self, size: int, semi_x: float, semi_y: float, ragged: float) -> Grey:
        """An ellipse with a ragged rim; [size, size] in 0..1."""
        noise = _grain(np.random.default_rng(self.seed), size, min(semi_x, semi_y) / 2)
        return np.clip((self.ellipse(size, semi_x, semi_y, edge=4) - 0.5 + ragged * noise * 0.2) * 3, 0, 1) * (
            self.ellipse(size, 1.6 * semi_x, 1.6 * semi_y)
        )

    def stroke(self, size: int, length: float, angle: float, wander: float, width: float) -> Grey:
        """A line of `length` through the centre that turns by about `wander` radians a step; [size, size] in 0..1."""
        rng = np.random.default_rng(self.seed)
        steps = max(3, int(length / 4))
        directions = angle + np.cumsum(rng.normal(0, wander, steps))
        path = np.cumsum(np.stack([np.cos(directions), np.sin(directions)], 1) * length / steps, 0)
        points = np.round((path - path.mean(0) + [self.x, self.y]) * 16).astype(np.int32)
        canvas = np.zeros((size, size), np.uint8)
        cv2.polylines(canvas, [points], False, 255, 1, cv2.LINE_AA, shift=4)
        line = cv2.GaussianBlur(canvas.astype(np.float32), (0, 0), width)
        return line / max(float(line.max()), 1.0)


def grid(size: int) -> tuple[Grey, Grey]:
    """Pixel coordinates x [1, size] and y [size, 1], which broadcast to [size, size]."""
    axis = np.arange(size, dtype=np.float32)
    return axis[None, :], axis[:, None]


def _turned_grid(rng: np.random.Generator, size: int, degrees: float) -> tuple[Grey, Grey]:
    """Coordinates of a grid with a random phase, turned by up to about `degrees`; both [size, size]."""
    x, y = grid(size)
    angle = math.radians(float(rng.normal(0, degrees / 2)))
    phase_x, phase_y = rng.uniform(0, 200, 2)
    return (
        x * math.cos(angle) + y * math.sin(angle) + np.float32(phase_x),
        y * math.cos(angle) - x * math.sin(angle) + np.float32(phase_y),
    )


def _grain(rng: np.random.Generator, size: int, sigma: float) -> Grey:
    """Isotropic noise with features of about `sigma` pixels, mean 0, standard deviation 1; [size, size]."""
    shrink = max(1, int(sigma / 2))  # coarse noise is drawn coarse and enlarged, which is as good and far faster
    side = -(-size // shrink) + 4
    noise = cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), sigma / shrink)
    if shrink > 1:
        noise = cv2.resize(noise, (side * shrink, side * shrink), interpolation=cv2.INTER_CUBIC)
    noise = noise[:size, :size]
    return (noise - noise.mean()) / noise.std()


def _streaks(rng: np.random.Generator, size: int, length: float, width: float, degrees: float) -> Grey:
    """Noise drawn out along x to about `length`, `width` thick, turned by up to `degrees`; mean 0, std 1."""
    pad = size // 8 + 8
    side = size + 2 * pad
    noise: Grey = rng.standard_normal((side, int(side / length) + 4), np.float32)
    noise = cv2.GaussianBlur(noise, (1, 0), sigmaX=0.1, sigmaY=width)
    noise = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(rng.normal(0, degrees / 2)), 1.0)
    noise = cv2.warpAffine(noise, turn, (side, side), borderMode=cv2.BORDER_REFLECT)[pad:-pad, pad:-pad]
    return (noise - noise.mean()) / noise.std()


def _brushed_steel(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Fine streaks; the defect is a scratch across them."""
    texture = _streaks(rng, size, 40, 0.7, 4) + 0.6 * _streaks(rng, size, 12, 0.6, 4) + 0.4 * _grain(rng, size, 0.7)
    grey = 0.52 + 0.05 * texture
    if flaw:
        angle = math.radians(90) + (flaw.angle - math.pi / 2) * 0.7
        line = flaw.stroke(size, flaw.span(18, 45), angle, 0.06, 0.9)
        grey += 0.16 * flaw.strength * flaw.sign * line
    return grey


def _rolled_copper(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Broad streaks and roll bands; the defect is a smear along them, which wipes the streaks out."""
    bands = _streaks(rng, size, 4 * size, 6, 3)
    texture = _streaks(rng, size, 90, 1.3, 3) + 0.5 * _streaks(rng, size, 30, 0.7, 3) + 0.35 * _grain(rng, size, 0.7)
    grey = 0.55 + 0.045 * texture + 0.03 * bands
    if flaw:
        inside = flaw.ellipse(size, flaw.span(14, 26), flaw.span(6, 10), angle=0.0, edge=2)
        wiped = cv2.blur(grey, (15, 15)) + 0.06 * flaw.sign * flaw.strength
        grey += inside * (wiped - grey)
    return grey


def _cast_iron(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Coarse grain with pores; the defect is a pit: larger than a pore, lit at one rim."""
    pores = np.maximum(_grain(rng, size, 1.6) - 1.6, 0)
    grey = 0.42 + 0.05 * _grain(rng, size, 1.1) + 0.035 * _grain(rng, size, 3.2) - 0.09 * pores
    if flaw:
        radius = flaw.span(5.5, 9.5)
        pit = flaw.ellipse(size, radius, 0.75 * radius)
        rim = flaw.ellipse(size, 1.4 * radius, 1.05 * radius) - pit
        grey += flaw.strength * (0.07 * rim - 0.17 * pit)
    return grey


def _sandpaper(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Sharp grain; the defect is a worn spot, where the grain is flat and as bright as around."""
    grains = np.abs(_grain(rng, size, 0.9))
    density = np.clip(1 + 0.25 * _grain(rng, size, 12), 0.45, 1.6)
    texture = 0.09 * density * (grains - 0.8) + 0.02 * _grain(rng, size, 2.6)
    if flaw:
        inside = flaw.blob(size, flaw.span(12, 22), flaw.span(9, 15), 0.5)
        worn = 0.45 * cv2.GaussianBlur(texture, (0, 0), 1.0)
        texture += min(flaw.strength, 1.0) * inside * (worn - texture)
    return 0.45 + texture


def _ground_ceramic(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Fine grain with grinding arcs; the defect is a hairline crack."""
    x, y = _turned_grid(rng, size, 8)
    arcs = np.sin(np.hypot(x + 300, y - 60) * 0.9 + 1.5 * _grain(rng, size, 6))
    grey = 0.66 + 0.035 * _grain(rng, size, 0.8) + 0.014 * arcs + 0.02 * _grain(rng, size, 2.2)
    if flaw:
        crack = flaw.stroke(size, flaw.span(24, 50), flaw.angle, 0.35, 0.7)
        grey -= 0.17 * flaw.strength * crack
    return grey


def _painted_panel(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Orange peel, a relief lit from the left; the defect is a dent in the relief."""
    relief = _grain(rng, size, 3.4)
    if flaw:
        spread = flaw.span(5.5, 9.5)
        x, y = grid(size)
        relief = relief - 7.5 * flaw.strength * np.exp(-((x - flaw.x) ** 2 + (y - flaw.y) ** 2) / (2 * spread**2))
    shading = cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=1 / 8) + 0.5 * cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=1 / 8)
    return 0.6 + 0.22 * shading + 0.008 * _grain(rng, size, 0.7)


def _woven_fabric(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Plain weave of threads of uneven brightness; the defect is a thread that is missing for a few crossings."""
    period = 7.0
    x, y = _turned_grid(rng, size, 4)
    wave = 0.8 * _grain(rng, size, 14)
    u, v = (x + wave) / period, (y + 0.8 * _grain(rng, size, 14)) / period
    warp, weft = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    shade = rng.normal(0, 0.03, (2, 4096)).astype(np.float32)
    warp_on_top = (warp + weft) % 2 == 0
    across = np.where(warp_on_top, u - warp, v - weft) - 0.5
    along = np.where(warp_on_top, v - weft, u - warp) - 0.5
    own = np.where(warp_on_top, shade[0][warp % 4096], shade[1][weft % 4096])
    grey = 0.42 + 0.26 * np.cos(math.pi * across) * (1 - 1.1 * along**2) + own + 0.035 * _grain(rng, size, 0.8)
    if flaw:
        row, column = int(np.clip(flaw.y, 0, size - 1)), int(np.clip(flaw.x, 0, size - 1))
        gap = (weft == weft[row, column]) & ~warp_on_top & (np.abs(u - u[row, column]) * period < flaw.span(11, 22))
        soft = cv2.GaussianBlur(gap.astype(np.float32), (0, 0), 0.7)
        grey -= soft * (0.15 * flaw.strength + 0.5 * (grey - 0.55))
    return grey.astype(np.float32)


def _perforated_sheet(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Staggered holes in a sheet; the defect is a hole that is closed, or half closed."""
    pitch = 18.0
    x, y = _turned_grid(rng, size, 4)
    row = np.round(y / (pitch * math.sqrt(3) / 2))
    column = np.round(x / pitch - row % 2 / 2)
    from_x, from_y = x - (column + row % 2 / 2) * pitch, y - row * pitch * math.sqrt(3) / 2
    radius = 4.8 + 0.35 * rng.standard_normal(4096, np.float32)[(row * 61 + column).astype(np.int32) % 4096]
    hole = 1 / (1 + np.exp(2.2 * (np.hypot(from_x, from_y) - radius)))
    sheet = 0.6 + 0.035 * _streaks(rng, size, 30, 0.8, 4) + 0.02 * _grain(rng, size, 0.7)
    if flaw:
        at = int(np.clip(flaw.y, 12, size - 13)), int(np.clip(flaw.x, 12, size - 13))
        closed = (row == row[at]) & (column == column[at])
        hole = hole * np.where(closed, 0.55 - 0.45 * min(flaw.strength, 1.0), 1)
    return (sheet - 0.4 * hole).astype(np.float32)


def _wood_veneer(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Year rings cut lengthwise; the defect is a pin knot, which bends the rings around it."""
    y = _turned_grid(rng, size, 8)[1]
    across = y + 5 * _grain(rng, size, 40) + 0.6 * _streaks(rng, size, 40, 3, 6)
    fibre = _streaks(rng, size, 20, 0.7, 6)
    knot: Grey | float = 0.0
    if flaw:
        semi = flaw.span(5, 9)
        near = flaw.ellipse(size, 2.4 * semi, 1.3 * semi, angle=0.0, edge=5)
        side = np.tanh((grid(size)[1] - flaw.y) / 4)
        across = across - 8 * flaw.strength * near * side
        knot = 0.1 * flaw.strength * flaw.ellipse(size, semi, 0.7 * semi, angle=0.0, edge=2)
    rings = np.sin(across * 0.55 + 0.8 * np.sin(across * 0.083))
    return 0.56 + 0.05 * rings + 0.035 * fibre + 0.015 * _grain(rng, size, 0.7) - knot


def _leather(rng: np.random.Generator, size: int, flaw: Flaw | None) -> Grey:
    """Pebbles between creases; the defect is a stain, darker or paler, that leaves the relief alone."""
    pitch = 9
    cells = -(-size // pitch) + 2
    corner = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1).reshape(-1, 2) * pitch
    points = (corner + rng.uniform(0, pitch, corner.shape)).astype(np.int32)
    seeds = np.full((cells * pitch, cells * pitch), 255, np.uint8)
    seeds[points[:, 1], points[:, 0]] = 0
    pebbles = cv2.distanceTransform(seeds, cv2.DIST_L2, 5)[pitch : pitch + size, pitch : pitch + size]
    grey = 0.44 - 0.022 * cv2.GaussianBlur(pebbles, (0, 0), 0.8) + 0.02 * _grain(rng, size, 0.9)
    grey += 0.014 * _grain(rng, size, 9) + 0.1
    if flaw:
        stain = flaw.blob(size, flaw.span(9, 18), flaw.span(8, 13), 0.6)
        grey += 0.1 * flaw.strength * flaw.sign * cv2.GaussianBlur(stain, (0, 0), 1.5)
    return grey


#: Name of each surface and what draws it. Seeds hold the place in this table: append, never reorder.
SURFACES: dict[str, Callable[[np.random.Generator, int, Flaw | None], Grey]] = {
    "brushed_steel": _brushed_steel,
    "rolled_copper": _rolled_copper,
    "cast_iron": _cast_iron,
    "sandpaper": _sandpaper,
    "ground_ceramic": _ground_ceramic,
    "painted_panel": _painted_panel,
    "woven_fabric": _woven_fabric,
    "perforated_sheet": _perforated_sheet,
    "wood_veneer": _wood_veneer,
    "leather": _leather,
}
