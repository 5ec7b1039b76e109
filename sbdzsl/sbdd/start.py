"""Weights to begin a training with: learnt on random surfaces with drawn defects, so that few labels go further.

Made by `benchmarks/pretrain_lite.py` from `datasets/random_textures.py` and `augment.py` alone: no image of anybody's.
"""

from __future__ import annotations

from importlib import resources

import safetensors.torch
from torch import Tensor

from sbdzsl.config import DetectorSettings

FOLDER = "pretrained"


def start_name(width: float) -> str:
    """File name of the weights of a `lite` of this width."""
    return f"lite-{width:g}.safetensors"


def start_weights(settings: DetectorSettings) -> dict[str, Tensor] | None:
    """State of the network that `settings` name, float32; None where nothing was learnt beforehand for it."""
    file = resources.files("sbdzsl.sbdd") / FOLDER / start_name(settings.width)
    if settings.network != "lite" or not file.is_file():
        return None
    weights = safetensors.torch.load(file.read_bytes())
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
