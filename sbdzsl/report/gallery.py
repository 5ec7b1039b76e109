"""Judged images as pictures: for `sbdzsl inspect --overlay` and for the galleries of a report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbdzsl.bundle import Bundle
from sbdzsl.datasets.sample import Sample
from sbdzsl.grouping import Grouping, group_unseen
from sbdzsl.inspector import Inspector, Loaded, load_image
from sbdzsl.report.drift import Measure, References
from sbdzsl.report.overlay import GalleryImage, draw_overlay, encode_png, encode_thumbnail
from sbdzsl.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Viewer:
    """What a report asks of a bundle beside the rows.

    `references` are what drift is measured against. `picture` shows one row (its plain values, without embedding),
    `thumbnail` one image as it is; both None where it can no longer be read. `group` groups unseen images.
    """

    references: References
    picture: Callable[[Mapping[str, Any]], GalleryImage | None]
    thumbnail: Callable[[Sample], GalleryImage | None]
    group: Callable[[Sequence[Sample]], Grouping]


def make_viewer(inspector: Inspector) -> Viewer:
    """What a report asks of an inspector's bundle, judged by that inspector."""
    bundle = inspector.bundle

    def group(samples: Sequence[Sample]) -> Grouping:
        return group_unseen(bundle, samples, report=lambda _: None)

    return Viewer(
        references=references_of(bundle),
        picture=lambda row: gallery_image(inspector, row),
        thumbnail=lambda sample: _thumbnail(inspector, sample),
        group=group,
    )


def references_of(bundle: Bundle) -> References:
    """What drift of the images of each surface is measured against."""
    return {surface: _references(bundle, surface) for surface in bundle.surfaces}


def _references(bundle: Bundle, surface: str) -> dict[Measure, NDArray[np.float64]]:
    own = bundle.references[surface]
    return {
        # As the table of verdicts stores them.
        "brightness": np.array(own.brightness, np.float32).astype(np.float64),
        "sharpness": np.array(own.sharpness, np.float32).astype(np.float64),
        "unseen_score": np.array(own.unseen_scores[bundle.router.promise]),
        "defect_score": bundle.detectors[surface].good_scores,
    }


def _thumbnail(inspector: Inspector, sample: Sample) -> GalleryImage | None:
    image = load_image(sample.image_id, sample.uri, inspector.bundle.settings.image, sample.bit_depth).image
    if image is None:
        return None
    tone = np.rint(np.clip(image.grey(), 0, 1) * 255).astype(np.uint8)
    return GalleryImage(encode_thumbnail(np.repeat(tone[:, :, None], 3, axis=2), 320, 320), "image/jpeg")


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
