"""Changes of light, focus, noise, distance and pose: what an image of the same surface would be on another day.

An `Envelope` (settings) bounds the changes that a line promises to stay within. Copies drawn from it tell the router
which changes of the features are no change of surface (`fit.py`), and the `envelope` promise is calibrated on them.

Grey is float32 [H, W], black 0 and white 1; size and frame of an image never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import EnvelopeSettings

Grey = NDArray[np.float32]

# A narrower blur than this moves less light than interpolation does.
_NO_BLUR_PX = 0.15
# Share of extreme draws in which a kind of change takes part.
_TAKES_PART = 0.7


@dataclass(frozen=True, slots=True)
class Conditions:
    """One set of conditions; the defaults are those under which an image was taken.

    `gain` and `offset` (of white) act on the image after `gamma`; `blur_px` and `noise` (of white) are standard
    deviations; `zoom` above 1 is a nearer camera; `turn_degrees` is anticlockwise; flips are left-right and top-bottom.
    """

    gain: float = 1.0
    gamma: float = 1.0
    offset: float = 0.0
    blur_px: float = 0.0
    noise: float = 0.0
    zoom: float = 1.0
    turn_degrees: float = 0.0
    flips: tuple[bool, bool] = (False, False)

    def apply(self, grey: Grey, generator: np.random.Generator) -> Grey:
        """The image under these conditions: the scene moves, the lens blurs, the light changes, the sensor adds noise.

        `generator` draws the noise alone. What comes into view at the border is mirrored, as the surface goes on.
        """
        moved = _blur(_move(grey, self.zoom, self.turn_degrees, self.flips), self.blur_px)
        # The scene is never darker than black; a camera's values end at black and white.
        lit = np.clip(moved, 0, 1) ** np.float32(self.gamma) * np.float32(self.gain) + np.float32(self.offset)
        if self.noise > 0:
            noise = generator.standard_normal(grey.shape, np.float32) * np.float32(self.noise)
            lit = np.clip(lit, 0, 1) + noise
        return np.clip(lit, 0, 1, dtype=np.float32)


def draw_conditions(envelope: EnvelopeSettings, generator: np.random.Generator, *, extreme: bool = False) -> Conditions:
    """Conditions drawn from the envelope: evenly and all changes at once, factors evenly in their logarithm.

    With `extreme`, for the copies that a gate is fitted to, each kind of change (geometry, lens, light, sensor) takes
    part in 7 of 10 draws, and half of the amounts are the largest: evenly drawn ones hardly ever come near the edge,
    and a gate that has not seen it fails there.
    """

    def amount() -> float:
        drawn = generator.uniform(-1, 1)
        return float(np.sign(drawn) if extreme and generator.random() < 0.5 else drawn)

    def share() -> float:
        return float(not extreme or generator.random() < _TAKES_PART)

    geometry, lens, light, sensor = share(), share(), share(), share()
    return Conditions(
        gain=envelope.gain ** (light * amount()),
        gamma=envelope.gamma ** (light * amount()),
        offset=envelope.offset * light * amount(),
        blur_px=envelope.blur_px * lens * abs(amount()),
        noise=envelope.noise * sensor * abs(amount()),
        zoom=envelope.zoom ** (geometry * amount()),
        turn_degrees=envelope.turn_degrees * geometry * amount(),
        flips=(bool(generator.random() < 0.5), bool(generator.random() < 0.5)) if envelope.flips else (False, False),
    )


def changed_copies(
    grey: Grey, envelope: EnvelopeSettings, number: int, seed: Sequence[int], *, extreme: bool
) -> Iterator[Grey]:
    """`number` copies of an image under conditions drawn from the envelope; the same for the same `seed`."""
    generator = np.random.default_rng(seed)
    for _ in range(number):
        yield draw_conditions(envelope, generator, extreme=extreme).apply(grey, generator)


def _move(grey: Grey, zoom: float, turn_degrees: float, flips: tuple[bool, bool]) -> Grey:
    flipped = np.ascontiguousarray(grey[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1])
    if zoom == 1 and turn_degrees == 0:
        return flipped
    height, width = grey.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn_degrees, zoom)
    moved = cv2.warpAffine(flipped, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, np.float32)


def _blur(grey: Grey, deviation_px: float) -> Grey:
    return grey if deviation_px < _NO_BLUR_PX else np.asarray(cv2.GaussianBlur(grey, (0, 0), deviation_px), np.float32)
