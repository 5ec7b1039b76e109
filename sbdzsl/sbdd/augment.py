"""What training does to images: defects drawn or pasted into good ones, then geometry and light on image and mask.

Shapes: `H`, `W` network pixels. Grey is float32 in [0, 1]. Everything random comes from the generator that
is passed in: same generator state, same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl.datasets.random_textures import random_texture

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: The more real defects there are to paste, the rarer is a drawn one: n in n + 4 altered images get one of n real ones.
#: What a defect is on this surface they know better; a drawn hair teaches alarms where hairs are harmless.
DRAWN_RESERVE = 4

#: Share of images that are turned and zoomed; the others keep their pixels, since interpolation blurs fine texture.
WARPED_SHARE = 0.5
MAX_TURN_DEGREES = 8.0
MAX_ZOOM = 0.1

#: A drawn defect changes its pixels by at least so many deviations of the fine texture, on the mean: what nobody can
#: see teaches a detector to alarm at nothing. Redrawn a few times until it does.
VISIBLE, MAX_TRIES = 0.5, 8

#: Brightness is shifted and contrast scaled by up to this.
MAX_LIGHT = 0.2


class DefectDrawer:
    """Puts a defect into a good image: a real one cut out of the training set, or a drawn one.

    Drawn: a crack, a stroke (scratch), a soft blob, an ellipse (stain, hole), a local change of the texture (blurred,
    sharpened, flattened), a patch from elsewhere or another material; contrast is in deviations of the image at hand.
    `sources` are (grey [H, W], mask [H, W]) of defective training images, in network pixels.
    """

    def __init__(self, sources: Sequence[tuple[Grey, Mask]]) -> None:
        self._cutouts = [cutout for grey, mask in sources if (cutout := _cut_out(grey, mask)) is not None]

    def draw(self, grey: Grey, generator: np.random.Generator) -> tuple[Grey, Mask]:
        """A defective copy of the good image `grey` [H, W] and the mask [H, W] of its defect, never empty."""
        num = len(self._cutouts)
        if num and generator.random() < num / (num + DRAWN_RESERVE):
            cutout = self._cutouts[generator.integers(num)]
            return _paste(grey, *cutout, generator)
        for _ in range(MAX_TRIES):
            kind = generator.choice(len(DRAWN_KINDS), p=list(DRAWN_KINDS.values()))
            image, mask = list(DRAWN_KINDS)[kind](grey, generator)
            if float(np.abs(image - grey)[mask].mean()) > VISIBLE * fine_texture(grey):
                break
        return image, mask


def draw_stroke(grey: Grey, generator: np.random.Generator) -> tuple[Grey, Mask]:
    """A scratch or crack: a wandering line of 1 to 3 pixels, sometimes with a blot on it."""
    height, width = grey.shape
    steps = int(generator.integers(4, 14))
    reach = generator.uniform(0.1, 0.6) * min(height, width) / steps
    headings = generator.uniform(0, 2 * np.pi) + np.cumsum(generator.normal(0, 0.35, steps))
    path = np.stack([np.cos(headings), np.sin(headings)], axis=1) * reach * generator.uniform(0.6, 1.4, (steps, 1))
    points = generator.uniform((0, 0), (width, height)) + np.cumsum(path, axis=0)
    canvas = np.zeros(grey.shape, np.uint8)
    # Points may leave the image: polylines clips, and the fall-back below keeps the mask from being empty.
    cv2.polylines(canvas, [np.round(points).astype(np.int32)], False, 255, int(generator.integers(1, 4)))
    if generator.random() < 0.3 or not canvas.any():
        x, y = np.clip(np.round(points[0]), 0, (width - 1, height - 1)).astype(int)
        cv2.circle(canvas, (int(x), int(y)), int(generator.integers(2, 6)), 255, -1)
    return _shade(grey, _soften(canvas, 0.7), generator), canvas > 0


def draw_crack(grey: Grey, generator: np.random.Generator) -> tuple[Grey, Mask]:
    """A crack or hair: long and jagged, its width and depth changing along the way, fading out towards its ends."""
    height, width = grey.shape
    steps = int(generator.integers(16, 64))
    reach = generator.uniform(0.15, 1.2) * min(height, width) / steps
    drift = np.cumsum(generator.normal(0, 0.12, steps)) + generator.normal(0, generator.uniform(0.1, 0.6), steps)
    headings = generator.uniform(0, 2 * np.pi) + drift
    path = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], axis=1) * reach, axis=0)
    centre = generator.uniform((0, 0), (width, height))
    points = path - path[steps // 2] + centre
    depth = 0.6 + 0.4 * np.sin(np.linspace(0, np.pi, steps)) + generator.normal(0, 0.15, steps)
    width_px = float(np.exp(generator.uniform(np.log(0.7), np.log(6))))
    widths = width_px * np.clip(0.8 + np.cumsum(generator.normal(0, 0.12, steps)), 0.3, 1.6)
    canvas = np.zeros(grey.shape, np.uint8)
    for i in range(steps - 1):
        # Sixteenths of a pixel, so that a slow bend is no staircase; what is thinner than a pixel is fainter.
        ends = [tuple(np.round(16 * points[j]).astype(int).tolist()) for j in (i, i + 1)]
        faded = float(np.clip(255 * depth[i] * min(1.0, widths[i]), 60, 255))
        cv2.line(canvas, ends[0], ends[1], faded, max(1, round(float(widths[i]))), cv2.LINE_AA, 4)
    if not (canvas > 50).any():
        x, y = np.clip(centre, 0, (width - 1, height - 1)).astype(int)
        cv2.circle(canvas, (int(x), int(y)), 2, 255, -1)
    opacity = _soften(canvas, float(generator.uniform(0.35, 0.7) + 0.25 * width_px * generator.random()))
    # Blurred, a thin line would be fainter than it was drawn to be.
    return _shade(grey, opacity / max(float(opacity.max()), 0.1), generator, weakest=3.0), canvas > 50


def draw_blob(grey: Grey, generator: np.random.Generator) -> tuple[Grey, Mask]:
    """A stain or pit of irregular outline with a soft rim."""
    mask = _ellipse(grey.shape, generator, 0.02, 0.12)
    noise = _blur(generator.standard_normal(grey.shape, np.float32), 3.0)
    ragged = mask & (noise > np.quantile(noise[mask], 0.25))
    ragged = ragged if ragged.any() else mask
    return _shade(grey, _soften(ragged.astype(np.uint8) * 255, 1.5), generator), ragged


def draw_ellipse(grey: Grey, generator: np.random.Generator) -> tuple[Grey, Mask]:
    """A hole, bubble or dent: an ellipse of even shade."""
    mask = _ellipse(grey.shape, generator, 0.01, 0.1)
    return _shade(grey, _soften(mask.astype(np.uint8) * 255, 0.7), generator), mask


def change_texture(grey: Grey, generator: np.random.Generator) -> tuple[Grey, Mask]:
    """A place where the texture itself is blurred, sharpened or has another contrast."""
    mask = _ellipse(grey.shape, generator, 0.04, 0.2)
    smooth = _blur(grey, float(generator.uniform(1.0, 3.0)))
    kind = generator.integers(3)
    if kind == 0:
        other = smooth
    elif kind == 1:
        other = grey + generator.uniform(1.0, 2.5) * (grey - smooth)
    else:
        mean = _blur(grey, 12.0)
        other = mean + (grey - mean) * generator.choice([generator.uniform(0.2, 0.6), generator.uniform(1.6, 2.5)])
    return _blend(grey, other, _soften(mask.astype(np.uint8) * 255, 2.0)), mask


def move_patch(grey: Grey, generator: np.random.Generator) -> tuple[Grey, Mask]:
    """A patch of the image, turned over and put elsewhere (after CutPaste, Li et al. 2021)."""
    mask = _ellipse(grey.shape, generator, 0.03, 0.15)
    shift = (int(generator.integers(grey.shape[0] // 4, 1 + 3 * grey.shape[0] // 4)), 0)
    moved = np.roll(grey, (shift[0], int(generator.integers(grey.shape[1]))), axis=(0, 1))
    turned = moved[::-1, ::-1] if generator.random() < 0.5 else moved[::-1]
    return _blend(grey, turned, _soften(mask.astype(np.uint8) * 255, 0.7)), mask


def draw_foreign(grey: Grey, generator: np.random.Generator) -> tuple[Grey, Mask]:
    """Another material showing through: islands of a random texture (DRAEM, Zavrtanik et al. 2021)."""
    near = _ellipse(grey.shape, generator, 0.04, 0.25)
    noise = _perlin(grey.shape, generator)
    mask = near & (noise > np.quantile(noise[near], generator.uniform(0.2, 0.7)))
    mask = mask if mask.any() else near
    inside = grey[mask]
    spread = max(float(inside.std()), 0.01) * np.exp(generator.uniform(-0.7, 0.9))
    shift = generator.choice([-1.0, 1.0]) * generator.uniform(0, 3) * spread
    other = random_texture(grey.shape, generator) * np.float32(spread) + np.float32(inside.mean() + shift)
    opacity = np.float32(generator.uniform(0.5, 1)) * _soften(mask.astype(np.uint8) * 255, 0.7)
    return _blend(grey, other, opacity), mask


#: Kinds of drawn defects and how often each is drawn; none is chosen by what a surface's own defects look like.
DRAWN_KINDS: dict[Callable[[Grey, np.random.Generator], tuple[Grey, Mask]], float] = {
    draw_crack: 0.25,
    draw_stroke: 0.15,
    draw_blob: 0.12,
    draw_ellipse: 0.12,
    change_texture: 0.14,
    move_patch: 0.1,
    draw_foreign: 0.12,
}


def augment(planes: Grey, generator: np.random.Generator) -> Grey:
    """Flip, turn, zoom and relight one image with whatever belongs to its pixels.

    `planes` float32 [H, W, P]: first the grey in [0, 1], then mask and weights, which move with it; light touches the
    grey alone. Comes back in its shape, the grey again in [0, 1]. What a turn brings in from outside is mirrored.
    """
    for axis in (0, 1):
        if generator.random() < 0.5:
            planes = np.flip(planes, axis)
    planes = np.ascontiguousarray(planes)
    if generator.random() < WARPED_SHARE:
        height, width = planes.shape[:2]
        turn = generator.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES)
        zoom = generator.uniform(1 - MAX_ZOOM, 1 + MAX_ZOOM)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn, zoom)
        planes = np.asarray(cv2.warpAffine(planes, matrix, (width, height), borderMode=cv2.BORDER_REFLECT), np.float32)
    shift, gain = generator.uniform(-MAX_LIGHT, MAX_LIGHT, 2).astype(np.float32)
    planes[..., 0] = (planes[..., 0] * (1 + gain) + np.float32(0.5) * shift).clip(0, 1)
    return planes


def _cut_out(grey: Grey, mask: Mask) -> tuple[Grey, Mask] | None:
    """The defect of an image with a rim of good surface around it; None if it is no place but most of the image."""
    if not mask.any():
        return None
    ys, xs = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    y0, y1, x0, x1 = max(0, ys[0] - 3), ys[-1] + 4, max(0, xs[0] - 3), xs[-1] + 4
    cut = grey[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    return cut if cut[1].size <= 0.25 * mask.size else None


def _paste(grey: Grey, patch: Grey, mask: Mask, generator: np.random.Generator) -> tuple[Grey, Mask]:
    """Put a cut-out defect somewhere: mirrored, zoomed, and as bright at its rim as the surface it lands on."""
    for axis in (0, 1):
        if generator.random() < 0.5:
            patch, mask = np.flip(patch, axis), np.flip(mask, axis)
    zoom = generator.uniform(0.7, 1.4)
    height, width = (max(1, min(round(a * zoom), b)) for a, b in zip(patch.shape, grey.shape, strict=True))
    patch = _resize(patch, height, width)
    soft = _resize(mask.astype(np.float32), height, width)
    soft[soft.argmax() // width, soft.argmax() % width] = 1  # shrunk away or not, a defect is what was promised
    y = int(generator.integers(grey.shape[0] - height + 1))
    x = int(generator.integers(grey.shape[1] - width + 1))
    place = np.s_[y : y + height, x : x + width]
    rim = soft < 0.5
    offset = float(grey[place][rim].mean() - patch[rim].mean()) if rim.any() else 0.0
    image, pasted = grey.copy(), np.zeros(grey.shape, np.bool_)
    image[place] = _blend(grey[place], patch + np.float32(offset), _blur(soft, 0.7))
    pasted[place] = soft >= 0.5
    return image, pasted


def _ellipse(shape: tuple[int, ...], generator: np.random.Generator, smallest: float, largest: float) -> Mask:
    """A filled ellipse with its centre in the image; half axes as shares of the image's shorter side."""
    height, width = shape
    axes = np.maximum(1, generator.uniform(smallest, largest, 2) * min(height, width)).astype(int)
    centre = (int(generator.integers(width)), int(generator.integers(height)))
    canvas = np.zeros((height, width), np.uint8)
    turn = float(generator.uniform(0, 180))
    cv2.ellipse(canvas, centre, (int(axes[0]), int(axes[1])), turn, 0, 360, 255, -1)
    return canvas > 0


