"""Folders of one's own: no code, no table.

    steel/benign/0001.png                 also: good, ok
    steel/defect/0002.png                 also: defective, bad, nok
    steel/benign/lot7/0003.png            folders below a label are the group: a part or lot that is never split
    steel/masks/0002.png                  optional mask: same stem, below the same lot folder where the stem repeats
    steel/defect/0002_mask.png            or beside the image: _mask or _label
    leather/0001.jpg                      no label folder: images without labels
    leather/roll3/0001.jpg                ... and with a group

The source holds one folder a surface, or is one surface itself (images, or label folders, directly inside). Names of
label folders and `masks` are read in any case; files that are no images are left alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from sbdzsl.datasets.layout import Entry, bad_layout, choose_surface, folder_name, list_entries
from sbdzsl.datasets.sample import Label, Sample, stored_sample
from sbdzsl.errors import DataError

EXPECTED = """  <surface>/benign/*.png    or good, ok
  <surface>/defect/*.png    or defective, bad, nok
  <surface>/masks/*.png     optional
  <surface>/*.png           where there are no labels
or the inside of one <surface> folder"""

LABEL_FOLDERS: dict[str, Label] = {
    "benign": "benign",
    "good": "benign",
    "ok": "benign",
    "defect": "defect",
    "defective": "defect",
    "bad": "defect",
    "nok": "defect",
}

_MASK_SUFFIX = re.compile(r"(.+)_(?:mask|label)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Placed:
    """An image file and what its folders say: surface folder, role (a label folder, `masks` or None), group folders."""

    entry: Entry
    surface: str
    role: str | None
    group: tuple[str, ...]


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read all surfaces below `source`, or the one named by `surface`.

    Raises `DataError` bad-layout for a source without images, a mixture of one surface and several, label folders
    deeper down or masks without label folders, bad-mask for a mask that belongs to no image or to several.
    """
    entries = list_entries(source)
    placed = [_place(entry) for entry in entries if entry.is_image]
    if not placed:
        raise bad_layout(source, entries, "no images", EXPECTED)
    folders = {place.surface for place in placed}
    deep = [folder for folder in folders if "/" in folder]
    if deep:
        raise bad_layout(source, entries, f"label folders are below {min(deep)!r}, two levels or more down", EXPECTED)
    if "" in folders and len(folders) > 1:
        raise bad_layout(
            source, entries, "images or label folders directly inside, and folders of surfaces too", EXPECTED
        )
    chosen = choose_surface(source, {folder: folder or folder_name(source) for folder in sorted(folders)}, surface)
    of_surface: dict[str, list[_Placed]] = defaultdict(list)
    for place in placed:
        of_surface[place.surface].append(place)
    samples: list[Sample] = []
    for folder, name in chosen.items():
        samples += _read_surface(source, of_surface[folder], name)
    return samples


def _place(entry: Entry) -> _Placed:
    for depth, folder in enumerate(entry.folders):
        if folder.lower() in LABEL_FOLDERS or folder.lower() == "masks":
            return _Placed(entry, "/".join(entry.folders[:depth]), folder.lower(), entry.folders[depth + 1 :])
    return _Placed(entry, "/".join(entry.folders[:1]), None, entry.folders[1:])


def _read_surface(source: str, placed: list[_Placed], surface: str) -> list[Sample]:
    stems = {(place.role, place.group, place.entry.stem) for place in placed}
    masks: list[_Placed] = []
    images: list[_Placed] = []
    for place in placed:
        (masks if place.role == "masks" or _is_beside(place, stems) else images).append(place)
    mask_of = _match_masks(source, images, masks)
    return [
        stored_sample(
            place.entry.file,
            surface=surface,
            label=LABEL_FOLDERS[place.role] if place.role else None,
            mask_uri=mask_of[place].entry.file.uri if place in mask_of else None,
            mask_kind="pixels" if place in mask_of else None,
            group="/".join(place.group) or None,
        )
        for place in images
    ]


def _is_beside(place: _Placed, stems: set[tuple[str | None, tuple[str, ...], str]]) -> bool:
    """Whether a file is the mask of an image beside it: `a_mask` counts only where there is an `a`."""
    match = _MASK_SUFFIX.fullmatch(place.entry.stem)
    return match is not None and (place.role, place.group, match.group(1)) in stems


def _match_masks(source: str, images: list[_Placed], masks: list[_Placed]) -> dict[_Placed, _Placed]:
    """Image to its mask."""
    labelled = [place for place in images if place.role]
    in_lot: dict[tuple[tuple[str, ...], str], list[_Placed]] = defaultdict(list)
    for place in labelled:
        in_lot[place.group, place.entry.stem].append(place)
    repeats = Counter(place.entry.stem for place in labelled)
    by_stem = {place.entry.stem: place for place in labelled if repeats[place.entry.stem] == 1}
    mask_of: dict[_Placed, _Placed] = {}
    for mask in masks:
        owners = _owners(mask, in_lot, by_stem)
        if not labelled:
            raise DataError(
                "bad-layout",
                f"{source}: {mask.entry.path} is a mask, but no image there has a label\nexpected:\n{EXPECTED}",
            )
        if len(owners) != 1 or owners[0] in mask_of:
            raise DataError(
                "bad-mask",
                f"{source}: {mask.entry.path} belongs to {len(owners)} images of that stem; expected one and one mask: "
                "put it below masks/<lot>/ or name it as its image",
            )
        mask_of[owners[0]] = mask
    return mask_of


def _owners(
    mask: _Placed, in_lot: dict[tuple[tuple[str, ...], str], list[_Placed]], by_stem: dict[str, _Placed]
) -> list[_Placed]:
    stem = mask.entry.stem
    match = _MASK_SUFFIX.fullmatch(stem)
    if mask.role != "masks":
        assert match is not None  # that is what made it a mask
        return [place for place in in_lot[mask.group, match.group(1)] if place.role == mask.role]
    for candidate in (stem, match.group(1) if match else stem):
        owners = in_lot.get((mask.group, candidate)) or ([by_stem[candidate]] if candidate in by_stem else [])
        # The same number may be in use for a benign and a defective image: the mask is then the defect's.
        defects = [place for place in owners if place.role and LABEL_FOLDERS[place.role] == "defect"]
        if owners:
            return defects or owners
    return []
