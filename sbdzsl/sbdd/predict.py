"""A trained detector at work: grey image in, score and map out, places in source pixels.

Shapes: `H`, `W` source pixels; the network sees the image shrunk by `scale` to `H'`, `W'`, whole or in tiles
(`tiling.py`); its map has `h`, `w` cells of 8 x 8 network pixels. Nothing here depends on what ran before: one image,
one outcome, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.config import DetectorSettings
from sbdzsl.errors import BundleError
from sbdzsl.sbdd.engine import Engine, TorchEngine
from sbdzsl.sbdd.network import NETWORKS, build_network
from sbdzsl.sbdd.segdec import MAP_STRIDE, SegDec
from sbdzsl.sbdd.tiling import Footprint, choose_tile, judge_tiled, measure_footprint
from sbdzsl.verdict import Region

#: Regions an image reports at most: the ones with the highest scores.
MAX_REGIONS = 100

#: Name of the map threshold among the detector's tensors; the others are the network's.
MAP_THRESHOLD = "map_threshold"


@dataclass(frozen=True, slots=True)
class DefectMap:
    """What a detector says about one image.

    `score` is the decision logit plus the highest map logit: the sum of two opinions, raw. `logits` float32 [h, w] is
    the map; cell (i, j) covers network pixels 8i..8i+7, 8j..8j+7 of a network image of `network_height` x
    `network_width`, which is the whole source image of `source_height` x `source_width` pixels, shrunk.
    """

    score: float
    logits: NDArray[np.float32]
    source_height: int
    source_width: int
    network_height: int
    network_width: int

    def regions(self, map_threshold: float) -> tuple[Region, ...]:
        """Connected places (8 neighbours) where the map exceeds `map_threshold`, a logit; highest score first.

        Boxes and areas are in source pixels, clipped to the image, as exact as a cell is large; at most 100.
        """
        above = self.logits > map_threshold
        count, labels, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8)
        if count == 1:
            return ()
        scores = np.full(count, -np.inf, np.float32)
        np.maximum.at(scores, labels[above].astype(np.intp), self.logits[above])
        best = 1 + np.argsort(-scores[1:], kind="stable")[:MAX_REGIONS]
        x, y, width, height, cells = stats[best].astype(np.int64).T
        left, right = (_edges(columns, self.network_width, self.source_width) for columns in (x, x + width))
        top, bottom = (_edges(rows, self.network_height, self.source_height) for rows in (y, y + height))
        areas = np.rint((right - left) * (bottom - top) * cells / (width * height)).astype(np.int64)
        return tuple(
            Region(
                x=int(left[i]),
                y=int(top[i]),
                width=int(right[i] - left[i]),
                height=int(bottom[i] - top[i]),
                area_px=int(areas[i]),
                score=float(scores[best[i]]),
            )
            for i in range(len(best))
        )

    def heat(self) -> NDArray[np.float32]:
        """The map's logits as float32 [H, W] in the source frame, for overlays; between cells it is interpolated."""
        rows, columns = (side * MAP_STRIDE for side in self.logits.shape)
        network = _resize(self.logits, rows, columns, cv2.INTER_LINEAR)
        # The last cells may reach past the image.
        network = np.ascontiguousarray(network[: self.network_height, : self.network_width])
        return _resize(network, self.source_height, self.source_width, cv2.INTER_LINEAR)


