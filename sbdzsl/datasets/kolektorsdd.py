"""KolektorSDD (Tabernik, Sela, Skvarc, Skocaj 2019): commutators, 50 items photographed 8 times each.

    kos01/Part0.jpg             500 px wide, 1235 to 1285 px high, grey
    kos01/Part0_label.bmp       pixel mask; all black where the image is benign

The group is the item. An image is defective where its mask holds any value above 0, so masks written as 0/255 and as
0/1 are read alike. In the re-encoded part that carries an index.csv the item numbers are rebuilt, and whether the item
of seven images is kos14 or kos15 is not certain: there these two are one group.
"""

from __future__ import annotations

import re

from sbdzsl.datasets.layout import bad_layout, list_entries, masks_beside
from sbdzsl.datasets.masks import any_above_zero
from sbdzsl.datasets.sample import Sample, stored_sample

EXPECTED = """  kos01/Part0.jpg
  kos01/Part0_label.bmp
  kos02/..."""

_UNCERTAIN_ITEMS = frozenset({"kos14", "kos15"})


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read all items below `source`; `surface` replaces the name `kolektorsdd`. Every mask is read, to label its image.

    Raises `DataError` bad-layout for a source without items or an image without mask, bad-mask for an unreadable one.
    """
    entries = list_entries(source)
    in_items = [entry for entry in entries if entry.folders and re.fullmatch(r"kos\d+", entry.folders[-1].lower())]
    images = [entry for entry in in_items if entry.is_image and not entry.stem.lower().endswith("_label")]
    if not images:
        raise bad_layout(source, entries, "no folder kosNN with images", EXPECTED)
    masks = masks_beside(source, entries, images, "_label", ".bmp", EXPECTED)
    rebuilt = any(not entry.folders and entry.name == "index.csv" for entry in entries)
    defective = any_above_zero([mask.file.uri for mask in masks])
    return [
        stored_sample(
            entry.file,
            surface=surface or "kolektorsdd",
            label="defect" if is_defect else "benign",
            mask_uri=mask.file.uri if is_defect else None,
            mask_kind="pixels" if is_defect else None,
            group=_group(entry.folders[-1].lower(), rebuilt),
        )
        for entry, mask, is_defect in zip(images, masks, defective, strict=True)
    ]


def _group(item: str, rebuilt: bool) -> str:
    return "kos14+kos15" if rebuilt and item in _UNCERTAIN_ITEMS else item
