"""Changes of light, focus, noise, distance and pose: what an image of the same surface would be on another day.

An `Envelope` (settings) bounds the changes that a line promises to stay within. Copies drawn from it tell the router
which changes of the features are no change of surface (`fit.py`), and the `envelope` promise is calibrated on them.

Grey is float32 [H, W], black 0 and white 1; size and frame of an image never change.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import EnvelopeSettings

Grey = NDArray[np.float32]

# A narrower blur than this moves less light than interpolation does.
_NO_BLUR_PX = 0.15


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


def draw_conditions(envelope: EnvelopeSettings, generator: np.random.Generator) -> Conditions:
    """Conditions drawn evenly from the envelope, all changes at once; factors evenly in their logarithm."""

    def factor(largest: float) -> float:
        return float(largest ** generator.uniform(-1, 1))

    return Conditions(
        gain=factor(envelope.gain),
        gamma=factor(envelope.gamma),
        offset=float(generator.uniform(-1, 1) * envelope.offset),
        blur_px=float(generator.uniform(0, envelope.blur_px)),
        noise=float(generator.uniform(0, envelope.noise)),
        zoom=factor(envelope.zoom),
        turn_degrees=float(generator.uniform(-1, 1) * envelope.turn_degrees),
        flips=(bool(generator.random() < 0.5), bool(generator.random() < 0.5)) if envelope.flips else (False, False),
    )


def _move(grey: Grey, zoom: float, turn_degrees: float, flips: tuple[bool, bool]) -> Grey:
    flipped = np.ascontiguousarray(grey[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1])
    if zoom == 1 and turn_degrees == 0:
        return flipped
    height, width = grey.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn_degrees, zoom)
    moved = cv2.warpAffine(
        flipped, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(moved, np.float32)


def _blur(grey: Grey, deviation_px: float) -> Grey:
    return grey if deviation_px < _NO_BLUR_PX else np.asarray(cv2.GaussianBlur(grey, (0, 0), deviation_px), np.float32)
