"""Endless random surfaces: each call draws one that nobody has seen, for learning what all surfaces have in common.

Unlike `textures.py`, whose ten surfaces are test material, these have no names and no fixed parameters: a family, then
all of its parameters, are drawn anew. Grey is float32 [H, W] in [0, 1]. Same generator state, same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.float32]


def draw_surface(shape: tuple[int, ...], generator: np.random.Generator) -> Grey:
    """One good surface: a texture or two in layers, perhaps bands of a part, uneven light, and the camera's noise."""
    texture = random_texture(shape, generator)
    if generator.random() < 0.3:
        texture = _normed(texture + np.float32(generator.uniform(0.2, 1.0)) * random_texture(shape, generator))
    contrast = np.exp(generator.uniform(np.log(0.015), np.log(0.2)))
    grey = generator.uniform(0.2, 0.75) + np.float32(contrast) * texture
    if generator.random() < 0.35:
        grey = _banded(grey, generator)
    if generator.random() < 0.5:
        grey = grey + np.float32(generator.uniform(0, 0.12)) * _spectral(shape, generator, exponent=4.0)
    if generator.random() < 0.5:
        grey = _blur(grey, float(generator.uniform(0.4, 1.2)))
    noise = generator.uniform(0.0, 0.02)
    return (grey + noise * generator.standard_normal(shape, np.float32)).clip(0, 1).astype(np.float32)


def random_texture(shape: tuple[int, ...], generator: np.random.Generator) -> Grey:
    """A plain texture [H, W] of mean 0 and deviation 1, cut off at 4 deviations."""
    family = _FAMILIES[generator.integers(len(_FAMILIES))]
    return _normed(family(shape, generator))


def _noise(shape: tuple[int, ...], generator: np.random.Generator) -> Grey:
    return _spectral(shape, generator, exponent=generator.uniform(0, 3))


def _spectral(shape: tuple[int, ...], generator: np.random.Generator, exponent: float) -> Grey:
    """Gaussian noise whose amplitude falls as frequency^(-exponent/2), stretched along a direction at times."""
    angle, stretch = generator.uniform(0, np.pi), 1.0
    if generator.random() < 0.6:
        stretch = float(np.exp(generator.uniform(0, np.log(40))))
        if generator.random() < 0.5:
            angle = np.pi / 2 * generator.integers(2)
    y, x = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]), indexing="ij")
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.sqrt((along * stretch) ** 2 + across**2) + 1 / max(shape)
    amplitude = radius ** (-exponent / 2)
    if generator.random() < 0.3:
        centre = generator.uniform(0.02, 0.3)
        amplitude = amplitude * np.exp(-(((radius - centre) / (0.5 * centre)) ** 2))
    spectrum = np.fft.rfft2(generator.standard_normal(shape, np.float32)) * amplitude
    return _normed(np.fft.irfft2(spectrum, s=shape).astype(np.float32))


