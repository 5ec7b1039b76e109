"""DAGM 2007 (Wieler, Hahn, Hamprecht), and every lake drawn in its layout.

    Class1/Train/0576.PNG                     512x512, 8-bit grey
    Class1/Train/Label/Labels.txt             first line `1`, then tab-separated: number, 0|1, image, 0, label file or 0
    Class1/Train/Label/0576_label.PNG         weak ellipse around the defect; only of defective images
    Class1/Test/...                           as Train

The source is the folder of all classes or that of one class. Any folder with Train/ or Test/ and a Label/ in it is a
class; `ClassN` becomes the surface `dagm_classN`, other names are lower-cased. Labels.txt is the truth where there is
one, else the existence of a label file. The official split is used where a class is complete enough, see `scan`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace

from sbdzsl import lake
from sbdzsl.datasets.layout import Entry, bad_layout, choose_surface, folder_name, list_entries
from sbdzsl.datasets.sample import Sample, stored_sample
from sbdzsl.errors import DataError

EXPECTED = """  Class1/Train/0576.PNG
  Class1/Train/Label/Labels.txt
  Class1/Train/Label/0576_label.PNG
  Class1/Test/..."""

MIN_TRAIN_SHARE = 0.2
MIN_TRAIN_DEFECTS = 5


@dataclass
class _Half:
    """Train or Test of one class, by upper-cased file name, as DAGM's own case differs between copies."""

    path: str
    images: dict[str, Entry] = field(default_factory=dict)
    labels: dict[str, Entry] = field(default_factory=dict)
    table: Entry | None = None


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read the classes below `source`, or the one named by `surface`.

    `split` is the official one (train or test) for a class whose Train holds at least 20 % of its images and 5
    defects, and None for others, which need a split of their own. Raises `DataError` bad-layout for a source without
    a class, bad-manifest where Labels.txt and the files contradict each other.
    """
    entries = list_entries(source)
    classes = _classes(source, entries)
    if not classes:
        raise bad_layout(source, entries, "no folder with Train/ or Test/ and a Label/ in it", EXPECTED)
    names = {path: _surface_name(path.rpartition("/")[2] or folder_name(source)) for path in classes}
    chosen = choose_surface(source, names, surface)
    repeated = sorted({name for name in chosen.values() if list(chosen.values()).count(name) > 1})
    if repeated:
        raise bad_layout(source, entries, f"several folders are the surface {', '.join(repeated)}", EXPECTED)
    return [sample for path, name in chosen.items() for sample in _read_class(classes[path], name)]


def _surface_name(folder: str) -> str:
    name = folder.lower()
    return f"dagm_{name}" if re.fullmatch(r"class\d+", name) else name


def _classes(source: str, entries: list[Entry]) -> dict[str, dict[str, _Half]]:
    """Path of each class folder ('' for the source itself) to its halves."""
    classes: dict[str, dict[str, _Half]] = defaultdict(dict)
    for entry in entries:
        lowered = [part.lower() for part in entry.folders]
        is_label = lowered[-1:] == ["label"]
        above = entry.folders[:-1] if is_label else entry.folders
        if not above or above[-1].lower() not in ("train", "test"):
            continue
        halves = classes["/".join(above[:-1])]
        half = halves.setdefault(above[-1].lower(), _Half(f"{source.rstrip('/')}/{'/'.join(above)}"))
        if not is_label and entry.is_image:
            half.images[entry.name.upper()] = entry
        elif is_label and entry.name.lower() == "labels.txt":
            half.table = entry
        elif is_label and entry.stem.lower().endswith("_label"):
            half.labels[entry.stem.upper()] = entry
    return {
        path: halves for path, halves in classes.items() if any(half.labels or half.table for half in halves.values())
    }


def _read_class(halves: dict[str, _Half], surface: str) -> list[Sample]:
    samples = [
        stored_sample(
            entry.file,
            surface=surface,
            label="defect" if mask else "benign",
            mask_uri=mask.file.uri if mask else None,
            mask_kind="ellipse" if mask else None,
            split=split,
        )
        for split, half in sorted(halves.items())
        for entry, mask in _labelled(half)
    ]
    train = [sample for sample in samples if sample.split == "train"]
    defects = sum(sample.label == "defect" for sample in train)
    if len(train) >= MIN_TRAIN_SHARE * len(samples) and defects >= MIN_TRAIN_DEFECTS and len(train) < len(samples):
        return samples
    return [replace(sample, split=None) for sample in samples]


def _labelled(half: _Half) -> list[tuple[Entry, Entry | None]]:
    """Each image with its label file, None where it is benign."""
    by_file = {name: half.labels.get(f"{entry.stem.upper()}_LABEL") for name, entry in half.images.items()}
    stray = half.labels.keys() - {f"{entry.stem.upper()}_LABEL" for entry in half.images.values()}
    if stray:
        raise DataError(
            "bad-manifest", f"{half.path}/Label: {min(stray)} is the label of no image; remove it or add its image"
        )
    if half.table is not None:
        listed = _read_table(half.table)
        for name in sorted(half.images.keys() | listed.keys()):
            _check_row(half, name, listed.get(name), by_file)
    return [(entry, by_file[name]) for name, entry in half.images.items()]


def _check_row(half: _Half, name: str, defective: bool | None, by_file: dict[str, Entry | None]) -> None:
    table = f"{half.path}/Label/Labels.txt"
    if name not in by_file:
        raise DataError(
            "bad-manifest", f"{table} lists {name}, which is not in {half.path}; complete the copy or drop its line"
        )
    if defective is None:
        raise DataError("bad-manifest", f"{table} does not list {name}; add its line or remove the image")
    if defective and by_file[name] is None:
        raise DataError(
            "bad-manifest", f"{table} lists {name} as defective, but its label file is missing in {half.path}/Label"
        )
    if not defective and by_file[name] is not None:
        raise DataError(
            "bad-manifest", f"{table} lists {name} as benign, but a label file of it is in {half.path}/Label"
        )


def _read_table(entry: Entry) -> dict[str, bool]:
    """Labels.txt: upper-cased image name to whether it is defective."""
    listed: dict[str, bool] = {}
    lines = lake.read_bytes(entry.file.uri).decode("utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) < 3:
            if number == 1 or not line.strip():
                continue
            raise DataError(
                "bad-manifest",
                f"{entry.file.uri}: line {number} is {line!r}; expected number, 0 or 1, image, 0, label file, by tabs",
            )
        if fields[1] not in ("0", "1"):
            raise DataError(
                "bad-manifest", f"{entry.file.uri}: line {number}: defective is {fields[1]!r}; expected 0 or 1"
            )
        listed[fields[2].strip().upper()] = fields[1] == "1"
    return listed
