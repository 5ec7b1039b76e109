"""Where the images of the paper's tables come from, and their features for the tables of the router.

Tables 3 to 5 want many surfaces. Three sources: DAGM where all ten classes are there, ten drawn surfaces, which can
always be drawn, and whatever real surfaces are found. The first two follow DAGM_MIX (`datasets/mix.py`); but the paper
measures on its validation images, where here half of them set the threshold and the other half are tested on. The real
surfaces are divided 50:25:25 by group into training, calibration and test.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from sbdzsl import datasets, lake
from sbdzsl.config import ImageSettings
from sbdzsl.datasets import synthetic
from sbdzsl.datasets.layout import folder_name, list_entries
from sbdzsl.datasets.mix import augment_mix, build_mix
from sbdzsl.datasets.sample import Sample, assign_splits, group_of, load_mask
from sbdzsl.errors import DataError
from sbdzsl.image import decode
from sbdzsl.sbad.attributes import AttributeTable, measure_attributes, standard_attributes

Features = NDArray[np.float32]
#: Grey image [H, W] float32 in [0, 1] -> features [D] float32.
Embed = Callable[[NDArray[np.float32]], Features]

#: The drawn lake: images in all, and the share of defects. Per surface 50 of its benign images are taken.
DRAWN_IMAGES, DRAWN_DEFECTS, DRAWN_PER_LABEL = 1000, 0.3, 50
#: Real surfaces: of larger ones so many images are taken, smaller ones than this are left out.
MOST_IMAGES, LEAST_IMAGES = 120, 20
#: Layouts that name their surface themselves, in the order in which they are tried; then it is a plain folder.
_LAYOUTS = tuple(name for name in datasets.ADAPTERS if name not in ("table", "folder"))
#: A surface without a row in the attribute table is measured on so many of its images.
NUM_MEASURED = 20


@dataclass(frozen=True, slots=True)
class SurfaceFeatures:
    """Features of one surface's images, float32 [n, D]: the first three for where it is seen."""

    train: Features
    calibration: Features
    test: Features
    unseen: Features


@dataclass(frozen=True, slots=True)
class Collection:
    """Surfaces that are tried together, by name, with the table of their real CEs and what has to be said of them."""

    name: str
    surfaces: Mapping[str, SurfaceFeatures]
    attributes: AttributeTable
    notes: tuple[str, ...]


def find(adapter: str, data: str) -> str | None:
    """The folder in which `adapter` finds most images, of `data` and those directly below; None if it finds none.

    Of equals the one below. An adapter that this version does not have finds nothing. Raises `DataError` for a data
    set that is there but damaged.
    """
    scan = datasets.ADAPTERS.get(adapter)
    if scan is None:
        return None
    num_images: dict[str, int] = {}
    for folder in (*folders_below(data), data):
        try:
            num_images[folder] = len(scan(folder, None))
        except DataError as error:
            if error.code != "bad-layout":
                raise
    return max(num_images, key=lambda folder: num_images[folder], default=None)


def folders_below(data: str) -> list[str]:
    """The folders directly below `data` that hold something, sorted."""
    return [lake.join(data, name) for name in sorted({one.folders[0] for one in list_entries(data) if one.folders})]


def drawn(embed: Embed, settings: ImageSettings, seed: int = 0) -> Collection:
    """The ten drawn surfaces under DAGM_MIX: drawn into a temporary folder, embedded, removed."""
    with tempfile.TemporaryDirectory() as folder:
        url = lake.join(folder, "lake")
        synthetic.write_lake(url, DRAWN_IMAGES, seed, processes=1, defect_share=DRAWN_DEFECTS)
        # Ids that do not depend on where the folder is: the choice of images depends on them.
        samples = [
            replace(one, image_id=one.uri.removeprefix(lake.absolute_url(url)).strip("/").replace("/", "-"))
            for one in datasets.ADAPTERS["dagm"](url, None)
        ]
        return _mixed("drawn", samples, embed, settings, DRAWN_PER_LABEL, seed)


def dagm(data: str, embed: Embed, settings: ImageSettings, seed: int = 0) -> Collection | None:
    """DAGM under DAGM_MIX, 300 images a label; None where not all ten classes are found below `data`."""
    folder = find("dagm", data)
    samples = datasets.ADAPTERS["dagm"](folder, None) if folder else []
    of_surface = _by_surface(samples)
    if any(len(of_surface[f"dagm_class{number}"]) < LEAST_IMAGES for number in range(1, 11)):
        return None
    return _mixed("DAGM", samples, embed, settings, 300, seed)


