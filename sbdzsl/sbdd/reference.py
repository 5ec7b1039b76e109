"""`SegDecReference`: the published network, layer by layer, with its quirks.

Shapes: `B` images, `H`, `W` network pixels, `h = H / 8`, `w = W / 8` map cells. Widths of Bozic et al. 2021 (Computers
in Industry 129); Tabernik et al. 2020 (JIM 31) had one more 5 x 5 convolution at full size. 15.6 M parameters, 84 GMAC
at 512 x 512, three quarters of it in one 15 x 15 convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbdzsl.sbdd.segdec import MAP_STRIDE, SegDec, scale_gradient


class SegDecReference(SegDec):
    """The published network. Quirks that are kept, since the published results rest on them:

    - `FeatureNorm` normalises per image and channel by the root of the deviation, not by the deviation;
    - the map's norm has no bias, so the mean of an image's map logits is always 0: a map logit of 0 is no threshold,
      and of the decision's four pooled map values one is constant;
    - as each image is normalised by its own statistics, a cell depends on the whole image.

    `width` 1 is the published one; smaller ones are for tests. `folded` changes nothing: there is no batch norm.
    """

    SIDE_MULTIPLE = MAP_STRIDE
    HALO = None

    def __init__(self, width: float = 1.0, *, folded: bool = False) -> None:
        super().__init__(width)
        narrow, wide, deep = (max(1, round(width * channels)) for channels in (32, 64, 1024))
        self.trunk = nn.Sequential(
            ConvNorm(1, narrow, 5),
            nn.MaxPool2d(2),
            ConvNorm(narrow, wide, 5),
            ConvNorm(wide, wide, 5),
            ConvNorm(wide, wide, 5),
            nn.MaxPool2d(2),
            *(ConvNorm(wide, wide, 5) for _ in range(4)),
            nn.MaxPool2d(2),
            ConvNorm(wide, deep, 15),
        )
        self.map = nn.Conv2d(deep, 1, 1, bias=False)
        self.map_norm = FeatureNorm(1, bias=False)
        self.decision = nn.Sequential(
            nn.MaxPool2d(2, ceil_mode=True),
            ConvNorm(deep + 1, 8, 5),
            nn.MaxPool2d(2, ceil_mode=True),
            ConvNorm(8, 16, 5),
            nn.MaxPool2d(2, ceil_mode=True),
            ConvNorm(16, 32, 5),
        )
        self.linear = nn.Linear(66, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Features [B, 1024, H / 8, W / 8], "volume" in the published code."""
        return self.trunk(x)

    def conclude(self, encoded: Tensor, size: tuple[int, int], decision_gradient: float = 1.0) -> tuple[Tensor, Tensor]:
        """Decision logits [B] and map logits [B, 1, h, w]; see `SegDec.conclude`."""
        features = encoded[..., : size[0], : size[1]]
        map_logits = self.map_norm(self.map(features))
        seen = scale_gradient(map_logits, decision_gradient)
        deep = self.decision(torch.cat([scale_gradient(features, decision_gradient), seen], dim=1))
        pooled = [value for plane in (deep, seen) for value in (plane.amax(dim=(2, 3)), plane.mean(dim=(2, 3)))]
        return self.linear(torch.cat(pooled, dim=1)).squeeze(1), map_logits

    def folded(self) -> SegDec:
        """A copy in evaluation mode."""
        return self.from_state(self.width, self.state_dict(), folded=True).eval().requires_grad_(False)


class ConvNorm(nn.Module):
    """Convolution with "same" padding and without bias, `FeatureNorm`, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        nn.init.xavier_normal_(self.conv.weight)
        self.norm = FeatureNorm(outputs, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H, W]."""
        return F.relu(self.norm(self.conv(x)))


class FeatureNorm(nn.Module):
    """scale * (x - mean) / sqrt(deviation + 0.001) + bias, per image and channel, alike in training and inference."""

    EPSILON = 1e-3

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], same shape."""
        mean = x.mean(dim=(2, 3), keepdim=True)
        # The root of a variance of 0, as of a black image, has no gradient: kept a hair above.
        deviation = (x - mean).square().mean(dim=(2, 3), keepdim=True).clamp_min(1e-12).sqrt()
        normed = self.scale * (x - mean) * torch.rsqrt(deviation + self.EPSILON)
        return normed if self.bias is None else normed + self.bias
