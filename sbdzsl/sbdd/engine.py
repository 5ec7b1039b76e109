"""What runs a detector's network: PyTorch or an exported graph, behind one face. Numpy in, numpy out.

Shapes: `H`, `W` network pixels, `h`, `w` map cells, `C` channels of the encoding. One image at a time.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sbdzsl.sbdd.segdec import SegDec

Array = NDArray[np.float32]


class Engine(Protocol):
    """Runs one network. `judge` takes an image whole; `encode` and `conclude` are its two halves, for tiles."""

    def judge(self, image: Array) -> tuple[float, Array]:
        """Decision logit and map logits [h, w] of a grey image [H, W] in [0, 1], any size."""

    def encode(self, tile: Array) -> Array:
        """Encoding [C, H / 8, W / 8] of a part [H, W] of an image; its sides are multiples of the network's."""

    def conclude(self, encoding: Array, size: tuple[int, int]) -> tuple[float, Array]:
        """Decision logit and map logits [h, w] from the encoding of a whole image; `size` is (h, w), unpadded."""


class TorchEngine:
    """The network itself, which must be `ready`, on the device it is on."""

    def __init__(self, network: SegDec) -> None:
        self._network = network
        self._device = next(network.parameters()).device

    @torch.inference_mode()
    def judge(self, image: Array) -> tuple[float, Array]:
        """See `Engine.judge`."""
        decision, map_logits = self._network(self._batch(image[None]))
        return float(decision[0]), _array(map_logits[0, 0])

    @torch.inference_mode()
    def encode(self, tile: Array) -> Array:
        """See `Engine.encode`."""
        return _array(self._network.encode(self._batch(tile[None]))[0])

    @torch.inference_mode()
    def conclude(self, encoding: Array, size: tuple[int, int]) -> tuple[float, Array]:
        """See `Engine.conclude`."""
        decision, map_logits = self._network.conclude(self._batch(encoding), size)
        return float(decision[0]), _array(map_logits[0, 0])

    def _batch(self, planes: Array) -> torch.Tensor:
        """Planes [C, H, W] as a batch of one, channels last."""
        return torch.from_numpy(planes)[None].to(self._device).contiguous(memory_format=torch.channels_last)


def _array(tensor: torch.Tensor) -> Array:
    return tensor.float().cpu().numpy()