class Detector:
    """One surface's trained detector: settings with `scale` resolved, folded network, map threshold (a logit).

    `engine` runs the network; PyTorch if none is given.
    """

    def __init__(
        self,
        settings: DetectorSettings,
        network: SegDec,
        map_threshold: float | None = None,
        engine: Engine | None = None,
    ) -> None:
        if settings.scale is None:
            raise ValueError("a detector needs a resolved scale; fit_detector resolves it")
        self.settings = settings
        self.network = network
        self._engine = engine or TorchEngine(network)
        self._map_threshold = map_threshold

    @property
    def map_threshold(self) -> float:
        """Map logit that a good image's map stays under, from held-out good images. `ValueError` while unfitted."""
        if self._map_threshold is None:
            raise ValueError("this detector is not fitted: it has no map threshold; make it with fit_detector")
        return self._map_threshold

    def detect(self, grey: NDArray[np.float32], max_memory_mb: float | None = None) -> DefectMap:
        """Judge one grey image, float32 [H, W] in [0, 1], source pixels. `ValueError` while unfitted.

        It is judged whole where that takes at most `max_memory_mb` (the settings' own if None), else in tiles. Raises
        `ImageError` "too-large" where tiles do not fit either, or the network cannot be tiled.
        """
        _ = self.map_threshold
        small = shrink(grey, self.scale)
        ceiling = self.settings.max_memory_mb if max_memory_mb is None else max_memory_mb
        tile = choose_tile(self.network, self.footprint, (small.shape[0], small.shape[1]), ceiling)
        if tile is None:
            return _defect_map(*self._engine.judge(small), grey, small)
        return _defect_map(*judge_tiled(self._engine, self.network, small, tile), grey, small)

    def run_by(self, engine: Engine) -> Detector:
        """This detector with its network run by another engine."""
        return Detector(self.settings, self.network, self._map_threshold, engine)

    @cached_property
    def footprint(self) -> Footprint:
        """What a pass takes in memory."""
        return measure_footprint(self.network)

    @property
    def scale(self) -> float:
        """Network pixels per source pixel."""
        assert self.settings.scale is not None
        return self.settings.scale

    def tensors(self) -> dict[str, Tensor]:
        """All that was learned, by name, on the CPU: the folded network's weights and the map threshold."""
        weights = {
            f"network.{name}": value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()
        }
        return weights | {MAP_THRESHOLD: torch.tensor([self.map_threshold], dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, settings: DetectorSettings, tensors: Mapping[str, Tensor], device: str = "cpu") -> Detector:
        """The detector whose `tensors()` these are. `BundleError` at names, shapes or values that cannot be."""
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in build_network(settings, folded=True).state_dict().items()}
        expected = {f"network.{name}": shape for name, shape in shapes.items()} | {MAP_THRESHOLD: torch.Size([1])}
        _check_tensors(expected, tensors)
        state = {name: tensors[f"network.{name}"] for name in shapes}
        network = NETWORKS[settings.network].from_state(settings.width, state, folded=True)
        return cls(settings, ready(network, device), float(tensors[MAP_THRESHOLD][0]))


def ready(network: SegDec, device: str) -> SegDec:
    """The network as inference wants it: in evaluation mode, without gradients, channels last, on `device`."""
    return network.eval().requires_grad_(False).to(device).channels_last()


def shrink(grey: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """A grey image [H, W] at network scale [H', W']: float32, each pixel the mean of those it covers."""
    if grey.dtype != np.float32 or grey.ndim != 2:
        raise ValueError(f"a detector takes float32 [H, W], found {grey.dtype} {list(grey.shape)}")
    if scale == 1:
        return np.ascontiguousarray(grey)
    return _resize(grey, *network_size(grey.shape[0], grey.shape[1], scale), cv2.INTER_AREA)


def network_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width in network pixels of an image of `height` x `width` source pixels; at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def judge(network: SegDec, small: NDArray[np.float32]) -> DefectMap:
    """Run a network that is `ready` on one grey image at network scale, float32 [H', W'] in [0, 1], whole."""
    return _defect_map(*TorchEngine(network).judge(small), small, small)


def _defect_map(
    decision: float, logits: NDArray[np.float32], grey: NDArray[np.float32], small: NDArray[np.float32]
) -> DefectMap:
    # Both heads vote: on real surfaces the map's highest cell ranks faint defects better, the decision ranks oddities.
    score = decision + float(logits.max())
    return DefectMap(score, np.ascontiguousarray(logits), grey.shape[0], grey.shape[1], small.shape[0], small.shape[1])


def _resize(image: NDArray[np.float32], height: int, width: int, interpolation: int) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.float32)


def _edges(cells: NDArray[np.int64], network_side: int, source_side: int) -> NDArray[np.int64]:
    """Source pixel at which each cell index begins, clipped to the image."""
    return np.clip(np.round(cells * (MAP_STRIDE * source_side / network_side)), 0, source_side).astype(np.int64)


def _check_tensors(expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise BundleError(
            "damaged-bundle",
            f"the detector's tensors do not fit its network: missing {missing or 'none'}, unknown {unknown or 'none'}; "
            "the bundle was made with other settings or by another version: train again",
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            found = list(tensors[name].shape)
            raise BundleError("damaged-bundle", f"tensor {name}: found shape {found}, expected {list(shape)}")
        if not torch.isfinite(tensors[name]).all():
            raise BundleError("damaged-bundle", f"tensor {name} holds values that are not finite; train again")
