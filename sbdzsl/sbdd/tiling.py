"""Images of any size within a memory ceiling: whole where that fits, else encoded tile by tile.

Encoding a cell looks `SegDec.HALO` pixels far and takes nearly all the memory; concluding needs the whole image, but
its encoding is small. So only the encoding is cut up: each tile is encoded with its surroundings, its own cells are
kept, and the conclusion is drawn once. No scores are blended, and nothing is seen twice or cut in two. Tiled and whole
agree up to rounding: convolutions of another size may sum in another order (`README.md` has what was measured).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbdzsl.errors import ImageError
from sbdzsl.sbdd.engine import Engine
from sbdzsl.sbdd.segdec import MAP_STRIDE, SegDec, map_size, pad_sides

#: Sides of a tile without its surroundings, in network pixels: the largest that fits is taken. Larger ones are slower.
TILE_SIDES = (1024, 512, 256)

#: What a pass takes beside its tensors: scratch space of the convolutions, and freed blocks of up to 32 MB, which the
#: allocator keeps.
RESERVE_MB = 128

#: Side of the image that a footprint is measured on: not a multiple of any network's, so that padding counts.
_PROBE_SIDE = 255


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of a pass in bytes per network pixel, the image itself included.

    `encode` and `conclude` are the peaks of the two halves (`conclude` holds image and encoding too), `encoding` is
    the result of the first. Peak in MB of an image of P pixels, with `RESERVE_MB` as R:

        whole:                             R + P * max(encode, conclude)
        in tiles of T pixels with halo:    R + T * encode + P * max(4 + encoding, conclude)
    """

    encode: float
    encoding: float
    conclude: float

    def whole_mb(self, pixels: int) -> float:
        """Peak of judging an image of so many network pixels whole."""
        return RESERVE_MB + pixels * max(self.encode, self.conclude) / 1e6

    def tiled_mb(self, pixels: int, tile_pixels: int) -> float:
        """Peak of judging it in tiles of `tile_pixels`, halo included."""
        # A tile's memory is freed before the conclusion, but not given back.
        return RESERVE_MB + (tile_pixels * self.encode + pixels * max(4 + self.encoding, self.conclude)) / 1e6


@torch.inference_mode()
def measure_footprint(network: SegDec) -> Footprint:
    """Count the bytes of the tensors alive at once while `network` judges a small image; all grow with its pixels."""
    pixels = _PROBE_SIDE**2
    with _LiveBytes(next(network.parameters()).device) as live:
        image = torch.zeros(1, 1, _PROBE_SIDE, _PROBE_SIDE, device=live.device)
        encoded = network.encode(pad_sides(image, network.SIDE_MULTIPLE))
        encode = live.peak
        live.peak = live.now
        network.conclude(encoded, map_size(_PROBE_SIDE, _PROBE_SIDE))
    return Footprint(encode / pixels, encoded.nbytes / pixels, live.peak / pixels)


def choose_tile(network: SegDec, footprint: Footprint, size: tuple[int, int], ceiling_mb: float | None) -> int | None:
    """Side of the tiles in which an image of `size` (height, width; network pixels) is encoded; None: whole.

    Raises `ImageError` "too-large" where neither keeps below `ceiling_mb`.
    """
    height, width = size
    needed = footprint.whole_mb(height * width)
    if ceiling_mb is None or needed <= ceiling_mb:
        return None
    if network.HALO is not None:
        for side in TILE_SIDES:
            with_halo = min(side + 2 * _halo(network), height) * min(side + 2 * _halo(network), width)
            needed = footprint.tiled_mb(height * width, with_halo)
            if needed <= ceiling_mb:
                return side
    how = "in tiles" if network.HALO is not None else "whole, as each cell of this network depends on the whole image"
    raise ImageError(
        "too-large",
        f"{width} x {height} network pixels take {needed:,.0f} MB {how}; max_memory_mb is {ceiling_mb:,.0f}: raise it, "
        "or train with a smaller `scale`",
    )


def judge_tiled(
    engine: Engine, network: SegDec, image: NDArray[np.float32], tile: int
) -> tuple[float, NDArray[np.float32]]:
    """Decision logit and map logits [h, w] of a grey image [H, W], encoded in tiles of side `tile`.

    `engine` runs `network`; `tile` is a multiple of its `SIDE_MULTIPLE`.
    """
    halo, multiple = _halo(network), network.SIDE_MULTIPLE
    height, width = (-(-side // multiple) * multiple for side in image.shape)
    encoding: NDArray[np.float32] | None = None
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(0, top - halo), max(0, left - halo)
            # Slices end with the image; what is short of a multiple is padded just as the whole image would be.
            part = _padded(image[y : bottom + halo, x : right + halo], multiple)
            encoded = engine.encode(part)
            if encoding is None:
                shape = height // MAP_STRIDE, width // MAP_STRIDE, len(encoded)
                encoding = np.empty(shape, np.float32).transpose(2, 0, 1)  # channels last, as the network likes it
            encoding[:, _cells(top, bottom), _cells(left, right)] = encoded[
                :, _cells(top - y, bottom - y), _cells(left - x, right - x)
            ]
    assert encoding is not None
    return engine.conclude(encoding, map_size(*image.shape))


def _halo(network: SegDec) -> int:
    """The halo in whole sides of the network, so that tiles stay aligned with its strides."""
    assert network.HALO is not None
    return -(-network.HALO // network.SIDE_MULTIPLE) * network.SIDE_MULTIPLE


def _padded(part: NDArray[np.float32], multiple: int) -> NDArray[np.float32]:
    below, right = (-side % multiple for side in part.shape)
    return np.ascontiguousarray(np.pad(part, ((0, below), (0, right)), mode="edge") if below or right else part)


def _cells(start: int, stop: int) -> slice:
    return slice(start // MAP_STRIDE, stop // MAP_STRIDE)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors made inside it that are still alive: `now`, and at most so far, `peak`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (key := leaf.untyped_storage()._cdata) not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        return result

    def _freed(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now -= num_bytes
