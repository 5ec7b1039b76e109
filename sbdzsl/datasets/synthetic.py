"""The drawn lake: ten surfaces with a defect of their own each, in DAGM's layout, from 10 images to millions.

A surface is one function of `textures`. Everything random comes from
`[seed, surface, index]`, so image k of a surface has the same bytes whatever the size of the lake, the order or the
number of processes. The truth of a defect is exact by construction: the pixels that differ from the same image drawn
without its flaw. As in DAGM, the label that is stored is weak: an ellipse around those pixels.

Images of one surface differ in light (level, gain, slope over the image), direction, phase and dust; the dust is no
defect. Detectors that a line writes (deviation of the image, largest distance from its mean, largest local contrast)
have a mean average precision of 0.2 to 0.3 at 15 % defective images: `benchmarks/drawn_lake.py`, and a test bounds it.

Grey values are 0 (black) to 1 (white) until they are stored.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl import lake
from sbdzsl.datasets.textures import SURFACES, Flaw, Grey, grid
from sbdzsl.errors import ConfigError, LakeError

_GOLDEN = (math.sqrt(5) - 1) / 2
_IMAGES_PER_TASK = 32
_WRITERS = 8


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """`pixels` uint8 (uint16 on perforated_sheet) [H, W]; `mask` bool [H, W], the weak ellipse; empty where benign."""

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    mask: NDArray[np.bool_]
    defective: bool


@dataclass(frozen=True, slots=True)
class DrawnLake:
    """What `write_lake` wrote: images and defective ones among them, per surface."""

    url: str
    num_images: dict[str, int]
    num_defective: dict[str, int]


#: Surfaces that are stored as 16-bit PNG and use the whole range; the others are 8-bit.
SIXTEEN_BIT = frozenset({"perforated_sheet"})


def is_defective(surface: str, index: int, defect_share: float = 0.15) -> bool:
    """Whether image `index` of `surface` holds a defect: an even sequence, so that any run has about the share."""
    return (index * _GOLDEN + 0.37 * _number(surface)) % 1 < defect_share


def draw_image(surface: str, index: int, size: int = 256, seed: int = 0, defect_share: float = 0.15) -> DrawnImage:
    """Draw image `index` of `surface`, [size, size] pixels. The same arguments give the same bytes.

    Raises `ConfigError` for an unknown surface, a size under 64 px, a negative seed or a share outside 0..1.
    """
    _check(size, seed, defect_share)
    key = [seed, _number(surface), index]
    defective = is_defective(surface, index, defect_share)
    benign = SURFACES[surface](np.random.default_rng([*key, 0]), size, None)
    mask = np.zeros((size, size), np.bool_)
    texture = benign
    if defective:
        flaw = Flaw.draw(np.random.default_rng([*key, 1]), size)
        texture = SURFACES[surface](np.random.default_rng([*key, 0]), size, flaw)
        mask = _weak_ellipse(np.abs(texture - benign))
    grey = _photograph(np.random.default_rng([*key, 2]), texture, spread=float(benign.std()))
    if surface in SIXTEEN_BIT:
        return DrawnImage(np.round(grey * 65535).astype(np.uint16), mask, defective)
    return DrawnImage(np.round(grey * 255).astype(np.uint8), mask, defective)


def _number(surface: str) -> int:
    if surface not in SURFACES:
        raise ConfigError("bad-config", f"unknown surface {surface!r}; drawn surfaces: {', '.join(SURFACES)}")
    return list(SURFACES).index(surface)


def _check(size: int, seed: int, defect_share: float) -> None:
    if seed < 0:
        raise ConfigError("bad-config", f"seed {seed}: expected 0 or more")
    if size < 64:
        raise ConfigError("bad-config", f"image size {size} px: a drawn image needs at least 64 px a side")
    if not 0 <= defect_share <= 1:
        raise ConfigError("bad-config", f"defect share {defect_share}: expected a share from 0 to 1")


def _weak_ellipse(change: Grey) -> NDArray[np.bool_]:
    """The ellipse around all pixels that the flaw changed by at least a third of its largest change, with a margin."""
    y, x = np.nonzero(change > change.max() / 3)
    (center_x, center_y), (width, height), angle = cv2.minAreaRect(np.stack([x, y], 1).astype(np.float32))
    mask = np.zeros(change.shape, np.uint8)
    axes = (int(width / 2 * 1.25 + 3.5), int(height / 2 * 1.25 + 3.5))
    cv2.ellipse(mask, (int(center_x), int(center_y)), axes, angle, 0, 360, 1, -1)
    return mask.astype(np.bool_)


def _photograph(rng: np.random.Generator, texture: Grey, spread: float) -> Grey:
    """Light, dust and sensor noise: a texture in grey values becomes the image in 0..1, [size, size]."""
    size = len(texture)
    x, y = grid(size)
    slope_x, slope_y = rng.uniform(-0.09, 0.09, 2) / size
    gain = rng.uniform(0.8, 1.2)
    level = float(texture.mean()) + rng.uniform(-0.07, 0.07)
    grey = level + gain * (texture - texture.mean()) + slope_x * (x - size / 2) + slope_y * (y - size / 2)
    dust = np.zeros((size, size), np.float32)
    for _ in range(rng.poisson(2.5 * (size / 256) ** 2)):
        at = tuple(int(c) for c in rng.integers(2, size - 2, 2))
        cv2.circle(dust, at, int(rng.integers(0, 2)), float(rng.choice([-1, 1]) * rng.uniform(1, 5)), -1, cv2.LINE_AA)
    grey += spread * cv2.GaussianBlur(dust, (0, 0), 0.6)
    grey += 0.006 * rng.standard_normal((size, size), np.float32)
    return np.clip(grey, 0, 1).astype(np.float32)


def write_lake(
    out_url: str,
    num_images: int,
    seed: int = 0,
    surfaces: Sequence[str] | None = None,
    size: int = 256,
    processes: int | None = None,
    defect_share: float = 0.15,
) -> DrawnLake:
    """Draw `num_images` into `<surface>/Train|Test/NNNN.PNG` with `Label/` beside them, and write nothing else.

    Images go to the surfaces in turn, and of one surface in turn to Train and Test. `processes` (none: one per CPU)
    draw at the same time, memory does not grow with the number. Labels.txt comes last: a class folder without it is
    of a run that was cut off. Raises `ConfigError` for arguments out of range, `LakeError` already-exists where
    `out_url` holds files.
    """
    names = list(dict.fromkeys(surfaces or SURFACES))
    _check(size, seed, defect_share)
    if num_images < len(names):
        raise ConfigError("bad-config", f"{num_images} images for {len(names)} surfaces: at least one each is needed")
    share = {name: len(range(place, num_images, len(names))) for place, name in enumerate(names)}
    defective = {name: sum(is_defective(name, k, defect_share) for k in range(share[name])) for name in names}
    _refuse_files(out_url)
    tasks = (
        _Task(out_url, name, start, min(start + _IMAGES_PER_TASK, share[name]), size, seed, defect_share)
        for name in names
        for start in range(0, share[name], _IMAGES_PER_TASK)
    )
    workers = min(processes or os.cpu_count() or 1, sum(-(-count // _IMAGES_PER_TASK) for count in share.values()))
    if workers == 1:
        for task in tasks:
            _draw_task(task)
    else:
        _draw_in_processes(tasks, workers)
    for name in names:
        _write_labels(out_url, name, share[name], defect_share)
    return DrawnLake(lake.absolute_url(out_url), share, defective)


@dataclass(frozen=True, slots=True)
class _Task:
    """Images `start` to `stop` of one surface: what one process draws at a time."""

    out_url: str
    surface: str
    start: int
    stop: int
    size: int
    seed: int
    defect_share: float


def _refuse_files(out_url: str) -> None:
    try:
        found = lake.list_files(out_url)
    except LakeError as error:
        if error.code not in ("not-found", "no-images"):
            raise
        return
    if found:
        raise LakeError(
            "already-exists", f"{out_url} holds {len(found)} files: a lake is drawn into an empty folder; name another"
        )


def _draw_in_processes(tasks: Iterator[_Task], workers: int) -> None:
    pending: set[Future[None]] = set()
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        for task in tasks:
            pending.add(pool.submit(_draw_task, task))
            if len(pending) >= 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in pending:
            future.result()


def _draw_task(task: _Task) -> None:
    """Draw in this thread, write in others: a write waits for the disk or the store, not for the processor."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        writes: list[Future[None]] = []
        for index in range(task.start, task.stop):
            image = draw_image(task.surface, index, task.size, task.seed, task.defect_share)
            folder, name = _place(task.surface, index)
            uri = lake.join(task.out_url, *folder, f"{name}.PNG")
            writes.append(pool.submit(lake.write_bytes, uri, _png(image.pixels)))
            if image.defective:
                uri = lake.join(task.out_url, *folder, "Label", f"{name}_label.PNG")
                writes.append(pool.submit(lake.write_bytes, uri, _png(image.mask.astype(np.uint8) * 255)))
        for write in writes:
            write.result()


def _place(surface: str, index: int) -> tuple[tuple[str, str], str]:
    """Folder and number of an image; numbers start at 1 and are not repeated between Train and Test, as in DAGM."""
    return (surface, "Train" if index % 2 == 0 else "Test"), f"{index + 1:04d}"


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


def _write_labels(out_url: str, surface: str, num_images: int, defect_share: float) -> None:
    rows: dict[tuple[str, str], list[str]] = {}
    for index in range(num_images):
        folder, name = _place(surface, index)
        defective = is_defective(surface, index, defect_share)
        label = f"1\t{name}.PNG\t0\t{name}_label.PNG" if defective else f"0\t{name}.PNG\t0\t0"
        rows.setdefault(folder, ["1"]).append(f"{name}\t{label}\t")
    for folder, lines in rows.items():
        lake.write_bytes(lake.join(out_url, *folder, "Label", "Labels.txt"), ("\n".join(lines) + "\n").encode())
