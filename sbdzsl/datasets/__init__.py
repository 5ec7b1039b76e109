"""Data sets: readers of public layouts and of folders, splits, masks, DAGM_MIX, and the drawn lake."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from sbdzsl import lake
from sbdzsl.datasets import coco, dagm, folder, kolektorsdd, kolektorsdd2, magnetic_tile, neu, severstal, table
from sbdzsl.datasets.sample import (
    Sample,
    assign_splits,
    load_mask,
    missing_good,
    samples_from_table,
    samples_to_table,
    split_table,
)
from sbdzsl.errors import ConfigError

__all__ = [
    "ADAPTERS",
    "Ingested",
    "Sample",
    "assign_splits",
    "ingest",
    "load_mask",
    "missing_good",
    "samples_from_table",
    "samples_to_table",
    "split_table",
]

Adapter = Callable[[str, "str | None"], list[Sample]]

#: Name of each layout and what reads it: source URL, surface -> samples.
ADAPTERS: dict[str, Adapter] = {
    "dagm": dagm.scan,
    "kolektorsdd": kolektorsdd.scan,
    "kolektorsdd2": kolektorsdd2.scan,
    "magnetic_tile": magnetic_tile.scan,
    "neu": neu.scan,
    "severstal": severstal.scan,
    "coco": coco.scan,
    "table": table.scan,
    "folder": folder.scan,
}


@dataclass(frozen=True, slots=True)
class Ingested:
    """Samples with splits, and a line a surface on where its splits come from."""

    samples: list[Sample]
    notes: list[str]


def ingest(
    adapter: str,
    source: str,
    surface: str | None = None,
    fold: int | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> Ingested:
    """Read `source` in the layout `adapter` and give every sample a group and a split.

    An image of no part or lot is a group of its own, named by its path below `source`: what is copied, moved or drawn
    again is split, and trains, as before, which by an image's id (its address and age) it would not.
    Where no fold is asked for: a surface whose source names a val split keeps its splits as they are; one with an
    official test set keeps that, and val is a share of the official train; elsewhere `assign_splits` decides. Raises
    `ConfigError` for an unknown adapter or a bad fold, `LakeError` and `DataError` from reading.
    """
    if adapter not in ADAPTERS:
        raise ConfigError("bad-config", f"unknown layout {adapter!r}; expected one of {', '.join(ADAPTERS)}")
    samples = [
        sample if sample.group is not None else replace(sample, group=_path_below(source, sample.uri))
        for sample in ADAPTERS[adapter](source, surface)
    ]
    named: dict[str | None, set[str | None]] = defaultdict(set)
    for sample in samples if fold is None else ():
        named[sample.surface].add(sample.split)
    kept = {surface for surface, splits in named.items() if "val" in splits}
    official = {surface for surface, splits in named.items() if "test" in splits} - kept
    own = assign_splits([s for s in samples if s.surface not in official | kept], seed, fold=fold, folds=folds)
    train = assign_splits([s for s in samples if s.surface in official and s.split != "test"], seed, test_share=0)
    split = {sample.image_id: sample for sample in (*own, *train)}
    notes = [
        f"{surface}: {_origin(surface in kept, surface in official, fold, folds, seed)}"
        for surface in dict.fromkeys(sample.surface for sample in samples)
    ]
    return Ingested([split.get(sample.image_id, sample) for sample in samples], notes)


def _path_below(source: str, uri: str) -> str:
    """The path of a file below a source folder, or below the folder of a source file; elsewhere the whole address."""
    root = lake.absolute_url(source).rstrip("/")
    folder = root if uri.startswith(f"{root}/") else root.rpartition("/")[0]
    return uri.removeprefix(f"{folder}/")


def _origin(is_kept: bool, is_official: bool, fold: int | None, folds: int | None, seed: int) -> str:
    if is_kept:
        return "splits as its source names them"
    if is_official:
        return f"official test set; val is a fifth of the official train, by seed {seed}"
    if fold is not None:
        return f"fold {fold} of {folds} is test; val is a fifth of the rest, by group, seed {seed}"
    return f"split of our own by group, seed {seed}: no official one, or it is not complete here"
