"""Severstal: Steel Defect Detection (2019), STEEL in the literature: strips of 1600x256 px, four classes of defects.

    train_images/0002cc93b.jpg      12,568 images, 5,902 of them without defect
    train.csv                       ImageId,ClassId,EncodedPixels: a row a class and image, run lengths down the columns
                                    or ImageId_ClassId,EncodedPixels (0002cc93b.jpg_1,...): the older form

Two protocols, chosen by the name of the surface:

    severstal                       every class is a defect; the mask of an image joins all of its classes
    severstal_class3                one class against no defect at all, as the literature trains (class 3 there): the
                                    mask is that class alone, images with other classes only are left out

Any name will do: one that ends in `class1` to `class4` is the protocol of one class. Test images have no labels and
are not read; there is no official split of the others, and nothing says which strip they were cut from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sbdzsl.datasets import annotation_files
from sbdzsl.datasets.annotation_files import Annotation
from sbdzsl.datasets.layout import Entry, bad_layout, list_entries
from sbdzsl.datasets.sample import Sample, stored_sample
from sbdzsl.errors import DataError

EXPECTED = """  train.csv
  train_images/0002cc93b.jpg"""


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read the training images below `source` under the protocol that the name `surface` chooses (see above).

    Raises `DataError` bad-layout for a source without train.csv or train_images/, bad-manifest for a table that names
    images which are not there or, in its older form, does not name all that are.
    """
    entries = list_entries(source)
    tables = [entry for entry in entries if entry.name.lower() == "train.csv"]
    images = [entry for entry in entries if entry.is_image and entry.folders[-1:] == ("train_images",)]
    if len(tables) != 1 or not images:
        found = f"{len(tables)} train.csv and {len(images)} images in train_images/; expected one, and some"
        raise bad_layout(source, entries, found, EXPECTED)
    table = tables[0].file.uri
    masks = annotation_files.load(table)
    _check_names(table, masks, images)
    name = surface or "severstal"
    one_class = re.search(r"class_?([1-4])$", name.lower())
    samples = []
    for entry in images:
        every = masks.get(entry.name)
        is_benign = every is None or not every.codes
        key = f"{entry.name}_{one_class[1]}" if one_class else entry.name
        is_defect = key in masks and bool(masks[key].codes)
        if is_benign or is_defect:
            samples.append(
                stored_sample(
                    entry.file,
                    surface=name,
                    label="defect" if is_defect else "benign",
                    mask_uri=annotation_files.reference(table, key) if is_defect else None,
                    mask_kind="rle" if is_defect else None,
                )
            )
    return samples


def _check_names(table: str, masks: Mapping[str, Annotation], images: list[Entry]) -> None:
    listed, there = {annotation.name for annotation in masks.values()}, {entry.name for entry in images}
    absent = sorted(listed - there)
    if absent:
        raise DataError(
            "bad-manifest",
            f"{table} names {len(absent)} images that are not in train_images/, such as {absent[0]}; complete the copy",
        )
    unlisted = sorted(there - listed)
    # The older form has rows for every image; today's leaves out the ones without defect.
    if unlisted and any(not annotation.codes for annotation in masks.values()):
        raise DataError(
            "bad-manifest",
            f"{table} lists images without defect, but not {len(unlisted)} of them, such as {unlisted[0]}; "
            "add their rows or remove the images",
        )
