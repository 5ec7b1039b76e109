"""One image of a data set with what is known about it; splits without leaks; masks.

A `Sample` is one row of the manifest (`lake.MANIFEST_SCHEMA`). Its group is the part, lot or photograph it comes
from: images of one group are alike, so a group is never split between train, val and test. Group names count within
their surface; a sample without group is a group of its own.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbdzsl import lake
from sbdzsl.datasets import masks
from sbdzsl.errors import ConfigError, DataError

Label = Literal["benign", "defect"]
MaskKind = Literal["pixels", "ellipse", "rle", "box", "polygon"]
Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: the stored file it is, and its labels. Fields as in the manifest; None is not known.

    `mask_kind`: what each kind is written as says `masks`. A `mask_uri` may end in `#key`: see `annotation_files`.
    """

    image_id: str
    uri: str
    size_bytes: int | None = None
    etag: str | None = None
    modified_at: datetime | None = None
    surface: str | None = None
    label: Label | None = None
    mask_uri: str | None = None
    mask_kind: MaskKind | None = None
    group: str | None = None
    split: Split | None = None
    bit_depth: int | None = None


@dataclass(frozen=True, slots=True)
class SplitRow:
    """What one split of one surface holds: groups, and images by label."""

    surface: str
    split: str
    groups: int
    benign: int
    defect: int
    unlabelled: int


def samples_to_table(samples: Sequence[Sample]) -> pa.Table:
    """Samples as a manifest of `lake.MANIFEST_SCHEMA`, in the order given."""
    columns = {name: [getattr(sample, name) for sample in samples] for name in lake.MANIFEST_SCHEMA.names}
    return pa.table(columns, schema=lake.MANIFEST_SCHEMA)


def samples_from_table(table: pa.Table) -> list[Sample]:
    """A manifest as samples, in its order; `table` is of `lake.MANIFEST_SCHEMA`, as `lake.read_manifest` gives it."""
    return [Sample(**row) for row in table.select(lake.MANIFEST_SCHEMA.names).to_pylist()]


def group_of(sample: Sample) -> tuple[str, str]:
    """Surface and group of a sample: what is never split. Without a group: the image itself."""
    return sample.surface or "", sample.image_id if sample.group is None else sample.group


@dataclass(frozen=True, slots=True)
class _Group:
    """`weight`: defective images in a group that holds a defect, all images in one that does not."""

    name: str
    weight: int
    order: str


def assign_splits(
    samples: Sequence[Sample],
    seed: int,
    val_share: float = 0.2,
    test_share: float = 0.2,
    fold: int | None = None,
    folds: int | None = None,
) -> list[Sample]:
    """The samples, in their order, each with a split. Which one depends on seed, surface and group, not on the order.

    Per surface, groups with a defect are shared out by their defects, groups without by their images, so that val and
    test hold defects where there are enough defective groups (the first goes to train, the second to test, the third
    to val). A surface with three groups or more has all three splits. With `fold` of `folds` (counted from 0), that
    fold is test and `val_share` of the rest is val; `test_share` is not used. `test_share=0`, as `val_share=0`,
    leaves that split empty. Raises `ConfigError` for shares or a fold out of range, `DataError` too-few-images for a
    surface with fewer groups than folds.
    """
    _check_shares(val_share, test_share, fold, folds)
    of_surface: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        surface, group = group_of(sample)
        of_surface[surface][group].append(sample)
    split_of: dict[tuple[str, str], Split] = {}
    for surface, groups in of_surface.items():
        strata = _strata(surface, groups, seed)
        if fold is None or folds is None:
            test = {group.name for stratum in strata for group in _take(stratum, test_share, leave=2)}
            share_of_rest = val_share / (1 - test_share)
        else:
            test, share_of_rest = _fold(surface, strata, fold, folds), val_share
        rest = [[group for group in stratum if group.name not in test] for stratum in strata]
        val = {group.name for stratum in rest for group in _take(stratum, share_of_rest, leave=1)}
        names = [group.name for stratum in reversed(strata) for group in stratum]
        if test_share > 0 and not test:
            _give_one(names, test, val, may_give=True)
        if val_share > 0 and not val:
            _give_one(names, val, test, may_give=fold is None)
        for name in groups:
            split_of[surface, name] = "test" if name in test else "val" if name in val else "train"
    return [replace(sample, split=split_of[group_of(sample)]) for sample in samples]


def _strata(surface: str, groups: dict[str, list[Sample]], seed: int) -> tuple[list[_Group], list[_Group]]:
    """Groups with a defect and groups without, each in an order that seed, surface and name decide."""
    strata: tuple[list[_Group], list[_Group]] = ([], [])
    for name, members in groups.items():
        order = hashlib.sha256(f"{seed}\0{surface}\0{name}".encode()).hexdigest()
        num_defects = sum(member.label == "defect" for member in members)
        strata[0 if num_defects else 1].append(_Group(name, num_defects or len(members), order))
    for stratum in strata:
        stratum.sort(key=lambda group: group.order)
    return strata


def _check_shares(val_share: float, test_share: float, fold: int | None, folds: int | None) -> None:
    if val_share < 0 or test_share < 0 or val_share + test_share >= 1:
        raise ConfigError(
            "bad-config", f"shares val {val_share} and test {test_share}: expected 0 or more each, below 1 together"
        )
    if (fold is None) != (folds is None):
        raise ConfigError("bad-config", f"fold {fold} of {folds}: give both, or neither")
    if fold is not None and folds is not None and (folds < 2 or not 0 <= fold < folds):
        raise ConfigError(
            "bad-config", f"fold {fold} of {folds}: folds are counted from 0, so expected 0 to {folds - 1} of 2 or more"
        )