def real(data: str, embed: Embed, settings: ImageSettings, seed: int = 0) -> Collection | None:
    """All surfaces found in the folders directly below `data`, or in itself; None where they are less than three.

    A layout that fits a folder reads it, what is left is read as plain folders. Raises `DataError` for data that are
    there but damaged.
    """
    samples = _real_samples(data)
    surfaces, notes = {}, []
    table = standard_attributes()
    features = _Features(embed, settings)
    for surface, own in _by_surface(samples).items():
        if len(own) < LEAST_IMAGES:
            notes.append(f"{surface}: left out, {len(own)} images are too few")
            continue
        chosen = assign_splits(_at_most(own, MOST_IMAGES, seed), seed, val_share=0.25, test_share=0.25)
        train, calibration, test = (
            features.of([one for one in chosen if one.split == split]) for split in ("train", "val", "test")
        )
        surfaces[surface] = SurfaceFeatures(train, calibration, test, unseen=features.of(chosen))
        if surface not in table.rows:
            table = _measured(table, surface, chosen, settings)
            notes.append(f"{surface}: no row in the attribute table, its real CE is measured")
    if len(surfaces) < 3:
        return None
    return Collection("real", surfaces, table, (f"real: {', '.join(surfaces)}", *notes))


class _Features:
    """Reads and embeds each image once."""

    def __init__(self, embed: Embed, settings: ImageSettings) -> None:
        self._embed, self._settings = embed, settings
        self._known: dict[str, Features] = {}

    def of(self, samples: Sequence[Sample]) -> Features:
        for sample in samples:
            if sample.uri not in self._known:
                self._known[sample.uri] = self._embed(_grey(sample, self._settings))
        return np.stack([self._known[sample.uri] for sample in samples])


def _grey(sample: Sample, settings: ImageSettings) -> NDArray[np.float32]:
    return decode(lake.read_bytes(sample.uri, settings.max_bytes), settings, sample.bit_depth).grey()


def _mixed(
    name: str, samples: Sequence[Sample], embed: Embed, settings: ImageSettings, per_label: int, seed: int
) -> Collection:
    features = _Features(embed, settings)
    surfaces = {}
    with tempfile.TemporaryDirectory() as scratch:
        # Which images are chosen of a surface does not depend on the others, so all are taken as seen, then as unseen.
        seen = _by_surface(augment_mix(build_mix(samples, (), seed, per_label), scratch, seed))
        for surface, own in seen.items():
            train = [one for one in own if one.split == "train"]
            calibration, test = _halves([one for one in own if one.split == "val"])
            unseen = _by_surface(build_mix(samples, (surface,), seed, per_label))[surface]
            surfaces[surface] = SurfaceFeatures(*(features.of(part) for part in (train, calibration, test, unseen)))
    counts = ", ".join(
        f"{sum(len(getattr(one, part)) for one in surfaces.values()):,} {part}" for part in SurfaceFeatures.__slots__
    )
    note = f"{name}: {len(surfaces)} surfaces; images, each surface as seen and as unseen: {counts}"
    return Collection(name, surfaces, standard_attributes(), (note,))


def _halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Every other group, so that both halves hold images and defects of each surface."""
    groups = list(dict.fromkeys(group_of(sample) for sample in samples))
    second = set(groups[1::2])
    return (
        [sample for sample in samples if group_of(sample) not in second],
        [sample for sample in samples if group_of(sample) in second],
    )


def _by_surface(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    of_surface: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        of_surface[sample.surface or ""].append(sample)
    return of_surface


def _real_samples(data: str) -> list[Sample]:
    """What each layout finds, and below `data` the plain folders that no layout has claimed.

    Surfaces of a plain folder are renamed after it, or after `data`, where the attribute table knows them so
    (`Leather27/class_01` is `leather27_class_01`).
    """
    rows = standard_attributes().rows
    claimed, samples = set(), []
    for adapter in _LAYOUTS:
        if (folder := find(adapter, data)) is not None:
            claimed.add(folder)
            samples += datasets.ADAPTERS[adapter](folder, None)
    for folder in () if data in claimed else folders_below(data):
        if folder in claimed:
            continue
        try:
            plain = datasets.ADAPTERS["folder"](folder, None)
        except DataError as error:
            if error.code != "bad-layout":
                raise
            continue
        for sample in plain:
            longer = (f"{folder_name(above).lower()}_{sample.surface}" for above in (folder, data))
            name = next((name for name in longer if name in rows), sample.surface)
            samples.append(replace(sample, surface=name))
    return [sample for sample in samples if sample.surface is not None]


def _at_most(samples: Sequence[Sample], most: int, seed: int) -> list[Sample]:
    """Whole groups at random until they hold `most` images."""
    of_group: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda one: one.uri):
        of_group[group_of(sample)].append(sample)
    order = np.random.default_rng(seed).permutation(len(of_group))
    groups = [list(of_group.values())[index] for index in order]
    before = [0, *accumulate(len(group) for group in groups)]
    return [sample for group, start in zip(groups, before, strict=False) if start < most for sample in group]


def _measured(
    table: AttributeTable, surface: str, samples: Sequence[Sample], settings: ImageSettings
) -> AttributeTable:
    train = [sample for sample in samples if sample.split == "train"][:NUM_MEASURED]
    images = [_grey(sample, settings) for sample in train]
    masks = [load_mask(sample, (image.shape[0], image.shape[1])) for sample, image in zip(train, images, strict=True)]
    return table.with_row(surface, measure_attributes(images, masks))
