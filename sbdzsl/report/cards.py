"""The pictures of the page with their words: one card a row, or a group of rows."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sbdzsl.report.formats import NONE, plain, score, share
from sbdzsl.report.overlay import GalleryImage
from sbdzsl.verdict import nearness

_MEDIA_TYPES = ("image/png", "image/jpeg")


@dataclass(frozen=True, slots=True)
class Card:
    """One picture of the gallery with its words; `source` is a data URL, None if the image can no longer be read."""

    source: str | None
    verdict: str
    folder: str
    name: str
    lines: tuple[tuple[str, str], ...]
    attributes: tuple[str, ...]
    extrapolated: bool


def make_card(row: Mapping[str, Any], image: GalleryImage | None) -> Card:
    """The card of a row that is judged defect or unseen. `ValueError` for a picture that is neither PNG nor JPEG."""
    source = None if image is None else data_url(image)
    folder, _, name = row["uri"].rpartition("/")
    lines = _defect_lines(row) if row["verdict"] == "defect" else _unseen_lines(row)
    if image is not None and image.caption:
        lines.append(("Image", plain(", ".join(image.caption))))
    attributes = tuple(row["attributes"] or ())
    return Card(
        source, row["verdict"], folder and f"{folder}/", name, tuple(lines), attributes, bool(row["extrapolated"])
    )


def _defect_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("Surface", plain(row["surface"] or NONE)),
        ("Score", _against(row["defect_score"], row["defect_threshold"])),
    ]
    if row["defect_probability"] is not None:
        lines.append(("Probability", share(row["defect_probability"])))
    regions = sorted(row["regions"] or (), key=lambda region: -region["score"])
    if regions:
        hottest = regions[0]
        more = f", the hottest of {len(regions)}" if len(regions) > 1 else ""
        box = f"{hottest['width']} × {hottest['height']}\u00a0px at x\u00a0{hottest['x']}, y\u00a0{hottest['y']}"
        lines.append(("Place", box + more))
    return lines


def _unseen_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    p_value = row["unseen_p_value"]
    return [
        ("Score", _against(row["unseen_score"], row["unseen_threshold"])),
        ("p-value", NONE if p_value is None else f"{p_value:.2g}"),
        ("Nearest", plain(_nearest(row))),
    ]


def _nearest(row: Mapping[str, Any]) -> str:
    near, scores = row["nearest_surfaces"] or (), row["nearest_scores"] or ()
    return nearness(near, scores, row["unseen_threshold"]) or row["surface"] or NONE


def _against(found: float | None, threshold: float | None) -> str:
    if found is None or threshold is None:
        return score(found)
    return f"{score(found)}, threshold {score(threshold)} (+{score(found - threshold)})"


def data_url(image: GalleryImage) -> str:
    """The picture as text inside the page. `ValueError` for another kind than PNG or JPEG: it may hold a script."""
    if image.media_type not in _MEDIA_TYPES:
        raise ValueError(f"a gallery image is {image.media_type!r}, expected one of {_MEDIA_TYPES}")
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode('ascii')}"
