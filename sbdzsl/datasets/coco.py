"""COCO JSON, as labelling tools export it: boxes, polygons and run lengths in one file for many images.

    annotations/instances_default.json      images (id, file_name, width, height), annotations (image_id, bbox,
    images/0001.png                         segmentation), categories
    train/_annotations.coco.json            or one file a split
    train/0001.jpg

The source is such a file or a folder with one or several. Every category is a defect, crowds too; an image without
annotation is benign. An image is the file whose path ends in `file_name`, beside the JSON file where there are
several. The words train, val (valid, validation) and test in the path of a JSON file are the split of its images.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping

from sbdzsl import lake
from sbdzsl.datasets import annotation_files
from sbdzsl.datasets.annotation_files import Annotation
from sbdzsl.datasets.layout import Entry, bad_layout, folder_name, list_entries
from sbdzsl.datasets.sample import MaskKind, Sample, Split, stored_sample
from sbdzsl.errors import DataError

EXPECTED = """  annotations/instances_default.json
  images/0001.png
or <split>/_annotations.coco.json with <split>/0001.png"""

_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

#: The kind of a mask with several codes is that of the weakest of them.
_KINDS: tuple[MaskKind, ...] = ("box", "polygon", "rle")


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read all COCO files of `source` as one surface: `surface`, or the name of the folder.

    Raises `DataError` bad-layout for a source without such a file, bad-manifest for a damaged one, for an image that
    is not there, is not the only one of its name, or stands in two files.
    """
    folder, chosen = source, None
    if source.lower().endswith(".json"):
        folder, chosen = lake.absolute_url(source).rpartition("/")[0], lake.absolute_url(source)
        if folder_name(folder) == "annotations":
            folder = folder.rpartition("/")[0]
    entries = list_entries(folder)
    files = [entry for entry in entries if entry.file.uri == chosen or (chosen is None and _is_coco(entry))]
    if not files:
        raise bad_layout(source, entries, "no COCO file: a JSON document with images and annotations", EXPECTED)
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_name[entry.name].append(entry)
    samples: dict[str, Sample] = {}
    for file in files:
        for key, annotation in annotation_files.load(file.file.uri).items():
            entry = _image_of(file, annotation, by_name)
            if entry.file.uri in samples:
                raise DataError("bad-manifest", f"{file.file.uri}: {entry.path} is listed twice; name one file only")
            samples[entry.file.uri] = _sample(file, key, annotation, entry, surface or folder_name(folder))
    return list(samples.values())


def _is_coco(entry: Entry) -> bool:
    if not entry.name.lower().endswith(".json"):
        return False
    try:
        document = json.loads(lake.read_bytes(entry.file.uri))
    except ValueError:
        return False
    return isinstance(document, dict) and {"images", "annotations"} <= document.keys()


def _image_of(file: Entry, annotation: Annotation, by_name: Mapping[str, list[Entry]]) -> Entry:
    wanted = annotation.name.replace("\\", "/").lstrip("./")
    found = [e for e in by_name.get(wanted.rpartition("/")[2], []) if f"/{e.path}".endswith(f"/{wanted}")]
    beside = [entry for entry in found if entry.path == "/".join((*file.folders, wanted))]
    if len(beside or found) != 1:
        raise DataError(
            "bad-manifest",
            f"{file.file.uri}: {len(found)} files are the image {annotation.name!r}; expected one below the source",
        )
    return (beside or found)[0]


def _sample(file: Entry, key: str, annotation: Annotation, entry: Entry, surface: str) -> Sample:
    kinds = {kind for kind, _ in annotation.codes}
    words = [word for word in re.findall("[a-z]+", file.path.lower()) if word in _SPLITS]
    return stored_sample(
        entry.file,
        surface=surface,
        label="defect" if kinds else "benign",
        mask_uri=annotation_files.reference(file.file.uri, key) if kinds else None,
        mask_kind=next((kind for kind in _KINDS if kind in kinds), None),
        split=_SPLITS[words[-1]] if words else None,
    )
