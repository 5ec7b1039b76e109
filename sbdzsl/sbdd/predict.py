"""A trained detector at work: grey image in, score and map out, places in source pixels.

Shapes: `H`, `W` source pixels; the network sees the image shrunk by `scale` to `H'`, `W'`; its map has `h`, `w` cells
of 8 x 8 network pixels. Nothing here depends on what ran before: one image, one outcome, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbdzsl.config import DetectorSettings
from sbdzsl.errors import BundleError
from sbdzsl.sbdd.network import MAP_STRIDE, SegDecLite
from sbdzsl.verdict import Region

#: Regions an image reports at most: the ones with the highest scores.
MAX_REGIONS = 100

#: Name of the map threshold among the detector's tensors; the others are the network's.
MAP_THRESHOLD = "map_threshold"


@dataclass(frozen=True, slots=True)
class DefectMap:
    """What a detector says about one image.

    `score` is the raw decision logit. `logits` float32 [h, w] is the map; cell (i, j) covers network pixels
    8i..8i+7, 8j..8j+7 of a network image of `network_height` x `network_width`, which is the whole source image of
    `source_height` x `source_width` pixels, shrunk.
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
        np.maximum.at(scores, labels[above], self.logits[above])
        best = 1 + np.argsort(-scores[1:], kind="stable")[:MAX_REGIONS]
        x, y, width, height, cells = stats[best].T
        left, right = self._source_columns(x), self._source_columns(x + width)
        top, bottom = self._source_rows(y), self._source_rows(y + height)
        boxes = (right - left) * (bottom - top)
        areas = np.maximum(1, np.round(boxes * (cells / (width * height)))).astype(np.int64)
        columns = (left, top, right - left, bottom - top, areas)
        values = np.stack(columns, axis=1).tolist()
        return tuple(Region(*row, float(score)) for row, score in zip(values, scores[best], strict=True))

    def heat(self) -> NDArray[np.float32]:
        """The map's logits as float32 [H, W] in the source frame, for overlays; between cells it is interpolated."""
        rows, columns = (side * MAP_STRIDE for side in self.logits.shape)
        network = cv2.resize(self.logits, (columns, rows), interpolation=cv2.INTER_LINEAR)
        # The last cells may reach past the image.
        network = np.ascontiguousarray(network[: self.network_height, : self.network_width])
        return cv2.resize(network, (self.source_width, self.source_height), interpolation=cv2.INTER_LINEAR)

    def _source_rows(self, cells: NDArray[np.int32]) -> NDArray[np.int64]:
        return _edges(cells, self.network_height, self.source_height)

    def _source_columns(self, cells: NDArray[np.int32]) -> NDArray[np.int64]:
        return _edges(cells, self.network_width, self.source_width)


class Detector:
    """One surface's trained detector: settings with `scale` resolved, folded network, map threshold (a logit)."""

    def __init__(self, settings: DetectorSettings, network: SegDecLite, map_threshold: float | None = None) -> None:
        if settings.scale is None:
            raise ValueError("a detector needs a resolved scale; fit_detector resolves it")
        self.settings = settings
        self.network = network
        self._map_threshold = map_threshold

    @property
    def map_threshold(self) -> float:
        """Map logit that a good image's map stays under, from held-out good images. `ValueError` while unfitted."""
        if self._map_threshold is None:
            raise ValueError("this detector is not fitted: it has no map threshold; make it with fit_detector")
        return self._map_threshold

    def detect(self, grey: NDArray[np.float32]) -> DefectMap:
        """Judge one grey image, float32 [H, W] in [0, 1], source pixels. `ValueError` while unfitted."""
        _ = self.map_threshold
        return judge(self.network, grey, self.scale)

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
        network = SegDecLite(settings.width, folded=True)
        expected = {f"network.{name}": value.shape for name, value in network.state_dict().items()}
        expected[MAP_THRESHOLD] = torch.Size([1])
        _check_tensors(expected, tensors)
        network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
        return cls(settings, ready(network, device), float(tensors[MAP_THRESHOLD][0]))


def ready(network: SegDecLite, device: str) -> SegDecLite:
    """The network as inference wants it: in evaluation mode, without gradients, channels last, on `device`."""
    return network.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)


def shrink(grey: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """A grey image [H, W] at network scale [H', W']: float32, each pixel the mean of those it covers."""
    if grey.dtype != np.float32 or grey.ndim != 2:
        raise ValueError(f"a detector takes float32 [H, W], found {grey.dtype} {list(grey.shape)}")
    if scale == 1:
        return np.ascontiguousarray(grey)
    height, width = network_size(*grey.shape, scale=scale)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)


def network_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width in network pixels of an image of `height` x `width` source pixels; at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


@torch.inference_mode()
def judge(network: SegDecLite, grey: NDArray[np.float32], scale: float) -> DefectMap:
    """Run a network that is `ready` on one grey image, float32 [H, W] in [0, 1]."""
    small = shrink(grey, scale)
    x = torch.from_numpy(small)[None, None].to(next(network.parameters()).device)
    decision, map_logits = network(x.contiguous(memory_format=torch.channels_last))
    logits = np.ascontiguousarray(map_logits[0, 0].float().cpu().numpy())
    return DefectMap(float(decision[0]), logits, *grey.shape, *small.shape)


def _edges(cells: NDArray[np.int32], network_side: int, source_side: int) -> NDArray[np.int64]:
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
