"""Grey to the planes that a foreign net was trained on: repeated, shifted by its mean, divided by its deviation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbdzsl.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(x - mean) / std of an image with black 0 and white 1; one value each, or one for each plane."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, grey: Tensor, planes: int) -> Tensor:
        """[B, 1, H, W] -> [B, planes, H, W]."""
        mean, std = (torch.tensor(values, device=grey.device).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((grey - mean) / std).expand(-1, planes, -1, -1)


def read_normalisation(file: Path) -> Normalisation | None:
    """What a Hugging Face `preprocessor_config.json` says; None where there is no such file.

    Read as plain JSON: the library's own image processors need torchvision, and scale the image. Raises `TrainingError`
    (`weights-missing`) for a file that cannot be read.
    """
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return _normalisation(values.get("image_processor", values))
    except (ValueError, TypeError, AttributeError) as error:
        raise TrainingError("weights-missing", f"{file}: found no preprocessing that can be read: {error}") from None


def _normalisation(values: Mapping[str, Any]) -> Normalisation:
    # White as the net sees it before mean and std: 1, or what the factor makes of 255.
    white = 255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
    told = values if values.get("do_normalize", True) else {}
    mean, std = (
        tuple(float(value) / white for value in told.get(name, (default,)))
        for name, default in (("image_mean", 0), ("image_std", 1))
    )
    return Normalisation(mean, std)