def _take(groups: list[_Group], share: float, leave: int) -> list[_Group]:
    """Groups, in their random order, that make up about `share` of the weight; one at least if `leave` are left.

    Of two groups, one is taken whatever `leave` says, so that a defect gets into train and test before val.
    """
    most = len(groups) - 1 if len(groups) == 2 else len(groups) - leave
    if share == 0 or most < 1:
        return []
    target = share * sum(group.weight for group in groups)
    taken: list[_Group] = []
    total = 0
    for group in groups:
        if len(taken) < most and total + group.weight / 2 <= target:
            taken.append(group)
            total += group.weight
    return taken or [min(groups, key=lambda group: (group.weight, group.order))]


def _fold(surface: str, strata: Iterable[list[_Group]], fold: int, folds: int) -> set[str]:
    """Names of the groups in one fold; each goes where least weight of its kind, then of any, is so far."""
    groups = [(kind, group) for kind, stratum in enumerate(strata) for group in stratum]
    if len(groups) < folds:
        raise DataError(
            "too-few-images",
            f"surface {surface!r} has {len(groups)} groups for {folds} folds: a group is never split, so use at most "
            f"{len(groups)} folds",
        )
    of_kind: Counter[tuple[int, int]] = Counter()
    of_any: Counter[int] = Counter()
    chosen: set[str] = set()
    for kind, group in groups:
        place = min(range(folds), key=lambda k: (of_kind[kind, k], of_any[k], k))
        of_kind[kind, place] += group.weight
        of_any[place] += group.weight
        if place == fold:
            chosen.add(group.name)
    return chosen


def _give_one(names: list[str], empty: set[str], other: set[str], may_give: bool) -> None:
    """Give an empty val or test one of `names` (benign ones first): of `other` if it may and has two, else of train.

    Nothing is given where train would be left empty.
    """
    train = [name for name in names if name not in other]
    if may_give and len(other) > 1:
        name = next(name for name in names if name in other)
        other.remove(name)
        empty.add(name)
    elif len(train) > 1:
        empty.add(train[0])


def split_table(samples: Iterable[Sample]) -> list[SplitRow]:
    """Groups and images per surface and split, for printing; sorted by surface, then train, val, test, none."""
    counts: Counter[tuple[str, str, str | None]] = Counter()
    groups: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for sample in samples:
        key = sample.surface or "(no surface)", sample.split or "(no split)"
        counts[key[0], key[1], sample.label] += 1
        groups[key].add(group_of(sample))
    order: dict[str, int] = {split: place for place, split in enumerate(SPLITS)}
    return [
        SplitRow(
            surface=surface,
            split=split,
            groups=len(groups[surface, split]),
            benign=counts[surface, split, "benign"],
            defect=counts[surface, split, "defect"],
            unlabelled=counts[surface, split, None],
        )
        for surface, split in sorted(groups, key=lambda key: (key[0], order.get(key[1], len(order))))
    ]


def missing_good(rows: Iterable[SplitRow]) -> Iterator[str]:
    """What to say of surfaces with good images, but none to train on or none to set a threshold by.

    `rows` are of `split_table`.
    """
    good: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        good[row.surface][row.split] += row.benign
    for surface, of_split in good.items():
        for split in ("train", "val"):
            if of_split.keys() & set(SPLITS) and of_split.total() and not of_split[split]:
                yield (
                    f"{surface}: none of {of_split.total()} good images is in {split}, so it cannot be trained; a "
                    "group (part, lot) is never split: three groups of good images are needed, or none at all"
                )


def load_mask(sample: Sample, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Where the defect is: bool [H, W] in the frame of the decoded image, whose `shape` (H, W) is given.

    All False for a benign sample without mask. None for what is not known: an unlabelled sample without mask, a
    defect without mask, and a defect whose mask is empty, which counts as a defect without mask. In mask images a
    pixel is defect where its value exceeds half of the scale (127 of 255), in any channel; the scale is the file's
    own (255 or 65535), or 1 where no value exceeds 1, as some tools write masks as 0 and 1. What the other kinds
    mean stands in `masks`. Raises `DataError` bad-mask for a mask of another size, unreadable, or with defects on a
    benign sample.
    """
    if sample.mask_uri is None:
        return np.zeros(shape, np.bool_) if sample.label == "benign" else None
    mask = masks.read_mask(sample.mask_uri, sample.mask_kind, shape)
    if mask.shape != shape:
        raise DataError(
            "bad-mask",
            f"{sample.mask_uri}: {mask.shape[1]}x{mask.shape[0]} px, but the image {sample.uri} has {shape[1]}x"
            f"{shape[0]}; a mask must have the size of its image",
        )
    if sample.label == "benign" and mask.any():
        raise DataError(
            "bad-mask",
            f"{sample.mask_uri}: {int(mask.sum())} defect pixels, but {sample.uri} is labelled benign; correct one",
        )
    return mask if mask.any() or sample.label == "benign" else None


def stored_sample(stored: lake.StoredFile, **labels: Any) -> Sample:
    """A sample of a listed file; `labels` are further fields of `Sample`."""
    return Sample(
        image_id=lake.image_id(stored.uri, stored.version),
        uri=stored.uri,
        size_bytes=stored.size_bytes,
        etag=stored.etag,
        modified_at=stored.modified_at,
        **labels,
    )
