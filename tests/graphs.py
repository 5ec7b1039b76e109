"""Tiny nets of chance weights, written as ONNX graphs: backbones as a user may bring them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Two maps, the second at half the scale, and a vector that is no map."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(planes, 4, 3, 2, 1)
        self.second = nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = self.first(x).relu()
        two = self.second(one)
        return one, two, two.mean((2, 3))


class Patches(nn.Module):
    """A class token and the patches of a transformer's stem."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = nn.functional.unfold(x, 16, stride=16).transpose(1, 2)
        return torch.cat([1000 + tokens[:, :1], tokens], dim=1)


def write_graph(folder: Path, net: nn.Module, planes: int, size: tuple[int, int] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["one", "two", "pooled"] if isinstance(net, Tiny) else ["tokens"]
    axes = {"pixels": {2: "h", 3: "w"}, **{name: {2: "h", 3: "w"} for name in names[:2]}} if size is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, planes, *(size or (64, 64))),),
            str(folder / "model.onnx"),
            dynamo=False,
            input_names=["pixels"],
            output_names=names,
            dynamic_axes=axes,
        )
    return folder
