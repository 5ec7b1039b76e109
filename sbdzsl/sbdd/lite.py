"""`SegDecLite`: segmentation map and decision in one small network.

Shapes as in `segdec.py`: `B` images, `H`, `W` network pixels, `h`, `w` map cells at stride 8, `C` channels.

After Tabernik et al. 2020 (JIM 31, "Seg-Dec") and Bozic et al. 2021 (Computers in Industry 129): a segmentation trunk
gives a map at stride 8, and a decision head judges the image from the trunk's features together with that map.
`README.md` in this folder lists every departure and what was measured.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbdzsl.sbdd.segdec import MAP_STRIDE, SegDec, scale_gradient

#: Channels at strides 2, 4, 8, 16 and 32 with `width` 1.
STAGE_CHANNELS = (12, 16, 32, 48, 64)


class SegDecLite(SegDec):
    """Detector with a feature pyramid in place of the published 15 x 15 convolution: about 0.35 GMAC at 512 x 512.

    Input is flattened as second channel, encoded down to stride 32 with residual blocks, summed back to stride 8 with
    the image's mean added (so that each cell sees the whole image), and read out twice: map logits, and a decision
    logit from pooled features and pooled map (figure 3 of Tabernik et al. 2020).

    `width` scales all layers; `folded` builds the inference form without batch norm, see `folded()`.
    """

    #: The deepest stage's stride.
    SIDE_MULTIPLE = 32

    #: Stem 2, stage 4 2, stage 8 4 + 16, and 32 of the flattening; rounded up to whole map cells of the deepest stage.
    HALO = 64

    def __init__(self, width: float = 1.0, *, folded: bool = False) -> None:
        super().__init__(width)
        c2, c4, c8, c16, c32 = (max(4, 4 * round(width * channels / 4)) for channels in STAGE_CHANNELS)
        self.flatten = Flatten()
        self.stem = ConvNorm(2, c2, 5, 2, folded)
        self.stage4 = ConvNorm(c2, c4, 3, 2, folded)
        self.stage8 = nn.Sequential(ConvNorm(c4, c8, 3, 2, folded), Residual(c8, folded))
        self.stage16 = nn.Sequential(ConvNorm(c8, c16, 3, 2, folded), Residual(c16, folded))
        self.stage32 = nn.Sequential(ConvNorm(c16, c32, 3, 2, folded), Residual(c32, folded))
        self.context = nn.Linear(c32, c32)
        self.lateral16 = nn.Conv2d(c16, c8, 1)
        self.lateral32 = nn.Conv2d(c32, c8, 1)
        self.fuse = ConvNorm(c8, c8, 3, 1, folded)
        self.map = MapReadout(c8)
        self.decision = DecisionHead(c8, folded)

    def encode(self, x: Tensor) -> Tensor:
        """Features [B, C, H / 8, W / 8] of the three strided stages, which look `HALO` pixels far."""
        x = torch.cat([x - 0.5, self.flatten(x)], dim=1)
        return self.stage8(self.stage4(self.stem(x)))

    def conclude(self, encoded: Tensor, size: tuple[int, int], decision_gradient: float = 1.0) -> tuple[Tensor, Tensor]:
        """Decision logits [B] and map logits [B, 1, h, w]; see `SegDec.conclude`."""
        features = self.features(encoded)[..., : size[0], : size[1]]
        map_logits = self.map(features)
        decision = self.decision(
            scale_gradient(features, decision_gradient), scale_gradient(map_logits, decision_gradient)
        )
        return decision, map_logits

    def features(self, at8: Tensor) -> Tensor:
        """What map and decision are read from: `at8` [B, C, h, w] with the deeper stages and the image's mean added."""
        at16 = self.stage16(at8)
        at32 = self.stage32(at16)
        at32 = at32 + self.context(at32.mean(dim=(2, 3)))[:, :, None, None]
        at16 = self.lateral16(at16) + F.interpolate(self.lateral32(at32), scale_factor=2.0, mode="nearest")
        return self.fuse(at8 + F.interpolate(at16, scale_factor=2.0, mode="nearest"))

    def folded(self) -> SegDec:
        """A copy for inference, in evaluation mode, with each batch norm folded into the layer before it."""
        state = dict(self.state_dict())
        for name, module in self.named_modules():
            if isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
                scale, shift = _affine(module.norm)
                state[f"{name}.conv.weight"] = module.conv.weight.detach() * scale[:, None, None, None]
                state[f"{name}.conv.bias"] = shift
            elif isinstance(module, DecisionHead) and isinstance(module.norm, nn.BatchNorm1d):
                scale, shift = _affine(module.norm)
                weight = module.linear.weight.detach()
                state[f"{name}.linear.weight"] = weight * scale
                state[f"{name}.linear.bias"] = module.linear.bias.detach() + weight @ shift
        state = {name: value for name, value in state.items() if ".norm." not in name}
        return SegDecLite.from_state(self.width, state, folded=True).eval().requires_grad_(False)


