"""NEU-DET (Song, Yan 2013; boxes: He, Song, Meng, Yan 2019): hot-rolled steel strip, six kinds of defects.

    IMAGES/crazing_1.jpg          200x200
    ANNOTATIONS/crazing_1.xml     Pascal VOC boxes

There is no benign image. All kinds are one surface, `neu`, since one camera on one line sees them all. The masks are
boxes: weak regions, of which a large part is sound steel.
"""

from __future__ import annotations

from sbdzsl.datasets.layout import bad_layout, list_entries
from sbdzsl.datasets.sample import Sample, stored_sample

EXPECTED = """  IMAGES/crazing_1.jpg
  ANNOTATIONS/crazing_1.xml"""


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read all images below `source`; `surface` replaces the name `neu`.

    Raises `DataError` bad-layout for a source without IMAGES/ or an image without annotation.
    """
    entries = list_entries(source)
    images = [
        entry for entry in entries if entry.is_image and entry.folders[-1:] and entry.folders[-1].upper() == "IMAGES"
    ]
    boxes = {entry.stem: entry for entry in entries if entry.name.lower().endswith(".xml")}
    if not images:
        raise bad_layout(source, entries, "no folder IMAGES with images", EXPECTED)
    for entry in images:
        if entry.stem not in boxes:
            raise bad_layout(source, entries, f"{entry.path} has no ANNOTATIONS/{entry.stem}.xml", EXPECTED)
    return [
        stored_sample(
            entry.file,
            surface=surface or "neu",
            label="defect",
            mask_uri=boxes[entry.stem].file.uri,
            mask_kind="box",
        )
        for entry in images
    ]
