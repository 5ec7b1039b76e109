"""Image -> feature vector: mean and log standard deviation of each stage of the backbone, over fixed native crops.

Order is forgotten (a texture has none), second order is kept (it carries texture), nothing is resized (scale is
information on a line with a fixed camera). D = 608 numbers with the default backbone: means, then log-stds, stage by
stage.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.backbone import Backbone

#: Part of the cache key: raise it whenever `Embedder.embed` would give other numbers for the same image.
EMBEDDING_VERSION = 2

#: Crop [H, W] to mean and variance [D / 2] of the channels of all stages.
Statistics = Callable[[NDArray[np.float32]], tuple[NDArray[np.float64], NDArray[np.float64]]]

# Below this standard deviation a channel counts as silent; without a floor, dead channels would turn into noise.
_STD_FLOOR = 0.01


class Embedder:
    """The frozen feature extractor: the same image gives the same bits, whatever ran before and on any thread count.

    `device` is a torch device; bits are only promised on the CPU. `statistics` runs the backbone in place of PyTorch.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: RouterSettings,
        device: str = "cpu",
        statistics: Statistics | None = None,
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.backbone = backbone.to(self.device)
        self.backbone_digest = backbone.digest
        self._statistics = statistics or self._torch_statistics

    def embed(self, grey: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of one image: [H, W] float32 in [0, 1], any size -> [D] float32.

        An image that has one side shorter than `crop_px` is used whole along that side.
        """
        means, variances = [], []
        # One crop at a time: its maps stay in the cache, a larger input takes more than its share of time.
        for top, left, height, width in crop_boxes(grey.shape[0], grey.shape[1], self.settings):
            mean, variance = self._statistics(grey[top : top + height, left : left + width])
            means.append(mean)
            variances.append(variance)
        # All crops have one size, so the statistics over all their pixels follow from those of each.
        mean = np.mean(means, axis=0)
        std = np.sqrt(np.mean(variances, axis=0) + np.var(means, axis=0))
        return np.concatenate([mean, np.log(std + _STD_FLOOR)]).astype(np.float32)

    def embed_cached(self, grey: NDArray[np.float32], digest: str, folder: Path) -> NDArray[np.float32]:
        """As `embed`, kept in a file of the local `folder` under image digest, backbone digest and crop settings.

        `digest` must identify the pixels (bytes and the depth they were read with), not only the file's name. A file
        that cannot be read is computed and written anew.
        """
        crops = f"{self.settings.crop_px} {self.settings.max_crops}"
        key = hashlib.sha256(f"{EMBEDDING_VERSION} {digest} {self.backbone_digest} {crops}".encode()).hexdigest()
        path = folder / key[:2] / f"{key}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            features = self.embed(grey)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            np.save(part, features)
        Path(part.name).replace(path)  # whole or not at all: others may read and write the same entry
        return features

    def _torch_statistics(self, crop: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance of each channel over the pixels of one crop."""
        batch = torch.from_numpy(np.ascontiguousarray(crop, dtype=np.float32)[None, None]).to(self.device)
        with torch.inference_mode():
            maps = [stage[0].permute(1, 2, 0).cpu().numpy() for stage in self.backbone(batch)]
        means, variances = [], []
        for stage in maps:
            height, width, channels = stage.shape
            # Rows are summed first, then columns: long contiguous lines, one fixed order, the last sum in float64.
            rows = stage.reshape(height, width * channels)
            mean = rows.mean(0).reshape(width, channels).mean(0, dtype=np.float64)
            deviation = rows - np.tile(mean.astype(np.float32), width)
            deviation *= deviation
            means.append(mean)
            variances.append(deviation.mean(0).reshape(width, channels).mean(0, dtype=np.float64))
        return np.concatenate(means), np.concatenate(variances)


def crop_boxes(height: int, width: int, settings: RouterSettings) -> list[tuple[int, int, int, int]]:
    """The crops of an image of `height` x `width`, as (top, left, height, width) in source pixels.

    Their number is how often a crop's area fits in the image's, at least 1 and at most `max_crops`. They are spread
    evenly along the longer side, and by the golden ratio along the shorter one; nothing is drawn by chance.
    """
    crop_height, crop_width = min(settings.crop_px, height), min(settings.crop_px, width)
    number = min(max(round(height * width / (crop_height * crop_width)), 1), settings.max_crops)
    boxes = []
    for i in range(number):
        along, across = (i + 0.5) / number, (0.5 + i * 0.618034) % 1
        y, x = (along, across) if height >= width else (across, along)
        top = min(max(round(y * height - crop_height / 2), 0), height - crop_height)
        left = min(max(round(x * width - crop_width / 2), 0), width - crop_width)
        boxes.append((top, left, crop_height, crop_width))
    return boxes