class Flatten(nn.Module):
    """Local contrast: (x - m) / sqrt(v + eps), with mean m and variance v of the 40 network pixels around.

    Uneven light and the surface's own brightness go; a scratch stays. m and v come from stride 8, so it costs next to
    nothing, and a constant image gives 0 everywhere.
    """

    #: Standard deviation, in units of full scale, under which contrast is taken for camera noise.
    NOISE = 0.01

    def forward(self, x: Tensor) -> Tensor:
        """Flatten grey images [B, 1, H, W] in [0, 1], H and W multiples of 8; same shape."""
        x = x - 0.5
        mean, square = self._around(x), self._around(x * x)
        return (x - mean) * torch.rsqrt((square - mean * mean).clamp_min(0) + self.NOISE**2)

    def _around(self, x: Tensor) -> Tensor:
        cells = F.avg_pool2d(F.avg_pool2d(x, MAP_STRIDE), 5, stride=1, padding=2, count_include_pad=False)
        return self.enlarge(cells)

    def enlarge(self, cells: Tensor) -> Tensor:
        """Cells [B, 1, h, w] to pixels [B, 1, H, W], bilinear."""
        return F.interpolate(cells, scale_factor=float(MAP_STRIDE), mode="bilinear")


class MapReadout(nn.Module):
    """A 1 x 1 convolution to one channel, written as product and sum.

    With one output channel, the convolution of the CPU backend sums in an order that depends on the number of threads,
    and an audit must give the same bits on every node. Product and sum do not.
    """

    #: Few cells are defective: starting near their share spares the first steps from learning it.
    START_LOGIT = -3.0

    def __init__(self, channels: int) -> None:
        super().__init__()
        # In place: on the "meta" device, where shapes are found out, `/` imports all of torch's compiler, 0.7 s.
        self.weight = nn.Parameter(torch.randn(channels, 1, 1).div_(channels**0.5))
        self.bias = nn.Parameter(torch.full((1, 1, 1), self.START_LOGIT))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, C, h, w] -> logits [B, 1, h, w]."""
        return (features * self.weight).sum(dim=1, keepdim=True) + self.bias


class DecisionHead(nn.Module):
    """Judges an image from features [B, C, h, w] and map logits [B, 1, h, w]: two strided convolutions, pooled, linear.

    The pooled values are maximum, mean and deviation of the head's features, and of the map its maximum, its mean and
    smooth maxima between the two, so that neither a single loud cell nor a wide faint defect is lost.
    """

    #: Sharpness of the smooth maxima of the map: log-mean-exp at these inverse temperatures.
    SHARPNESS = (0.5, 1.0, 2.0)

    def __init__(self, channels: int, folded: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvNorm(channels + 1, channels, 3, 2, folded), ConvNorm(channels, channels, 3, 2, folded)
        )
        pooled = 3 * channels + 2 + len(self.SHARPNESS)
        self.norm = nn.Identity() if folded else nn.BatchNorm1d(pooled)
        self.linear = nn.Linear(pooled, 1)

    def forward(self, features: Tensor, map_logits: Tensor) -> Tensor:
        """Decision logits [B]."""
        deep = self.convs(torch.cat([features, map_logits], dim=1)).flatten(2)
        cells = map_logits.flatten(1)
        mean = deep.mean(dim=2)
        deviation = ((deep * deep).mean(dim=2) - mean * mean).clamp_min(1e-6).sqrt()
        softly = [log_mean_exp(cells, sharpness) for sharpness in self.SHARPNESS]
        pooled = [deep.amax(dim=2), mean, deviation, cells.amax(dim=1, keepdim=True), cells.mean(dim=1, keepdim=True)]
        return self.linear(self.norm(torch.cat([*pooled, *softly], dim=1))).squeeze(1)


class ConvNorm(nn.Module):
    """Convolution with "same" padding, batch norm, ReLU; folded: convolution with bias, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, folded: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=folded)
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, ceil(H / stride), ceil(W / stride)]."""
        return F.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    """Two 3 x 3 convolutions around which the input is added."""

    def __init__(self, channels: int, folded: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvNorm(channels, channels, 3, 1, folded), ConvNorm(channels, channels, 3, 1, folded)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return x + self.convs(x)


def log_mean_exp(cells: Tensor, sharpness: float) -> Tensor:
    """Smooth maximum [B, 1] of `cells` [B, N]: log(mean(exp(sharpness * x))) / sharpness."""
    highest = cells.amax(dim=1, keepdim=True)
    return highest + torch.log(torch.exp(sharpness * (cells - highest)).mean(dim=1, keepdim=True)) / sharpness


def _affine(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """The scale and shift a batch norm amounts to in evaluation."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - norm.running_mean * scale
