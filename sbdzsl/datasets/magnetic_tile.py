"""Magnetic tile surface defects (Huang, Qiu, Yuan 2018): five kinds of defects and MT_Free.

    MT_Blowhole/Imgs/exp1_num_108719.jpg      grey, each of its own size; exposure 1, frame 108719
    MT_Blowhole/Imgs/exp1_num_108719.png      pixel mask of the same size, above 127 is defect
    MT_Free/Imgs/...                          benign, all masks black

The folder decides the label: four MT_Uneven images have an all-black mask and are defects without mask. One tile was
photographed several times in a row, so images with neighbouring frames leak into each other: the group is the column
`group` of an index.csv (columns class, image, group) where the source has one, else rebuilt: over all images sorted
by frame, a new group begins wherever the frame jumps by 200 or more.
"""

from __future__ import annotations

import re

from sbdzsl.datasets.layout import Entry, bad_layout, list_entries, read_index
from sbdzsl.datasets.sample import Sample, stored_sample
from sbdzsl.errors import DataError

EXPECTED = """  MT_Blowhole/Imgs/exp1_num_108719.jpg
  MT_Blowhole/Imgs/exp1_num_108719.png
  MT_Free/Imgs/..."""

FRAME_GAP = 200

_NAME = re.compile(r"exp(\d+)_num_(\d+)", re.IGNORECASE)


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read all kinds below `source` as one surface; `surface` replaces the name `magnetic_tile`.

    Raises `DataError` bad-layout for a source without MT_ folders, an image without mask or with an unknown name,
    bad-manifest for an index.csv without one of the images.
    """
    entries = list_entries(source)
    inside = [e for e in entries if len(e.folders) >= 2 and e.folders[-1] == "Imgs" and e.folders[-2].startswith("MT_")]
    masks = {(entry.folders, entry.stem): entry for entry in inside if entry.name.lower().endswith(".png")}
    images = [entry for entry in inside if entry.name.lower().endswith((".jpg", ".jpeg"))]
    if not images:
        raise bad_layout(source, entries, "no folder MT_<kind>/Imgs with JPEG images", EXPECTED)
    for entry in images:
        if not _NAME.fullmatch(entry.stem) or (entry.folders, entry.stem) not in masks:
            raise bad_layout(source, entries, f"{entry.path}: no mask of that name, or not named expE_num_N", EXPECTED)
    groups = _listed_groups(source, entries, images) or _groups_by_frame(images)
    samples = []
    for entry in images:
        is_defect = entry.folders[-2] != "MT_Free"
        samples.append(
            stored_sample(
                entry.file,
                surface=surface or "magnetic_tile",
                label="defect" if is_defect else "benign",
                mask_uri=masks[entry.folders, entry.stem].file.uri if is_defect else None,
                mask_kind="pixels" if is_defect else None,
                group=groups[entry.path],
            )
        )
    return samples


def _listed_groups(source: str, entries: list[Entry], images: list[Entry]) -> dict[str, str] | None:
    rows = read_index(entries)
    if rows is None:
        return None
    listed = {(row.get("class"), row.get("image")): row.get("group") for row in rows}
    groups = {}
    for entry in images:
        group = listed.get((entry.folders[-2], entry.name))
        if not group:
            raise DataError(
                "bad-manifest", f"{source}: index.csv has no group for {entry.path}; add its row or remove index.csv"
            )
        groups[entry.path] = group
    return groups


def _groups_by_frame(images: list[Entry]) -> dict[str, str]:
    groups: dict[str, str] = {}
    number, last = 0, None
    for frame, path in sorted((_frame(entry), entry.path) for entry in images):
        if last is not None and frame - last >= FRAME_GAP:
            number += 1
        groups[path], last = str(number), frame
    return groups


def _frame(entry: Entry) -> int:
    match = _NAME.fullmatch(entry.stem)
    assert match is not None  # checked by scan
    return int(match.group(2))
