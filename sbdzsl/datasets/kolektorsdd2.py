"""KolektorSDD2 (Bozic, Tabernik, Skocaj 2021): 3335 colour images of one production line, about 230x630 px.

    train/10000.png             246 defective, 2085 benign
    train/10000_GT.png          pixel mask; all black where the image is benign
    test/20000.png              110 defective, 894 benign
    test/20000_GT.png

The official test set is kept. The images carry no number of the part they show, so the group is the image. An image is
defective where its mask holds any value above 0. Files with other names, such as copies of a mask, are left alone.
"""

from __future__ import annotations

import re

from sbdzsl.datasets.layout import bad_layout, list_entries, masks_beside
from sbdzsl.datasets.masks import any_above_zero
from sbdzsl.datasets.sample import Sample, stored_sample

EXPECTED = """  train/10000.png
  train/10000_GT.png
  test/20000.png
  test/20000_GT.png"""


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read both splits below `source`; `surface` replaces the name `kolektorsdd2`. Every mask is read.

    Raises `DataError` bad-layout for a source without images or an image without mask, bad-mask for an unreadable one.
    """
    entries = list_entries(source)
    inside = [e for e in entries if e.is_image and e.folders and e.folders[-1].lower() in ("train", "test")]
    images = [entry for entry in inside if re.fullmatch(r"\d+", entry.stem)]
    if not images:
        raise bad_layout(source, entries, "no folder train or test with images NNNNN.png", EXPECTED)
    masks = masks_beside(source, entries, images, "_GT", ".png", EXPECTED)
    defective = any_above_zero([mask.file.uri for mask in masks])
    return [
        stored_sample(
            entry.file,
            surface=surface or "kolektorsdd2",
            label="defect" if is_defect else "benign",
            mask_uri=mask.file.uri if is_defect else None,
            mask_kind="pixels" if is_defect else None,
            split=entry.folders[-1].lower(),
        )
        for entry, mask, is_defect in zip(images, masks, defective, strict=True)
    ]
