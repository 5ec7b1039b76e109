"""What every Seg-Dec network is: a trunk, a map at stride 8, and a decision that looks at both.

Shapes: `B` images, `H`, `W` network pixels, `h = ceil(H / 8)`, `w = ceil(W / 8)` map cells, `C` channels. After
figure 3 of Tabernik et al. 2020 (JIM 31).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Network pixels a map cell covers in each direction.
MAP_STRIDE = 8


class SegDec(nn.Module, ABC):
    """A detector's network in two parts: `encode` looks at pixels, `conclude` at the whole image's encoding.

    Between the two an image can be cut into tiles, since `encode` only looks `HALO` pixels far. `width` scales all
    layers; a `folded` network is the inference form, made by `folded()`.
    """

    #: Sides are padded to a multiple of this, and the padding is cut off the map again.
    SIDE_MULTIPLE: ClassVar[int]

    #: Network pixels beyond a cell that its encoding depends on; None: on the whole image, which cannot be tiled.
    HALO: ClassVar[int | None]

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Encoding [B, C, H / 8, W / 8] of grey images [B, 1, H, W] in [0, 1]; sides multiples of `SIDE_MULTIPLE`."""

    @abstractmethod
    def conclude(self, encoded: Tensor, size: tuple[int, int], decision_gradient: float = 1.0) -> tuple[Tensor, Tensor]:
        """Decision logits [B] and map logits [B, 1, h, w] from `encode`'s result; `size` is (h, w), without padding.

        `decision_gradient` in 0..1 scales what the decision sends back into trunk and map while training; it does not
        change the outcome.
        """

    @abstractmethod
    def folded(self) -> SegDec:
        """A copy for inference, in evaluation mode; what can be computed beforehand is folded into its weights."""

    def forward(self, x: Tensor, decision_gradient: float = 1.0) -> tuple[Tensor, Tensor]:
        """Judge grey images `x` [B, 1, H, W] in [0, 1] of any size: decision logits [B], map logits [B, 1, h, w]."""
        size = map_size(x.shape[-2], x.shape[-1])
        return self.conclude(self.encode(pad_sides(x, self.SIDE_MULTIPLE)), size, decision_gradient)

    @classmethod
    def from_state(cls, width: float, state: Mapping[str, Tensor], *, folded: bool) -> SegDec:
        """The network with copies of the tensors of `state`; draws no random numbers."""
        with torch.device("meta"):
            network = cls(width, folded=folded)  # type: ignore[call-arg]
        network.load_state_dict({name: value.detach().clone() for name, value in state.items()}, assign=True)
        return network

    def channels_last(self) -> SegDec:
        """This network with its weights laid out channels last, which is faster on CPUs and GPUs alike."""
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def map_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns (h, w) of the map of an image of `height` x `width` network pixels."""
    return -(-height // MAP_STRIDE), -(-width // MAP_STRIDE)


def pad_sides(x: Tensor, multiple: int) -> Tensor:
    """`x` [..., H, W] with its last row and column repeated until both sides are multiples of `multiple`."""
    pad_y, pad_x = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, pad_x, 0, pad_y), mode="replicate") if pad_y or pad_x else x


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself, whose gradient is multiplied by `factor`; 0 stops it (section 3.2 of Bozic et al. 2021)."""
    if factor == 1:
        return x
    if factor == 0:
        return x.detach()
    return x.detach() + factor * (x - x.detach())
