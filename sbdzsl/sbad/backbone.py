"""Backbones: frozen nets that turn a grey crop into stage maps, whose statistics are the features of SBAD.

| `router.backbone` | module | needs |
| --- | --- | --- |
| none, `efficientnet-lite0`, or a folder with its folded safetensors | `efficientnet.py` | nothing |
| a folder with an ONNX graph | `onnx_backbone.py` | the extra `export` |
| a folder with `config.json` and safetensors, or a Hugging Face id | `huggingface.py` | the extra `huggingface` |

A backbone is a pair of plain values, tensors and a card, so that a bundle holds all of it: whatever it was read from is
needed once, in training, and never again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from sbdzsl.errors import BundleError, TrainingError
from sbdzsl.sbad import efficientnet, huggingface, onnx_backbone


class Backbone(Protocol):
    """What an `Embedder` and a bundle need of a net. Nothing in it is ever trained."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the maps, in the order they come in: from fine to coarse."""

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, over all that its maps depend on: weights, preprocessing, choice of stages."""

    def __call__(self, grey: Tensor) -> list[Tensor]:
        """Grey crops [B, 1, H, W], float32 in [0, 1], at source scale -> one map [B, C, h, w], float32, a stage."""

    def to(self, device: torch.device) -> Backbone:
        """The same net, with its weights on `device` where it can run there."""

    def tensors(self) -> dict[str, Tensor]:
        """What a bundle stores of it as safetensors, on the CPU."""

    def card(self) -> dict[str, Any]:
        """What a bundle's card stores of it, plain JSON: `kind`, `stages`, `licence` and `source` (None if unknown)."""


def load_backbone(spec: str | None = None, stages: Sequence[str] = (), crop_px: int | None = None) -> Backbone:
    """The backbone that `spec` names (see the table above), giving the maps of `stages`; its own choice if empty.

    Raises `TrainingError` (`weights-missing`) where weights are absent or incomplete; `ConfigError`: `missing-extra`,
    `bad-config` for a stage that the net lacks, or for crops of `crop_px` pixels that are too large for its input.
    """
    folder = Path(spec or "")
    if spec is None or spec == efficientnet.KIND:
        return efficientnet.packaged(stages)
    if not folder.is_dir():
        if huggingface.is_hub_id(spec):
            return huggingface.load(spec, stages)
        raise TrainingError(
            "weights-missing",
            f"backbone {spec!r}: found no such folder, expected {efficientnet.KIND!r}, a folder of weights or a "
            "Hugging Face id such as microsoft/resnet-18",
        )
    if any(folder.glob("*.onnx")):
        return onnx_backbone.load(folder, stages, crop_px)
    if (folder / "config.json").is_file():
        return huggingface.load(spec, stages)
    return _folded_trunk(folder, stages)


def restore_backbone(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Backbone:
    """The inverse of `Backbone.card` and `Backbone.tensors`: the same maps, and no look at disk or network.

    Raises `BundleError` (`damaged-bundle`) for a kind that nobody knows, `ConfigError` (`missing-extra`).
    """
    if card["kind"] == efficientnet.KIND:
        return efficientnet.EfficientNetLite0.from_tensors(tensors, card["stages"], card["licence"], card["source"])
    if card["kind"] == onnx_backbone.KIND:
        return onnx_backbone.OnnxBackbone.from_card(card, tensors)
    if card["kind"] == huggingface.KIND:
        return huggingface.HuggingFaceBackbone.from_card(card, tensors)
    raise BundleError("damaged-bundle", f"backbone of kind {card['kind']!r}: this sbdzsl does not know it; update it")


def _folded_trunk(folder: Path, stages: Sequence[str]) -> Backbone:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise TrainingError(
            "weights-missing",
            f"backbone {str(folder)!r}: found no .safetensors and no .onnx file there, expected one; a Hugging Face "
            "model also needs its config.json",
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    return efficientnet.EfficientNetLite0.from_tensors(tensors, stages, source=folder.name)