def _lattice(shape: tuple[int, ...], generator: np.random.Generator) -> Grey:
    """A weave, mesh or perforation: two gratings, bent a little, added or multiplied, smooth or cut off."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    bend = np.float32(generator.uniform(0, 3)) * _spectral(shape, generator, exponent=3.0)
    angle = generator.uniform(0, np.pi)
    waves = []
    for turn in (0.0, generator.choice([np.pi / 2, np.pi / 3, generator.uniform(0.2, 1.5)])):
        period = np.exp(generator.uniform(np.log(4), np.log(50)))
        position = x * np.cos(angle + turn) + y * np.sin(angle + turn) + bend
        waves.append(np.cos(2 * np.pi * position / period, dtype=np.float32))
    pattern = waves[0] * waves[1] if generator.random() < 0.5 else waves[0] + generator.uniform(0, 1) * waves[1]
    if generator.random() < 0.4:
        pattern = np.tanh((pattern - generator.uniform(-0.5, 0.5)) * generator.uniform(2, 8))
    return np.asarray(pattern, np.float32)


def _grains(shape: tuple[int, ...], generator: np.random.Generator) -> Grey:
    """Grains of metal or leather: cells around random points, each with its shade, and their borders."""
    count = int(shape[0] * shape[1] / np.exp(generator.uniform(np.log(30), np.log(2500))))
    seeds = np.full(shape, 255, np.uint8)
    seeds[generator.integers(shape[0], size=count), generator.integers(shape[1], size=count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    shades = generator.standard_normal(int(labels.max()) + 1).astype(np.float32)
    shade, border = np.float32(generator.random()), np.float32(generator.uniform(-1, 1))
    return shade * shades[labels] + border * _normed(np.asarray(distance, np.float32))


def _leaves(shape: tuple[int, ...], generator: np.random.Generator) -> Grey:
    """Flakes lying on each other (the dead leaves model): ellipses of all sizes, each with its shade."""
    canvas = np.zeros(shape, np.float32)
    largest = np.exp(generator.uniform(np.log(3), np.log(30)))
    turn, elongation = generator.uniform(0, 180), np.exp(generator.uniform(0, 1.5))
    for _ in range(min(4000, int(6 * shape[0] * shape[1] / largest**2))):
        radius = 1 + largest * generator.random() ** 2
        centre = int(generator.integers(shape[1])), int(generator.integers(shape[0]))
        axes = int(max(1, radius)), int(max(1, radius / elongation))
        angle = turn + generator.normal(0, 15)
        cv2.ellipse(canvas, centre, axes, angle, 0, 360, float(generator.standard_normal()), -1)
    return _blur(canvas, float(generator.uniform(0.5, 2)))


def _lines(shape: tuple[int, ...], generator: np.random.Generator) -> Grey:
    """Grinding or brushing: many faint, long strokes, all about the same way."""
    canvas = np.zeros(shape, np.float32)
    angle, spread = generator.uniform(0, np.pi), generator.uniform(0, 0.15)
    length = generator.uniform(0.2, 2) * max(shape)
    for _ in range(int(generator.integers(100, 500))):
        x, y = generator.uniform(0, shape[1]), generator.uniform(0, shape[0])
        way = angle + generator.normal(0, spread)
        end = int(x + length * np.cos(way)), int(y + length * np.sin(way))
        cv2.line(canvas, (int(x), int(y)), end, float(generator.standard_normal()), 1, cv2.LINE_8)
    return _blur(canvas, float(generator.uniform(0.4, 1.0)))


_FAMILIES: tuple[Callable[[tuple[int, ...], np.random.Generator], Grey], ...] = (
    _noise,
    _noise,
    _lattice,
    _grains,
    _leaves,
    _lines,
)


def _banded(grey: Grey, generator: np.random.Generator) -> Grey:
    """A part with rims and steps: bands along one axis, each darker or brighter, coarser or smoother than the next."""
    axis = int(generator.integers(2))
    side = grey.shape[axis]
    cuts = np.sort(generator.uniform(0, side, int(generator.integers(1, 5))))
    place = np.arange(side, dtype=np.float32)
    profile = np.zeros(side, np.float32)
    for cut in cuts:
        width = generator.uniform(0.5, 4)
        profile += np.float32(generator.normal(0, 0.2)) / (1 + np.exp(-((place - cut) / width).clip(-30, 30)))
        if generator.random() < 0.3:
            profile += np.float32(generator.normal(0, 0.2)) * np.exp(-(((place - cut) / (2 * width)) ** 2))
    return grey + (profile[:, None] if axis == 0 else profile[None, :])


def _normed(grey: Grey) -> Grey:
    """Mean 0, deviation 1; a constant stays 0."""
    spread = max(float(grey.std()), 1e-6)
    return np.asarray((grey - grey.mean()) / spread, np.float32).clip(-4, 4)


def _blur(grey: Grey, sigma: float) -> Grey:
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma), np.float32)
