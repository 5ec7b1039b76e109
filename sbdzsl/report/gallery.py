"""Judged images as pictures: for `sbdzsl inspect --overlay` and for the gallery of a report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbdzsl.inspector import Inspector, Loaded, load_image
from sbdzsl.report.overlay import GalleryImage, draw_overlay, encode_png, encode_thumbnail
from sbdzsl.verdict import Verdict


def overlay_png(inspector: Inspector, loaded: Loaded, verdict: Verdict) -> bytes:
    """One judged image with its defect map, regions and verdict, as PNG. `loaded` must hold an image."""
    return encode_png(_draw(inspector, loaded, verdict))


def overlay_name(uri: str) -> str:
    """File name of an image's overlay, without suffix: the image's own, and a mark that keeps equal names apart."""
    mark = hashlib.sha256(uri.encode()).hexdigest()[:8]
    return f"{PurePosixPath(uri).stem}-{mark}"


def gallery_image(inspector: Inspector, row: Mapping[str, Any]) -> GalleryImage | None:
    """Thumbnail with overlay of one verdict row; None where the image can no longer be read."""
    loaded = load_image(row["image_id"], row["uri"], inspector.bundle.settings.image, row["bit_depth"])
    if loaded.image is None:
        return None
    drawn = _draw(inspector, loaded, inspector.decide(loaded))
    size = f"{loaded.image.width}×{loaded.image.height} px"
    return GalleryImage(encode_thumbnail(drawn), "image/jpeg", (size,))


def _draw(inspector: Inspector, loaded: Loaded, verdict: Verdict) -> NDArray[np.uint8]:
    assert loaded.image is not None
    grey = loaded.image.grey()
    heat, map_threshold = None, 0.0
    # An unseen surface has no detector, a good image an empty overlay: its map is below the image's threshold.
    if verdict.surface is not None and verdict.verdict == "defect":
        _, found = inspector.detect(grey, verdict.surface)
        heat, map_threshold = found.heat(), inspector.bundle.detectors[verdict.surface].detector.map_threshold
    _, _, caption = verdict.describe().partition(" ")  # the strip says the verdict itself
    return draw_overlay(grey, heat, map_threshold, verdict.regions, verdict.verdict, caption)