def perlin_places(shape: tuple[int, int], generator: np.random.Generator) -> Mask:
    """Islands [h, w] on a map of cells that cover at most a tenth of it, for noise in features; never empty."""
    noise = _perlin(shape, generator)
    return noise >= np.quantile(noise, generator.uniform(0.9, 0.995), method="higher")


def _perlin(shape: tuple[int, ...], generator: np.random.Generator) -> Grey:
    """Smooth noise of a few octaves, the coarsest with cells of 8 to 64 pixels."""
    noise = np.zeros(shape, np.float32)
    cell = float(np.exp(generator.uniform(np.log(8), np.log(64))))
    for octave in range(3):
        rows, columns = (max(2, int(side * 2**octave / cell)) for side in shape)
        grid = generator.standard_normal((rows, columns), np.float32)
        noise += cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC) / np.float32(2**octave)
    return noise


def _soften(canvas: NDArray[np.uint8], sigma: float) -> Grey:
    """A mask of 0 and 255 as opacity in [0, 1] with a rim of `sigma` pixels."""
    return _blur(canvas.astype(np.float32) / np.float32(255), sigma)


def fine_texture(grey: Grey) -> float:
    """Deviation of what is finer than about 4 pixels; of an image without any, the noise of a quiet camera."""
    return max(float((grey - _blur(grey, 4.0)).std()), 0.005)


def _shade(grey: Grey, opacity: Grey, generator: np.random.Generator, weakest: float = 2.0) -> Grey:
    """Darken (more often) or brighten by `weakest` to 12 deviations of the fine texture, or paint in one grey (1 in 4).

    Real scratches and cracks lie at 2 to 8 on the mean, holes and glare far outside. Of the fine texture, since the
    deviation of the whole image is mostly uneven light.
    """
    if generator.random() < 0.25:
        return _blend(grey, np.full_like(grey, generator.random()), opacity)
    texture = fine_texture(grey)
    sign = -1.0 if generator.random() < 0.65 else 1.0
    strength = np.exp(generator.uniform(np.log(weakest), np.log(12.0)))
    return np.clip(grey + opacity * np.float32(sign * strength * texture), 0, 1)


def _blur(grey: Grey, sigma: float) -> Grey:
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma), np.float32)


def _resize(grey: Grey, height: int, width: int) -> Grey:
    resized = cv2.resize(np.ascontiguousarray(grey), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def _blend(grey: Grey, other: Grey, opacity: Grey) -> Grey:
    return np.clip(grey + opacity * (other - grey), 0, 1).astype(np.float32)
